"""The API over HTTP without a worker: shapes, errors, lists, idempotency."""

import io
import json
import re
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlmodel import func, select

from shared import jobs
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
    now,
)
from tests.factories import (
    a_base_model,
    a_checkpoint,
    a_dataset,
    a_file,
    a_job,
    a_team,
    a_token,
    an_attempt,
    stored,
)
from web import create_app

ROWS = [{"text": f"row {n}", "label": "yes" if n % 2 else "no"} for n in range(12)]


class Api:
    """A team's client of the API in this process."""

    def __init__(self, app, token):
        self.client = app.test_client()
        self.headers = {"Authorization": f"Bearer {token}"}

    def ask(self, method, path, status=200, headers=None, **more):
        answer = self.client.open("/v1" + path, method=method, headers=self.headers | (headers or {}), **more)
        assert answer.status_code == status, answer.text
        return answer

    def get(self, path, status=200, **more):
        return self.ask("GET", path, status, **more).json

    def post(self, path, status=200, **more):
        return self.ask("POST", path, status, **more).json

    def upload(self, data, name="rows.jsonl", purpose="fine-tune", status=200, **fields):
        form = {"purpose": purpose, "file": (io.BytesIO(data), name)} | fields
        return self.post("/files", status, data=form)


@pytest.fixture
def app(clean):
    return create_app(testing=True)


@pytest.fixture
def house(app):
    with transaction() as db:
        team = a_team(db, "Alpha Team")
        return SimpleNamespace(
            api=Api(app, a_token(db, team)),
            team=team,
            chat=a_dataset(db, team),
            labelled=a_dataset(db, team, ROWS),
            model=a_base_model(db),
            encoder=a_base_model(db, head="encoder"),
        )


def order(house, **more):
    return {"model": house.model.id, "training_file": house.chat.file_id} | more


def error_of(answer):
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return answer["error"]


def test_a_job_is_created_as_openai_s(house):
    job = house.api.post(
        "/fine_tuning/jobs", json=order(house, suffix="My Bot", seed=7, metadata={"team": "support"})
    )
    assert job["id"].startswith("ftjob-")
    assert job["object"] == "fine_tuning.job"
    assert job["status"] == "queued"
    assert (job["model"], job["training_file"]) == (house.model.id, house.chat.file_id)
    assert (job["seed"], job["user_provided_suffix"]) == (7, "My Bot")
    assert job["metadata"] == {"team": "support"}
    assert job["error"] is None
    assert job["fine_tuned_model"] is None
    assert job["result_files"] == []
    assert isinstance(job["created_at"], int)
    assert job["method"]["type"] == "supervised"
    knobs = job["method"]["supervised"]["hyperparameters"]
    assert knobs["n_epochs"] == knobs["epochs"] == job["hyperparameters"]["n_epochs"]
    assert job["x_queue_position"] == 1
    assert job["x_page"] == f"{settings().public_url}/jobs/{job['id']}"
    assert house.api.get(f"/fine_tuning/jobs/{job['id']}") == job


def test_a_recipe_is_named_by_its_method(house):
    method = {
        "type": "classification",
        "classification": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
    }
    job = house.api.post(
        "/fine_tuning/jobs",
        json={"model": house.encoder.id, "training_file": house.labelled.file_id, "method": method},
    )
    knobs = job["method"]["classification"]["hyperparameters"]
    assert (knobs["n_epochs"], knobs["learning_rate_multiplier"]) == (2, 0.5)
    assert job["x_columns"] == {"text": "text", "label": "label"}


