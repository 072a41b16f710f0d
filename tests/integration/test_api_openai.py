"""The official `openai` package, unmodified, against real processes: the whole trip."""

import hashlib
import io
import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import OpenAI

from shared.db import transaction
from tests.attempts import json_lines
from tests.factories import a_base_model, tiny_encoder, tiny_llama
from tests.services import until

CHAT = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}!"}]}
    for n in range(24)
]
LABELLED = [
    {"text": f"{'good' if n % 2 else 'bad'} {n}", "label": "plus" if n % 2 else "minus"} for n in range(24)
]
QUICK = {"n_epochs": 1, "batch_size": 4, "max_length": 64, "max_steps": 6, "evaluations": 2, "checkpoints": 2}
FINAL = ("succeeded", "failed", "cancelled")
PATIENCE = 180


@pytest.fixture(scope="module")
def house(live, tmp_path_factory):
    """A team with a client and two tiny base models in the store."""
    live.aim()
    secret = live.token("openai")
    with transaction() as db:
        chat = a_base_model(db, tiny_llama(tmp_path_factory.mktemp("chat")))
        encoder = a_base_model(db, tiny_encoder(tmp_path_factory.mktemp("encoder")), head="encoder")
    return {
        "client": OpenAI(base_url=f"{live.url}/v1", api_key=secret, max_retries=0, timeout=60),
        "chat": chat.id,
        "encoder": encoder.id,
        "secret": secret,
        "url": live.url,
    }


@pytest.fixture(scope="module")
def client(house):
    return house["client"]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def ended(client, job_id) -> Any:
    return until(
        lambda: (job := client.fine_tuning.jobs.retrieve(job_id)).status in FINAL and job, PATIENCE, job_id
    )


def answered(client, batch_id) -> Any:
    final = ("completed", "failed")
    return until(lambda: (b := client.batches.retrieve(batch_id)).status in final and b, PATIENCE, batch_id)


@pytest.fixture(scope="module")
def trained(client, house):
    """A chat job from upload to success, with a validation file."""
    train = client.files.create(file=("chat.jsonl", jsonl(CHAT)), purpose="fine-tune")
    valid = client.files.create(file=("held-out.jsonl", jsonl(CHAT[:4])), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=house["chat"],
        training_file=train.id,
        validation_file=valid.id,
        suffix="bot",
        seed=1,
        metadata={"from": "tests"},
        method={"type": "supervised", "supervised": {"hyperparameters": QUICK}},
    )
    assert job.status in ("validating_files", "queued", "running")
    job = ended(client, job.id)
    assert job.status == "succeeded", job.error
    return job


def test_a_file_is_processed_by_the_worker(client):
    file = client.files.create(file=b"".join([jsonl(CHAT)]), purpose="fine-tune")
    assert client.files.wait_for_processing(file.id, max_wait_seconds=60).status == "processed"
    assert client.files.content(file.id).read() == jsonl(CHAT)


def test_a_succeeded_job_carries_what_openai_s_carries(client, trained, house):
    assert trained.fine_tuned_model.startswith(f"ft:{house['chat']}:openai:bot:")
    assert trained.finished_at >= trained.created_at
    assert trained.trained_tokens > 0
    assert trained.error is None
    assert trained.seed == 1
    assert trained.metadata == {"from": "tests"}
    assert set(trained.x_scores) >= {"base", "tuned"}
    assert "loss" in trained.x_scores["tuned"]
    results = client.files.content(trained.result_files[0]).text
    assert results.splitlines()[0].startswith("step,train_loss,train_accuracy,valid_loss")
    assert trained.id in [job.id for job in client.fine_tuning.jobs.list(metadata={"from": "tests"})]


def test_events_page_through_with_the_package_s_own_iterator(client, trained):
    events = list(client.fine_tuning.jobs.list_events(trained.id, limit=3))
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {trained.id}"
    assert len({event.id for event in events}) == len(events)
    assert [e.created_at for e in events] == sorted((e.created_at for e in events), reverse=True)
    steps = [e.data["step"] for e in events if e.type == "metrics" and "train_loss" in e.data]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 6


