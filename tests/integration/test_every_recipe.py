"""Every recipe over real processes, as a program with the `openai` package uses it: its own example goes up
as a file, is read, trained on, downloaded as checkpoint, and asked by a batch.
"""

import io
import json
import zipfile
from typing import Any

import httpx
import pytest
from openai import OpenAI

from shared import presets
from shared.db import transaction
from shared.recipe import Recipe, recipes, wire_name
from tests.attempts import json_lines
from tests.factories import a_base_model, tiny_causal_lm, tiny_encoder
from tests.services import Live, until

EVERY = pytest.mark.parametrize("recipe", recipes().values(), ids=lambda recipe: recipe.name)
QUICK = {
    "n_epochs": 1,
    "batch_size": 4,
    "max_steps": 3,
    "evaluations": 1,
    "checkpoints": 1,
    "valid_fraction": 0.25,
}
FINAL = ("succeeded", "failed", "cancelled")
PATIENCE = 180
MEDIA = ("image", "audio")


@pytest.fixture(scope="module")
def client(live: Live) -> OpenAI:
    live.aim()
    return OpenAI(base_url=f"{live.url}/v1", api_key=live.token("every recipe"), max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def models(live: Live, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{head: the id of a tiny base model in the store}."""
    folder = tmp_path_factory.mktemp("tiny")
    with transaction() as db:
        return {
            "causal_lm": a_base_model(db, tiny_causal_lm(folder / "chat")).id,
            "encoder": a_base_model(db, tiny_encoder(folder / "encoder"), head="encoder").id,
        }


def upload(recipe: Recipe) -> tuple[str, bytes]:
    """The recipe's example as a person would upload it: JSONL, or a zip with a folder for each label."""
    kind = next((column.kind for column in recipe.columns if column.kind in MEDIA), None)
    if kind is None:
        return "rows.jsonl", "".join(json.dumps(row) + "\n" for row in recipe.example).encode()
    suffix = {"image": "png", "audio": "wav"}[kind]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for number, row in enumerate(recipe.example):
            file.writestr(f"{row['label']}/{number}.{suffix}", row[kind])
    return "rows.zip", packed.getvalue()


def spec(recipe: Recipe) -> dict[str, Any]:
    """Hyperparameters for a training of a second or two."""
    return QUICK | ({"max_length": 64} if "max_length" in recipe.spec.model_fields else {})


def requests(recipe: Recipe, model: str, columns: dict[str, str]) -> bytes:
    """A batch file that asks for the example's first rows, and one line that no model can answer."""
    rows = [recipe.input(recipe.canonical(row, columns)) for row in recipe.example[:3]]
    if recipe.endpoint == "/v1/predictions":
        bodies: list[dict[str, Any]] = [{"model": model, "input": row} for row in [*rows, {"nothing": 1}]]
    else:
        asked = [*rows, {"messages": [{"role": "assistant", "content": "I ask nothing."}]}]
        bodies = [{"model": model, "max_tokens": 4} | row for row in asked]
    lines = [
        {"custom_id": f"row-{n}", "method": "POST", "url": recipe.endpoint, "body": body}
        for n, body in enumerate(bodies)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@EVERY
def test_it_trains_downloads_and_answers(client: OpenAI, live: Live, models: dict[str, str], recipe: Recipe):
    file = client.files.create(file=upload(recipe), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=recipe.default_base_model if presets.preset(recipe.default_base_model) else models[recipe.head],
        training_file=file.id,
        seed=3,
        extra_body={
            "method": {"type": wire_name(recipe), wire_name(recipe): {"hyperparameters": spec(recipe)}}
        },
    )
    job = ended(client, job.id)
    assert job.status == "succeeded", job.error
    assert set(job.x_scores["tuned"]) == {metric.name for metric in recipe.metrics}

    newest = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
    listed = client.get(
        f"/fine_tuning/jobs/{job.id}/checkpoints/{newest.id}/files", cast_to=httpx.Response
    ).json()
    assert listed["x_status"] == "ready"
    assert any(one["name"].endswith(".safetensors") for one in listed["data"])
    with httpx.Client(trust_env=False) as plain:
        for one in listed["data"]:
            assert len(plain.get(one["url"]).content) == one["bytes"], one["name"]

    questions = client.files.create(
        file=("ask.jsonl", requests(recipe, job.fine_tuned_model, columns(recipe))), purpose="batch"
    )
    endpoint: Any = recipe.endpoint
    batch = client.batches.create(input_file_id=questions.id, endpoint=endpoint, completion_window="24h")
    batch: Any = until(lambda: answered(client, batch.id), PATIENCE, batch.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 3, 1)
    lines = json_lines(client.files.content(batch.output_file_id).text)
    assert [line["custom_id"] for line in lines] == ["row-0", "row-1", "row-2"]
    for line in lines:
        body = line["response"]["body"]
        output = body["output"] if recipe.endpoint == "/v1/predictions" else body["choices"][0]["message"]
        assert output
        if "file_id" in output:
            assert client.files.content(output["file_id"]).read()[:4] in (b"\x89PNG", b"RIFF")
    wrong = json_lines(client.files.content(batch.error_file_id).text)
    assert wrong[0]["response"]["body"]["error"]["message"].endswith(".")
    judges(client, recipe, job.fine_tuned_model, file.id)


def judges(client: OpenAI, recipe: Recipe, model: str, file_id: str) -> None:
    """The checkpoint is evaluated on the rows of the example: each metric with its interval, a line a row."""
    made = asked(client.post, "/evaluations", body={"model": model, "dataset": file_id})
    told: Any = until(
        lambda: (one := asked(client.get, f"/evaluations/{made['id']}"))["status"] in FINAL and one,
        PATIENCE,
        made["id"],
    )
    assert told["status"] == "succeeded", told["error"]
    names = {metric.name for metric in recipe.metrics}
    assert (set(told["metrics"]), set(told["intervals"])) == (names, names)
    results, report = (client.files.content(one) for one in told["result_files"])
    lines = json_lines(results.text)
    assert len(lines) == told["rows"] > 0
    assert all({"row", "score", "judged"} <= line.keys() for line in lines)
    assert json.loads(report.text)["worst"]


def asked(verb: Any, path: str, **more: Any) -> Any:
    """What the API answers to a call that the `openai` package has no name for."""
    return verb(path, cast_to=httpx.Response, **more).json()


def columns(recipe: Recipe) -> dict[str, str]:
    """How the recipe reads its own example."""
    found = recipe.recognise(recipe.example[0])
    assert found
    return found


def ended(client: OpenAI, job_id: str) -> Any:
    """The job once it has ended."""
    return until(
        lambda: (job := client.fine_tuning.jobs.retrieve(job_id)).status in FINAL and job, PATIENCE, job_id
    )


def answered(client: OpenAI, batch_id: str) -> Any:
    """The batch, once it has ended."""
    batch = client.batches.retrieve(batch_id)
    return batch if batch.status in ("completed", "failed") else None