def test_old_style_hyperparameters_and_auto_are_understood(house):
    job = house.api.post(
        "/fine_tuning/jobs", json=order(house, hyperparameters={"n_epochs": 1, "batch_size": "auto"})
    )
    assert job["hyperparameters"]["n_epochs"] == 1
    assert isinstance(job["hyperparameters"]["batch_size"], int)


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"training_file": "file-none"}, 404, "training_file", "not_found"),
        ({"validation_file": "file-none"}, 404, "validation_file", "not_found"),
        ({"model": "no/such-model"}, 404, "model", "model_not_found"),
        ({"model": None}, 400, "model", "invalid_type"),
        ({"model": 7}, 400, "model", "invalid_type"),
        ({"sufix": "x"}, 400, "sufix", "unknown_parameter"),
        ({"suffix": "x" * 65}, 400, "suffix", "invalid_value"),
        ({"seed": -1}, 400, "seed", "invalid_value"),
        ({"seed": "7"}, 400, "seed", "invalid_type"),
        ({"metadata": {"a": ["b"]}}, 400, "metadata.a", "invalid_type"),
        ({"method": {"type": "magic"}}, 400, "method.type", "invalid_value"),
        ({"method": {}}, 400, "method.type", "missing_required_parameter"),
        ({"method": {"type": "supervised", "dpo": {}}}, 400, "method.dpo", "unknown_parameter"),
        ({"method": {"type": "supervised", "supervised": 3}}, 400, "method.supervised", "invalid_type"),
        ({"hyperparameters": {"n_epoch": 3}}, 400, "hyperparameters.n_epoch", "unknown_parameter"),
        ({"integrations": [{"type": "wandb"}]}, 400, "integrations", "invalid_value"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate": 1e9}}}},
            400,
            "method.supervised.hyperparameters.learning_rate",
            "invalid_value",
        ),
        ({"method": {"type": "classification"}}, 400, None, None),
    ],
)
def test_a_bad_order_names_the_field_and_stores_nothing(house, change, status, param, code):
    error = error_of(house.api.post("/fine_tuning/jobs", status, json=order(house) | change))
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10
    if code:
        assert (error["param"], error["code"]) == (param, code)
    with transaction() as db:
        assert db.exec(select(func.count()).select_from(Job)).one() == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000, b"\xff"]
)
def test_a_body_that_is_no_json_object_is_a_400(house, body):
    error = error_of(house.api.post("/fine_tuning/jobs", 400, data=body, content_type="application/json"))
    assert error["code"] == "invalid_json"


def test_a_missing_field_is_named_in_openai_s_words(house):
    error = error_of(house.api.post("/fine_tuning/jobs", 400, json={"model": house.model.id}))
    assert error["message"] == "Missing required parameter: 'training_file'."


def test_the_same_idempotency_key_is_the_same_job(house):
    headers = {"Idempotency-Key": "abc"}
    first = house.api.post("/fine_tuning/jobs", json=order(house), headers=headers)
    again = house.api.post("/fine_tuning/jobs", json=order(house), headers=headers)
    assert first["id"] == again["id"]
    other = house.api.ask("POST", "/fine_tuning/jobs", 409, json=order(house, seed=3), headers=headers)
    assert error_of(other.json)["code"] == "idempotency_key_reused"
    assert other.headers["x-should-retry"] == "false"
    house.api.post("/fine_tuning/jobs", 400, json=order(house), headers={"Idempotency-Key": "k" * 256})


def test_a_repeated_request_after_a_lost_answer_is_the_same_job(house):
    first = house.api.post("/fine_tuning/jobs", json=order(house), headers={"x-stainless-retry-count": "0"})
    other = house.api.post("/fine_tuning/jobs", json=order(house), headers={"x-stainless-retry-count": "0"})
    again = house.api.post("/fine_tuning/jobs", json=order(house), headers={"x-stainless-retry-count": "1"})
    assert first["id"] != other["id"] == again["id"]
    fresh = house.api.post(
        "/fine_tuning/jobs", json=order(house, seed=5), headers={"x-stainless-retry-count": "1"}
    )
    assert fresh["id"] not in (first["id"], other["id"])


def test_lists_page_by_age_and_filter_by_metadata(house):
    made = [
        house.api.post("/fine_tuning/jobs", json=order(house, metadata={"n": str(n % 2)} if n else None))[
            "id"
        ]
        for n in range(5)
    ]
    page = house.api.get("/fine_tuning/jobs?limit=2")
    assert [job["id"] for job in page["data"]] == made[:2:-1]
    assert (page["object"], page["has_more"]) == ("list", True)
    assert (page["first_id"], page["last_id"]) == (made[4], made[3])
    rest = house.api.get(f"/fine_tuning/jobs?limit=100&after={page['last_id']}")
    assert [job["id"] for job in rest["data"]] == made[2::-1]
    assert rest["has_more"] is False
    odd = house.api.get("/fine_tuning/jobs?metadata[n]=1")
    assert {job["id"] for job in odd["data"]} == {made[1], made[3]}
    without = house.api.get("/fine_tuning/jobs?metadata=null")
    assert [job["id"] for job in without["data"]] == [made[0]]
    assert house.api.get("/fine_tuning/jobs?metadata[n]=7") == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1000000", "after=none"])