def test_checkpoints_download_with_the_right_bytes(client, trained):
    found = list(client.fine_tuning.jobs.checkpoints.list(trained.id))
    assert [c.step_number for c in found] == sorted((c.step_number for c in found), reverse=True)
    assert found[0].step_number == 6
    assert found[0].metrics.model_dump()["valid_loss"] > 0
    best = min(found, key=lambda c: (c.metrics.valid_loss, -c.step_number))
    assert trained.fine_tuned_model == best.fine_tuned_model_checkpoint
    files = client.get(f"/fine_tuning/jobs/{trained.id}/checkpoints/{found[0].id}/files", cast_to=object)
    assert files["x_status"] == "ready"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f["name"] for f in files["data"]}
    for file in files["data"]:
        data = httpx.get(file["url"], trust_env=False).raise_for_status().content
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])


def exported(client, trained, form: str) -> Any:
    """The files of a form that is made when first asked for."""
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(trained.id))).id
    path = f"/fine_tuning/jobs/{trained.id}/checkpoints/{checkpoint}/files"

    def ready():
        files = client.get(path, cast_to=object, options={"params": {"form": form}})
        assert files["x_status"] != "failed", files["x_error"]
        return files if files["x_status"] == "ready" else None

    return until(ready, PATIENCE, f"the {form} files")


def test_a_merged_model_is_made_on_demand(client, trained):
    names = {file["name"] for file in exported(client, trained, "merged")["data"]}
    assert {"config.json", "model.safetensors"} <= names
    assert "adapter_config.json" not in names


def test_a_gguf_file_is_made_on_demand_and_answers_as_the_merged_model_does(client, trained, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for form in ("gguf", "merged"):
        (tmp_path / form).mkdir()
        for file in exported(client, trained, form)["data"]:
            data = httpx.get(file["url"], trust_env=False).raise_for_status().content
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            (tmp_path / form / file["name"]).write_bytes(data)
    assert [path.name for path in (tmp_path / "gguf").iterdir()] == ["model.gguf"]
    file, written = {"gguf_file": "model.gguf"}, {}
    for form, more in (("gguf", file), ("merged", {})):
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / form, **more)
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / form, **more)
        question = tokenizer.apply_chat_template(
            CHAT[0]["messages"][:1], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        written[form] = model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
    assert written["gguf"] == written["merged"]


def test_models_are_listed_found_and_missing(client, trained, house):
    names = [model.id for model in client.models.list()]
    assert {"smollm2-135m-instruct", "minilm-l6-v2", house["chat"], trained.fine_tuned_model} <= set(names)
    assert client.models.retrieve(trained.fine_tuned_model).owned_by == "openai"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("HuggingFaceTB/SmolLM2-135M")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("smollm2-135m-instruct")


def test_a_fine_tuned_model_answers_a_batch(client, trained):
    lines = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": trained.fine_tuned_model,
                "messages": [{"role": "user", "content": f"Say {n}."}],
                "max_tokens": 4,
            },
        }
        for n in range(3)
    ]
    source = client.files.create(file=("batch.jsonl", jsonl(lines)), purpose="batch")
    batch = client.batches.create(
        input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = answered(client, batch.id)
    assert batch.status == "completed", batch.errors
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        3,
        3,
        0,
    )
    told = json_lines(client.files.content(batch.output_file_id).text)
    assert {line["custom_id"] for line in told} == {"r0", "r1", "r2"}
    answer = told[0]["response"]["body"]
    assert (answer["object"], answer["choices"][0]["message"]["role"]) == ("chat.completion", "assistant")
    assert batch.id in [b.id for b in client.batches.list()]


