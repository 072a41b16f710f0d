"""What a team has stored, over the API: events, checkpoints, models, files, batches, schedules."""

import io
import json
import zipfile
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlmodel import select

from shared.columns import now
from shared.db import transaction
from shared.settings import settings
from shared.tables import (
    Artifact,
    Event,
    EventType,
    Job,
    JobDependency,
    Kind,
    Ready,
    Role,
    State,
    Transition,
)
from tests.factories import (
    a_checkpoint,
    a_file,
    a_job,
    a_token,
    an_attempt,
    tiny_causal_lm,
)
from tests.visitor import LABELLED, Api, error_of


@pytest.fixture
def finished(alpha, tmp_path):
    """A succeeded job with two checkpoints and a history."""
    servable = tmp_path / "servable"
    (tmp_path / "state").mkdir()
    servable.mkdir()
    (servable / "adapter_config.json").write_text("{}")
    (servable / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "state" / "optimizer.safetensors").write_bytes(b"never served")
    with transaction() as db:
        job = a_job(
            db,
            alpha.team,
            base_model_id=alpha.model.id,
            asked={"suffix": "bot"},
            progress={"total_steps": 20},
        )
        first = a_checkpoint(
            db, job, 10, tmp_path, adapter=True, metrics={"valid_loss": 1.0, "train_loss": 0.9}
        )
        last = a_checkpoint(db, job, 20, tmp_path, adapter=True, metrics={"valid_loss": 1.5})
        lease = an_attempt(db, job).lease_id
        at = now()
        for n, (state, reason) in enumerate(
            [
                (State.QUEUED, "submitted"),
                (State.RUNNING, "attempt 1"),
                (State.QUEUED, "lost"),
                (State.RUNNING, "attempt 2"),
            ]
        ):
            db.add(
                Transition(job_id=job.id, state=state, actor="x", reason=reason, at=at + timedelta(seconds=n))
            )
            db.flush()
        for seq in range(1, 21):
            moment = at + timedelta(seconds=4, milliseconds=seq // 2)  # pairs at the same time
            common: dict[str, Any] = {
                "job_id": job.id,
                "lease_id": lease,
                "team_id": alpha.team.id,
                "seq": seq,
                "at": moment,
                "step": seq,
            }
            db.add(Event(type=EventType.STEP, data={"loss": 1 / seq, "total_steps": 20}, **common))
            db.flush()
        for seq, kind, data in (
            (21, EventType.EVAL, {"which": "tuned", "metrics": {"loss": 1.5}}),
            (22, EventType.CHECKPOINT, {"name": "step-000020"}),
            (23, EventType.LOG, {"level": "warn", "message": "careful"}),
        ):
            db.add(Event(job_id=job.id, lease_id=lease, team_id=alpha.team.id, seq=seq, at=at + timedelta(seconds=seq),
                         step=20, type=kind, data=data))  # fmt: skip
            db.flush()
        job.state, job.finished_at, job.best_checkpoint_id = State.SUCCEEDED, at, first.id
        db.add(Transition(job_id=job.id, state=State.SUCCEEDED, actor="x", at=at + timedelta(seconds=60)))
    return SimpleNamespace(job=job, first=first, last=last)


def test_checkpoints_list_the_last_step_first_and_the_best_names_the_model(alpha, finished):
    page = alpha.api.get(f"/fine_tuning/jobs/{finished.job.id}/checkpoints")
    assert [c["step_number"] for c in page["data"]] == [20, 10]
    last, best = page["data"]
    assert best["metrics"] == {"step": 10, "valid_loss": 1.0, "train_loss": 0.9}
    job = alpha.api.get(f"/fine_tuning/jobs/{finished.job.id}")
    name = f"ft:{alpha.model.id}:alpha-team:bot:{finished.first.id[-8:]}"
    assert job["fine_tuned_model"] == name == best["fine_tuned_model_checkpoint"]
    assert last["fine_tuned_model_checkpoint"].endswith(":ckpt-step-20")
    assert (best["x_best"], last["x_best"]) == (True, False)
    one = alpha.api.get(f"/fine_tuning/jobs/{finished.job.id}/checkpoints?limit=1")
    assert one["has_more"] is True
    rest = alpha.api.get(f"/fine_tuning/jobs/{finished.job.id}/checkpoints?after={one['last_id']}")
    assert [c["id"] for c in rest["data"]] == [finished.first.id]


def test_a_checkpoint_s_files_are_linked_without_its_state(alpha, finished):
    base = f"/fine_tuning/jobs/{finished.job.id}/checkpoints"
    files = alpha.api.get(f"{base}/{finished.last.id}/files")
    assert files["x_status"] == "ready"
    assert [f["name"] for f in files["data"]] == ["adapter_config.json", "adapter_model.safetensors"]
    link = files["data"][1]["url"]
    answer = alpha.api.client.get(link.removeprefix(settings().public_url))
    assert answer.data == b"weights"
    part = alpha.api.client.get(link.removeprefix(settings().public_url), headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.data) == (206, b"igh")
    name = alpha.api.get(base)["data"][0]["fine_tuned_model_checkpoint"]
    assert alpha.api.get(f"{base}/{name}/files")["data"][0]["sha256"] == files["data"][0]["sha256"]
    alpha.api.get(f"{base}/ftckpt_none/files", 404)
    alpha.api.get(f"{base}/{finished.last.id}/files?form=onnx", 400)


def test_a_merged_model_is_built_when_first_asked_for(alpha, finished):
    path = f"/fine_tuning/jobs/{finished.job.id}/checkpoints/{finished.last.id}/files?form=merged"
    for _ in range(3):
        assert alpha.api.get(path) == {
            "object": "list", "data": [], "has_more": False, "x_status": "building",
            "x_error": None, "x_agreement": None, "x_zip": None,
        }  # fmt: skip
    with transaction() as db:
        [export] = db.exec(select(Job).where(Job.kind == Kind.EXPORT)).all()
        artifact = db.exec(select(Artifact).where(Artifact.job_id == export.id)).one()
        artifact.state, artifact.error = Ready.FAILED, "No space."
    assert alpha.api.get(path)["x_status"] == "failed"
    assert alpha.api.get(path)["x_error"] == "No space."


def test_what_was_found_of_an_export_comes_with_its_files(alpha, finished):
    path = f"/fine_tuning/jobs/{finished.job.id}/checkpoints/{finished.last.id}/files"
    assert alpha.api.get(path)["x_agreement"] is None
    alpha.api.get(path + "?form=merged")
    with transaction() as db:
        export = db.exec(select(Job).where(Job.kind == Kind.EXPORT)).one()
        export.scores = {"agreement": {"said": "All are equal.", "equal": 1.0, "largest_difference": 0.0}}
        artifact = db.exec(select(Artifact).where(Artifact.job_id == export.id)).one()
        artifact.state, artifact.prefix = Ready.READY, "made/"
        artifact.manifest = [{"name": "model.safetensors", "bytes": 1, "sha256": "0" * 64}]
    found = alpha.api.get(path + "?form=merged")
    assert (found["x_status"], found["x_agreement"]) == ("ready", "All are equal.")


def test_a_viewer_s_token_looks_and_builds_nothing(alpha, finished, app):
    with transaction() as db:
        viewer = Api(app, a_token(db, alpha.team, Role.VIEWER))
    base = f"/fine_tuning/jobs/{finished.job.id}/checkpoints/{finished.last.id}/files"
    assert viewer.get(base)["x_status"] == "ready"
    assert error_of(viewer.get(base + "?form=merged", 403))["code"] == "role_too_low"


def test_events_tell_the_story_in_openai_s_words(alpha, finished):
    events = alpha.api.get(f"/fine_tuning/jobs/{finished.job.id}/events?limit=1000")["data"]
    told = [event["message"] for event in events]
    name = f"ft:{alpha.model.id}:alpha-team:bot"
    assert told[:5] == [
        "The job has successfully completed",
        f"New fine-tuned model created: {name}:{finished.first.id[-8:]}",
        "careful",
        f"Checkpoint created at step 20 with Snapshot ID: {name}:{finished.last.id[-8:]}:ckpt-step-20",
        "Step 20/20: validation loss=1.50",
    ]
    assert told[5] == "Step 20/20: training loss=0.05"
    assert told[-2].startswith("Validating training file: file-")
    assert told[-1] == f"Created fine-tuning job: {finished.job.id}"
    assert "Fine-tuning job started" in told
    assert "Job requeued: lost" in told
    metrics = next(event for event in events if event["message"].startswith("Step 20/20: training"))
    assert (metrics["type"], metrics["data"]["step"], metrics["data"]["train_loss"]) == ("metrics", 20, 0.05)
    evaluated = next(event for event in events if "validation" in event["message"])
    assert evaluated["data"]["full_valid_loss"] == evaluated["data"]["valid_loss"] == 1.5
    assert next(e for e in events if e["message"] == "careful")["level"] == "warn"


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_events_page_without_loss_or_repetition(alpha, finished, limit):
    path = f"/fine_tuning/jobs/{finished.job.id}/events"
    whole = alpha.api.get(f"{path}?limit=1000")["data"]
    walked, after, more = [], "", True
    while more:
        page = alpha.api.get(f"{path}?limit={limit}{after}")
        walked += page["data"]
        after, more = f"&after={page['last_id']}", page["has_more"]
    assert walked == whole
    assert len({event["id"] for event in whole}) == len(whole) == 30
    alpha.api.get(f"{path}?after=ftevent-e999999-0", 400)
    alpha.api.get(f"{path}?after=nonsense", 400)


def test_models_have_slashes_and_can_be_deleted(alpha, finished):
    name = alpha.api.get(f"/fine_tuning/jobs/{finished.job.id}")["fine_tuned_model"]
    listed = alpha.api.get("/models")
    assert {alpha.model.id, name} <= {model["id"] for model in listed["data"]}
    assert alpha.api.get(f"/models/{name}")["x_job"] == finished.job.id
    missing = error_of(alpha.api.get("/models/HuggingFaceTB%2FSmolLM2-135M", 404))
    assert missing["message"] == (
        "The model `HuggingFaceTB/SmolLM2-135M` does not exist or you do not have access to it."
    )
    assert alpha.api.ask("DELETE", f"/models/{name}").json == {"id": name, "object": "model", "deleted": True}
    alpha.api.get(f"/models/{name}", 404)
    assert error_of(alpha.api.ask("DELETE", f"/models/{alpha.model.id}", 403).json)["code"] == "forbidden"


def test_a_base_model_of_one_s_own_comes_from_an_uploaded_zip(alpha, tmp_path):
    tiny_causal_lm(tmp_path)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in tmp_path.iterdir():
            archive.write(file, file.name)
    file = alpha.api.upload(zipped.getvalue(), "mine.zip", "base-model")
    model = alpha.api.post("/models", json={"file": file["id"], "title": "Mine"})
    assert (model["x_state"], model["x_title"], model["owned_by"]) == ("building", "Mine", "alpha-team")
    assert alpha.api.get(f"/models/{model['id']}") == model
    assert error_of(alpha.api.post("/models", 400, json={}))["param"] == "file"
    assert error_of(alpha.api.post("/models", 400, json={"hub": "a/b"}))["code"] == "hub_not_allowed"
    error_of(alpha.api.post("/models", 404, json={"file": "file-none"}))
    error_of(alpha.api.post("/models", 400, json={"file": alpha.chat.file_id}))


def test_a_file_is_uploaded_listed_read_in_parts_and_deleted(alpha):
    data = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
    file = alpha.api.upload(data, "requests.jsonl", "batch")
    assert (file["object"], file["bytes"], file["status"]) == ("file", len(data), "processed")
    assert alpha.api.get(f"/files/{file['id']}") == file
    assert [f["id"] for f in alpha.api.get("/files?purpose=batch")["data"]] == [file["id"]]
    oldest = alpha.api.get("/files?order=asc&limit=1")
    assert oldest["data"][0]["id"] < file["id"]
    whole = alpha.api.ask("GET", f"/files/{file['id']}/content", headers={"Accept": "application/binary"})
    assert whole.data == data
    assert 'filename="requests.jsonl"' in whole.headers["Content-Disposition"]
    part = alpha.api.ask("GET", f"/files/{file['id']}/content", 206, headers={"Range": "bytes=-4"})
    assert part.data == data[-4:]
    assert part.headers["Content-Range"] == f"bytes {len(data) - 4}-{len(data) - 1}/{len(data)}"
    assert alpha.api.ask("DELETE", f"/files/{file['id']}").json == {
        "id": file["id"],
        "object": "file",
        "deleted": True,
    }
    alpha.api.get(f"/files/{file['id']}", 404)


def test_a_training_file_becomes_a_dataset_version_and_its_import(alpha):
    data = "".join(json.dumps(row) + "\n" for row in LABELLED).encode()
    file = alpha.api.upload(data, "labels.jsonl", x_dataset="Labels")
    assert file["status"] == "uploaded"
    assert error_of(alpha.api.ask("DELETE", f"/files/{file['id']}", 409).json)["message"].startswith(
        "File is still processing"
    )
    assert alpha.api.upload(data, "labels.jsonl", x_dataset="Labels")["id"] == file["id"]


@pytest.mark.parametrize(
    ("data", "name", "fields"),
    [
        (b"", "empty.jsonl", {}),
        (b'{"a": 1}\n' * 16 + b"{oops\n", "broken.jsonl", {}),
        (b"{}\n", "rows.jsonl", {"purpose": "vision"}),
    ],
)
def test_a_bad_upload_is_a_sentence(alpha, data, name, fields):
    error = error_of(alpha.api.upload(data, name, status=400, **fields))
    assert error["message"].endswith(".")


def test_an_upload_without_its_parts_is_a_400(alpha):
    assert error_of(alpha.api.post("/files", 400, json={}))["param"] == "file"
    assert error_of(
        alpha.api.post("/files", 400, data={"purpose": "batch"}, content_type="multipart/form-data")
    )
    without = {"file": (io.BytesIO(b"{}\n"), "x.jsonl")}
    assert error_of(alpha.api.post("/files", 400, data=without))["param"] == "purpose"


def test_an_upload_over_the_limit_is_a_413(alpha, app, monkeypatch):
    monkeypatch.setitem(app.config, "MAX_CONTENT_LENGTH", 1000)
    answer = alpha.api.upload(b"x" * 2000, status=413)
    assert error_of(answer)["code"] == "too_large"


def test_a_job_waits_for_an_import_that_is_not_done(alpha, monkeypatch):
    monkeypatch.setattr("web.api_jobs.IMPORT_SECONDS", 0.2)
    data = "".join(json.dumps(row) + "\n" for row in LABELLED).encode()
    file = alpha.api.upload(data, "later.jsonl")
    job = alpha.api.post(
        "/fine_tuning/jobs",
        json={"model": alpha.encoder.id, "training_file": file["id"], "method": {"type": "classification"}},
    )
    assert job["status"] == "validating_files"
    with transaction() as db:
        assert db.exec(select(JobDependency).where(JobDependency.job_id == job["id"])).one()


def test_a_batch_names_its_model_in_its_lines(alpha):
    def request(**body):
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        return alpha.api.upload(json.dumps(line).encode() + b"\n", "in.jsonl", "batch")["id"]

    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    good = request(model=alpha.model.id, messages=[{"role": "user", "content": "hi"}])
    batch = alpha.api.post("/batches", json=asked | {"input_file_id": good, "metadata": {"a": "b"}})
    assert batch["id"].startswith("batch_")
    assert (batch["status"], batch["model"], batch["input_file_id"]) == ("validating", alpha.model.id, good)
    assert batch["errors"] is None
    assert alpha.api.get(f"/batches/{batch['id']}") == batch
    assert [b["id"] for b in alpha.api.get("/batches")["data"]] == [batch["id"]]
    assert alpha.api.post(f"/batches/{batch['id']}/cancel")["status"] == "cancelled"
    assert alpha.api.post(f"/batches/{batch['id']}/cancel")["status"] == "cancelled"
    for change, param in (
        ({"input_file_id": request()}, "body.model"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": alpha.chat.file_id}, "input_file_id"),
        ({"input_file_id": good, "endpoint": "/v1/x"}, "endpoint"),
        ({"input_file_id": good, "completion_window": "1h"}, "completion_window"),
        ({"input_file_id": good, "endpoint": "/v1/predictions"}, "endpoint"),
    ):
        status = 404 if change["input_file_id"] == "file-none" else 400
        assert error_of(alpha.api.post("/batches", status, json=asked | change))["param"] == param


def test_a_finished_batch_cannot_be_cancelled(alpha):
    with transaction() as db:
        file = a_file(db, alpha.team, purpose="batch")
        job = a_job(
            db, alpha.team, Kind.INFER, file_id=file.id, state=State.SUCCEEDED, base_model_id=alpha.model.id
        )
    answer = alpha.api.ask("POST", f"/batches/{job.id}/cancel", 409)
    assert error_of(answer.json)["message"] == "Cannot cancel a batch with status 'completed'."
    assert answer.headers["x-should-retry"] == "false"


def test_schedules_are_made_changed_and_ended(alpha):
    asked = {
        "name": "nightly",
        "cron": "0 2 * * *",
        "zone": "Europe/Berlin",
        "dataset": alpha.chat.dataset_id,
        "model": alpha.model.id,
        "hyperparameters": {"n_epochs": 1},
    }
    made = alpha.api.post("/schedules", json=asked)
    assert made["next_at"] > now().timestamp()
    assert made["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    path = f"/schedules/{made['id']}"
    assert alpha.api.get(path) == made
    changed = alpha.api.post(path, json={"active": False})
    assert (changed["active"], changed["next_at"]) == (False, None)
    assert alpha.api.get(f"{path}/runs")["data"] == []
    assert [s["id"] for s in alpha.api.get("/schedules")["data"]] == [made["id"]]
    assert alpha.api.ask("DELETE", path).json["deleted"] is True
    alpha.api.get(path, 404)
    for change, param in (
        ({"cron": "nonsense"}, "cron"),
        ({"zone": "Mars"}, "zone"),
        ({"dataset": "ds-none"}, "dataset"),
    ):
        status = 404 if param == "dataset" else 400
        assert error_of(alpha.api.post("/schedules", status, json=asked | change))["param"] == param