def test_a_bad_page_is_a_400(house, query):
    for path in ("/files", "/fine_tuning/jobs", "/batches", "/schedules"):
        error = error_of(house.api.get(f"{path}?{query}", 400))
        assert error["param"] == query.split("=")[0]


def test_cancel_pause_and_resume_come_with_an_empty_body(house):
    job = house.api.post("/fine_tuning/jobs", json=order(house))["id"]

    def tell(verb, status=200):
        headers = {"Content-Type": "application/json"}
        return house.api.post(f"/fine_tuning/jobs/{job}/{verb}", status, headers=headers, data=b"")

    assert tell("pause")["status"] == "paused"
    assert tell("pause")["status"] == "paused"
    assert tell("resume")["status"] == "queued"
    assert tell("resume")["status"] == "queued"
    assert tell("cancel")["status"] == "cancelled"
    assert tell("cancel")["status"] == "cancelled"
    assert error_of(tell("pause", 400))["code"] == "job_is_final"
    assert error_of(tell("resume", 400))["code"] == "job_is_not_paused"


def test_a_cancelled_running_job_says_so_at_once(house):
    with transaction() as db:
        job = a_job(
            db, house.team, state=State.RUNNING, stage="training", progress={"step": 3, "eta_seconds": 60}
        )
        attempt = an_attempt(db, job)
        job.attempt_id = attempt.id
    before = house.api.get(f"/fine_tuning/jobs/{job.id}")
    assert (before["status"], before["x_state"]) == ("running", "training")
    assert 50 <= before["estimated_finish"] - now().timestamp() <= 61
    after = house.api.post(f"/fine_tuning/jobs/{job.id}/cancel")
    assert (after["status"], after["x_state"], after["finished_at"]) == ("cancelled", "cancelling", None)


def test_a_finished_job_cannot_be_cancelled(house):
    with transaction() as db:
        job = a_job(db, house.team, state=State.SUCCEEDED)
    error = error_of(house.api.post(f"/fine_tuning/jobs/{job.id}/cancel", 400))
    assert "already" in error["message"]


def test_a_failed_job_says_why(house):
    with transaction() as db:
        job = a_job(db, house.team, state=State.FAILED, reason_code="diverged", reason="The loss was NaN.")
    found = house.api.get(f"/fine_tuning/jobs/{job.id}")
    assert found["error"] == {"code": "diverged", "message": "The loss was NaN.", "param": None}


def test_a_job_whose_data_is_being_read_validates_files(house):
    with transaction() as db:
        job = a_job(db, house.team, dataset_version_id=house.chat.id)
        stored(db, house.chat).state = Ready.BUILDING
    assert house.api.get(f"/fine_tuning/jobs/{job.id}")["status"] == "validating_files"


@pytest.fixture
def finished(house, tmp_path):
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
            house.team,
            base_model_id=house.model.id,
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
                "team_id": house.team.id,
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
            db.add(Event(job_id=job.id, lease_id=lease, team_id=house.team.id, seq=seq, at=at + timedelta(seconds=seq),
                         step=20, type=kind, data=data))  # fmt: skip
            db.flush()
        job.state, job.best_checkpoint_id = State.SUCCEEDED, first.id
        db.add(Transition(job_id=job.id, state=State.SUCCEEDED, actor="x", at=at + timedelta(seconds=60)))
    return SimpleNamespace(job=job, first=first, last=last)


def test_checkpoints_list_the_last_step_first_and_the_best_names_the_model(house, finished):
    page = house.api.get(f"/fine_tuning/jobs/{finished.job.id}/checkpoints")
    assert [c["step_number"] for c in page["data"]] == [20, 10]
    last, best = page["data"]
    assert best["metrics"] == {"step": 10, "valid_loss": 1.0, "train_loss": 0.9}
    job = house.api.get(f"/fine_tuning/jobs/{finished.job.id}")
    name = f"ft:{house.model.id}:alpha-team:bot:{finished.first.id[-8:]}"
    assert job["fine_tuned_model"] == name == best["fine_tuned_model_checkpoint"]
    assert last["fine_tuned_model_checkpoint"].endswith(":ckpt-step-20")
    assert (best["x_best"], last["x_best"]) == (True, False)
    one = house.api.get(f"/fine_tuning/jobs/{finished.job.id}/checkpoints?limit=1")
    assert one["has_more"] is True
    rest = house.api.get(f"/fine_tuning/jobs/{finished.job.id}/checkpoints?after={one['last_id']}")
    assert [c["id"] for c in rest["data"]] == [finished.first.id]