def test_a_bad_batch_fails_with_every_line_named(client, house):
    body = {"model": house["chat"], "messages": [{"role": "user", "content": "hi"}]}
    good = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    data = jsonl([good, good | {"custom_id": "b", "url": "/v1/else"}]) + b"{oops\n"
    source = client.files.create(file=("bad.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = answered(client, batch.id)
    assert batch.status == "failed"
    assert batch.errors.data[0].message


def test_a_classifier_is_trained_by_its_own_method(client, house):
    train = client.files.create(file=("labels.jsonl", jsonl(LABELLED)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=house["encoder"],
        training_file=train.id,
        method={"type": "classification", "classification": {"hyperparameters": QUICK}},
    )
    job = ended(client, job.id)
    assert job.status == "succeeded", job.error
    [last, *_] = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert "valid_accuracy" in last.metrics.model_dump()
    files = client.get(f"/fine_tuning/jobs/{job.id}/checkpoints/{last.id}/files", cast_to=object)
    config = next(f for f in files["data"] if f["name"] == "config.json")
    labels = httpx.get(config["url"], trust_env=False).json()["id2label"]
    assert set(labels.values()) == {"plus", "minus"}


def test_bad_rows_are_refused_at_once_with_their_row(client, house):
    rows = [
        *CHAT[:3],
        {"messages": [{"role": "assistant", "content": "first"}, {"role": "user", "content": "?"}]},
    ]
    file = client.files.create(file=("roles.jsonl", jsonl(rows)), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=house["chat"], training_file=file.id)
    assert "4" in refused.value.message
    assert refused.value.param


def test_a_running_job_is_cancelled_by_the_package(client, house):
    file = client.files.create(file=("chat.jsonl", jsonl(CHAT)), purpose="fine-tune")
    long = QUICK | {"n_epochs": 100, "max_steps": 100_000}
    job = client.fine_tuning.jobs.create(
        model=house["chat"],
        training_file=file.id,
        method={"type": "supervised", "supervised": {"hyperparameters": long}},
    )
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", PATIENCE)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    done: Any = until(
        lambda: (j := client.fine_tuning.jobs.retrieve(job.id)).finished_at and j, 60, "the end"
    )
    assert (done.status, done.x_state) == ("cancelled", "cancelled")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_errors_are_the_package_s_own(client, house):
    with pytest.raises(openai.AuthenticationError) as stranger:
        OpenAI(base_url=f"{house['url']}/v1", api_key="sk-wrong", max_retries=0).models.list()
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as typo:
        client.fine_tuning.jobs.create(model=house["chat"], training_file="file-x", extra_body={"x_lorra": 1})
    assert (typo.value.code, typo.value.param) == ("unknown_parameter", "x_lorra")
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-none")
    file = client.files.create(file=("chat.jsonl", jsonl(CHAT)), purpose="fine-tune")
    order = {"model": house["chat"], "training_file": file.id, "extra_headers": {"Idempotency-Key": "twice"}}
    client.fine_tuning.jobs.create(seed=1, **order)
    with pytest.raises(openai.ConflictError) as conflict:
        client.fine_tuning.jobs.create(seed=2, **order)
    assert conflict.value.code == "idempotency_key_reused"


def test_a_large_upload_streams_and_one_over_the_limit_is_refused(client, house):
    lines = io.BytesIO(b'{"prompt": "%s", "completion": "x"}\n' % (b"a" * 1000) * 40_000)
    file = client.files.create(file=("large.jsonl", lines), purpose="fine-tune")
    assert file.bytes == len(lines.getvalue())
    over = 2 * 1024**3 + 2 * 1024**2
    plain = HTTPConnection(urlsplit(house["url"]).netloc, timeout=60)
    plain.putrequest("POST", "/v1/files")
    for name, value in (
        ("Authorization", f"Bearer {house['secret']}"),
        ("Content-Type", "multipart/form-data; boundary=x"),
        ("Content-Length", str(over)),
    ):
        plain.putheader(name, value)
    plain.endheaders()
    answer = plain.getresponse()
    assert answer.status == 413
    assert "2 GiB" in json.loads(answer.read())["error"]["message"]