def test_a_checkpoint_s_files_are_linked_without_its_state(house, finished):
    base = f"/fine_tuning/jobs/{finished.job.id}/checkpoints"
    files = house.api.get(f"{base}/{finished.last.id}/files")
    assert files["x_status"] == "ready"
    assert [f["name"] for f in files["data"]] == ["adapter_config.json", "adapter_model.safetensors"]
    link = files["data"][1]["url"]
    answer = house.api.client.get(link.removeprefix(settings().public_url))
    assert answer.data == b"weights"
    part = house.api.client.get(link.removeprefix(settings().public_url), headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.data) == (206, b"igh")
    name = house.api.get(base)["data"][0]["fine_tuned_model_checkpoint"]
    assert house.api.get(f"{base}/{name}/files")["data"][0]["sha256"] == files["data"][0]["sha256"]
    house.api.get(f"{base}/ftckpt_none/files", 404)
    house.api.get(f"{base}/{finished.last.id}/files?form=gguf", 400)


def test_a_merged_model_is_built_when_first_asked_for(house, finished):
    path = f"/fine_tuning/jobs/{finished.job.id}/checkpoints/{finished.last.id}/files?form=merged"
    for _ in range(3):
        assert house.api.get(path) == {
            "object": "list", "data": [], "has_more": False, "x_status": "building", "x_error": None, "x_zip": None,
        }  # fmt: skip
    with transaction() as db:
        [export] = db.exec(select(Job).where(Job.kind == Kind.EXPORT)).all()
        artifact = db.exec(select(Artifact).where(Artifact.job_id == export.id)).one()
        artifact.state, artifact.error = Ready.FAILED, "No space."
    assert house.api.get(path)["x_status"] == "failed"
    assert house.api.get(path)["x_error"] == "No space."


def test_a_viewer_s_token_looks_and_builds_nothing(house, finished, app):
    with transaction() as db:
        viewer = Api(app, a_token(db, house.team, Role.VIEWER))
    base = f"/fine_tuning/jobs/{finished.job.id}/checkpoints/{finished.last.id}/files"
    assert viewer.get(base)["x_status"] == "ready"
    assert error_of(viewer.get(base + "?form=merged", 403))["code"] == "role_too_low"


def test_events_tell_the_story_in_openai_s_words(house, finished):
    events = house.api.get(f"/fine_tuning/jobs/{finished.job.id}/events?limit=1000")["data"]
    told = [event["message"] for event in events]
    name = f"ft:{house.model.id}:alpha-team:bot"
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
def test_events_page_without_loss_or_repetition(house, finished, limit):
    path = f"/fine_tuning/jobs/{finished.job.id}/events"
    whole = house.api.get(f"{path}?limit=1000")["data"]
    walked, after, more = [], "", True
    while more:
        page = house.api.get(f"{path}?limit={limit}{after}")
        walked += page["data"]
        after, more = f"&after={page['last_id']}", page["has_more"]
    assert walked == whole
    assert len({event["id"] for event in whole}) == len(whole) == 30
    house.api.get(f"{path}?after=ftevent-e999999-0", 400)
    house.api.get(f"{path}?after=nonsense", 400)


def test_models_have_slashes_and_can_be_deleted(house, finished):
    name = house.api.get(f"/fine_tuning/jobs/{finished.job.id}")["fine_tuned_model"]
    listed = house.api.get("/models")
    assert {house.model.id, name} <= {model["id"] for model in listed["data"]}
    assert house.api.get(f"/models/{name}")["x_job"] == finished.job.id
    missing = error_of(house.api.get("/models/HuggingFaceTB%2FSmolLM2-135M", 404))
    assert missing["message"] == (
        "The model `HuggingFaceTB/SmolLM2-135M` does not exist or you do not have access to it."
    )
    assert house.api.ask("DELETE", f"/models/{name}").json == {"id": name, "object": "model", "deleted": True}
    house.api.get(f"/models/{name}", 404)
    assert error_of(house.api.ask("DELETE", f"/models/{house.model.id}", 403).json)["code"] == "forbidden"


def test_a_file_is_uploaded_listed_read_in_parts_and_deleted(house):
    data = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
    file = house.api.upload(data, "requests.jsonl", "batch")
    assert (file["object"], file["bytes"], file["status"]) == ("file", len(data), "processed")
    assert house.api.get(f"/files/{file['id']}") == file
    assert [f["id"] for f in house.api.get("/files?purpose=batch")["data"]] == [file["id"]]
    oldest = house.api.get("/files?order=asc&limit=1")
    assert oldest["data"][0]["id"] < file["id"]
    whole = house.api.ask("GET", f"/files/{file['id']}/content", headers={"Accept": "application/binary"})
    assert whole.data == data
    assert 'filename="requests.jsonl"' in whole.headers["Content-Disposition"]
    part = house.api.ask("GET", f"/files/{file['id']}/content", 206, headers={"Range": "bytes=-4"})
    assert part.data == data[-4:]
    assert part.headers["Content-Range"] == f"bytes {len(data) - 4}-{len(data) - 1}/{len(data)}"
    assert house.api.ask("DELETE", f"/files/{file['id']}").json == {
        "id": file["id"],
        "object": "file",
        "deleted": True,
    }
    house.api.get(f"/files/{file['id']}", 404)


def test_a_training_file_becomes_a_dataset_version_and_its_import(house):
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    file = house.api.upload(data, "labels.jsonl", x_dataset="Labels")
    assert file["status"] == "uploaded"
    assert error_of(house.api.ask("DELETE", f"/files/{file['id']}", 409).json)["message"].startswith(
        "File is still processing"
    )
    assert house.api.upload(data, "labels.jsonl", x_dataset="Labels")["id"] == file["id"]


@pytest.mark.parametrize(
    ("data", "name", "fields"),
    [
        (b"", "empty.jsonl", {}),
        (b'{"a": 1}\n' * 16 + b"{oops\n", "broken.jsonl", {}),
        (b"{}\n", "rows.jsonl", {"purpose": "vision"}),
    ],
)
def test_a_bad_upload_is_a_sentence(house, data, name, fields):
    error = error_of(house.api.upload(data, name, status=400, **fields))
    assert error["message"].endswith(".")


def test_an_upload_without_its_parts_is_a_400(house):
    assert error_of(house.api.post("/files", 400, json={}))["param"] == "file"
    assert error_of(
        house.api.post("/files", 400, data={"purpose": "batch"}, content_type="multipart/form-data")
    )
    without = {"file": (io.BytesIO(b"{}\n"), "x.jsonl")}
    assert error_of(house.api.post("/files", 400, data=without))["param"] == "purpose"


def test_an_upload_over_the_limit_is_a_413(house, app):
    app.config["MAX_CONTENT_LENGTH"] = 1000
    answer = house.api.upload(b"x" * 2000, status=413)
    assert error_of(answer)["code"] == "too_large"


def test_a_job_waits_for_an_import_that_is_not_done(house, monkeypatch):
    monkeypatch.setattr("web.api_jobs.IMPORT_SECONDS", 0.2)
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    file = house.api.upload(data, "later.jsonl")
    job = house.api.post(
        "/fine_tuning/jobs",
        json={"model": house.encoder.id, "training_file": file["id"], "method": {"type": "classification"}},
    )
    assert job["status"] == "validating_files"
    with transaction() as db:
        assert db.exec(select(JobDependency).where(JobDependency.job_id == job["id"])).one()


def test_a_batch_names_its_model_in_its_lines(house):
    def request(**body):
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        return house.api.upload(json.dumps(line).encode() + b"\n", "in.jsonl", "batch")["id"]

    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    good = request(model=house.model.id, messages=[{"role": "user", "content": "hi"}])
    batch = house.api.post("/batches", json=asked | {"input_file_id": good, "metadata": {"a": "b"}})
    assert batch["id"].startswith("batch_")
    assert (batch["status"], batch["model"], batch["input_file_id"]) == ("validating", house.model.id, good)
    assert batch["errors"] is None
    assert house.api.get(f"/batches/{batch['id']}") == batch
    assert [b["id"] for b in house.api.get("/batches")["data"]] == [batch["id"]]
    assert house.api.post(f"/batches/{batch['id']}/cancel")["status"] == "cancelled"
    assert house.api.post(f"/batches/{batch['id']}/cancel")["status"] == "cancelled"
    for change, param in (
        ({"input_file_id": request()}, "body.model"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": house.chat.file_id}, "input_file_id"),
        ({"input_file_id": good, "endpoint": "/v1/x"}, "endpoint"),
        ({"input_file_id": good, "completion_window": "1h"}, "completion_window"),
        ({"input_file_id": good, "endpoint": "/v1/predictions"}, "endpoint"),
    ):
        status = 404 if change["input_file_id"] == "file-none" else 400
        assert error_of(house.api.post("/batches", status, json=asked | change))["param"] == param


def test_a_finished_batch_cannot_be_cancelled(house):
    with transaction() as db:
        file = a_file(db, house.team, purpose="batch")
        job = a_job(
            db, house.team, Kind.INFER, file_id=file.id, state=State.SUCCEEDED, base_model_id=house.model.id
        )
    answer = house.api.ask("POST", f"/batches/{job.id}/cancel", 409)
    assert error_of(answer.json)["message"] == "Cannot cancel a batch with status 'completed'."
    assert answer.headers["x-should-retry"] == "false"


def test_schedules_are_made_changed_and_ended(house):
    asked = {
        "name": "nightly",
        "cron": "0 2 * * *",
        "zone": "Europe/Berlin",
        "dataset": house.chat.dataset_id,
        "model": house.model.id,
        "hyperparameters": {"n_epochs": 1},
    }
    made = house.api.post("/schedules", json=asked)
    assert made["next_at"] > now().timestamp()
    assert made["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    path = f"/schedules/{made['id']}"
    assert house.api.get(path) == made
    changed = house.api.post(path, json={"active": False})
    assert (changed["active"], changed["next_at"]) == (False, None)
    assert house.api.get(f"{path}/runs")["data"] == []
    assert [s["id"] for s in house.api.get("/schedules")["data"]] == [made["id"]]
    assert house.api.ask("DELETE", path).json["deleted"] is True
    house.api.get(path, 404)
    for change, param in (
        ({"cron": "nonsense"}, "cron"),
        ({"zone": "Mars"}, "zone"),
        ({"dataset": "ds-none"}, "dataset"),
    ):
        status = 404 if param == "dataset" else 400
        assert error_of(house.api.post("/schedules", status, json=asked | change))["param"] == param


def test_unknown_addresses_and_methods_answer_in_json(house):
    assert error_of(house.api.get("/responses", 404))["code"] == "unknown_url"
    assert error_of(house.api.ask("PUT", "/files", 405).json)


def test_a_database_that_is_away_is_a_503_that_may_be_repeated(house, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def away(*_, **__):
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(jobs, "position", away)
    job = house.api.ask("POST", "/fine_tuning/jobs", 503, json=order(house))
    assert error_of(job.json)["code"] == "unavailable"
    assert job.headers["Retry-After"]


def test_a_fault_of_ours_tells_nothing_but_its_number(house, monkeypatch):
    monkeypatch.setattr("web.api_models.index", None)
    monkeypatch.setattr("shared.base_models.all_for", lambda *_: 1 / 0)
    answer = house.api.ask("GET", "/models", 500)
    assert error_of(answer.json)["type"] == "server_error"
    assert "ZeroDivision" not in answer.text
    assert answer.headers["x-request-id"]


def test_every_operation_is_described_with_shapes_that_exist(app):
    described = app.test_client().get("/openapi.json").json
    assert described["openapi"] == "3.1.0"
    asked = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)))
    assert asked <= set(described["components"]["schemas"])
    knobs = json.dumps(described["components"]["schemas"]["CreateJob"])
    for name in ("lora_rank", "n_epochs", "classification", "supervised"):
        assert name in knobs
    page = app.test_client().get("/docs").text
    for path in described["paths"]:
        assert path in page
    assert "<script>" not in page


def test_a_deleted_job_is_gone(house):
    with transaction() as db:
        job = a_job(db, house.team, state=State.SUCCEEDED, deleted_at=now())
    house.api.get(f"/fine_tuning/jobs/{job.id}", 404)
    assert house.api.get("/fine_tuning/jobs")["data"] == []
