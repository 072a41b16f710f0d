"""The API over HTTP without a worker: shapes, errors, lists, idempotency."""

import json
import re

import pytest
from sqlmodel import func, select

from shared.columns import now
from shared.db import transaction
from shared.settings import settings
from shared.tables import (
    Job,
    Ready,
    State,
)
from tests.factories import (
    a_job,
    an_attempt,
    stored,
)
from tests.visitor import error_of
from web import waiting


def order(alpha, **more):
    return {"model": alpha.model.id, "training_file": alpha.chat.file_id} | more


def test_a_job_is_created_as_openai_s(alpha):
    job = alpha.api.post(
        "/fine_tuning/jobs", json=order(alpha, suffix="My Bot", seed=7, metadata={"team": "support"})
    )
    assert job["id"].startswith("ftjob-")
    assert job["object"] == "fine_tuning.job"
    assert job["status"] == "queued"
    assert (job["model"], job["training_file"]) == (alpha.model.id, alpha.chat.file_id)
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
    assert alpha.api.get(f"/fine_tuning/jobs/{job['id']}") == job


def test_a_recipe_is_named_by_its_method(alpha):
    method = {
        "type": "classification",
        "classification": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
    }
    job = alpha.api.post(
        "/fine_tuning/jobs",
        json={"model": alpha.encoder.id, "training_file": alpha.labelled.file_id, "method": method},
    )
    knobs = job["method"]["classification"]["hyperparameters"]
    assert (knobs["n_epochs"], knobs["learning_rate_multiplier"]) == (2, 0.5)
    assert job["x_columns"] == {"text": "text", "label": "label"}


def test_a_job_may_ask_for_several_processes(alpha):
    job = alpha.api.post("/fine_tuning/jobs", json=order(alpha, resources={"processes": 2}))
    assert job["x_resources"] == {"processes": 2}
    plain = alpha.api.post("/fine_tuning/jobs", json=order(alpha))
    assert plain["x_resources"] == {"processes": 1}
    error = error_of(alpha.api.post("/fine_tuning/jobs", 400, json=order(alpha, resources={"processes": 17})))
    assert error["message"] == "The processes are a whole number from 1 to 16; 17 is not."


def test_old_style_hyperparameters_and_auto_are_understood(alpha):
    job = alpha.api.post(
        "/fine_tuning/jobs", json=order(alpha, hyperparameters={"n_epochs": 1, "batch_size": "auto"})
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
        ({"resources": {"processes": 0}}, 400, "resources.processes", "invalid_value"),
        ({"resources": {"processes": "2"}}, 400, "resources.processes", "invalid_type"),
        ({"resources": {"tpus": 2}}, 400, "resources.tpus", "unknown_parameter"),
        ({"resources": {"gpus": 99}}, 400, "resources.gpus", "invalid_value"),
        ({"x_max_run_seconds": 1}, 400, "x_max_run_seconds", "invalid_value"),
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
def test_a_bad_order_names_the_field_and_stores_nothing(alpha, change, status, param, code):
    error = error_of(alpha.api.post("/fine_tuning/jobs", status, json=order(alpha) | change))
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10
    if code:
        assert (error["param"], error["code"]) == (param, code)
    with transaction() as db:
        assert db.exec(select(func.count()).select_from(Job)).one() == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000, b"\xff"]
)
def test_a_body_that_is_no_json_object_is_a_400(alpha, body):
    error = error_of(alpha.api.post("/fine_tuning/jobs", 400, data=body, content_type="application/json"))
    assert error["code"] == "invalid_json"


def test_a_missing_field_is_named_in_openai_s_words(alpha):
    error = error_of(alpha.api.post("/fine_tuning/jobs", 400, json={"model": alpha.model.id}))
    assert error["message"] == "Missing required parameter: 'training_file'."


def test_the_same_idempotency_key_is_the_same_job(alpha):
    headers = {"Idempotency-Key": "abc"}
    first = alpha.api.post("/fine_tuning/jobs", json=order(alpha), headers=headers)
    again = alpha.api.post("/fine_tuning/jobs", json=order(alpha), headers=headers)
    assert first["id"] == again["id"]
    other = alpha.api.ask("POST", "/fine_tuning/jobs", 409, json=order(alpha, seed=3), headers=headers)
    assert error_of(other.json)["code"] == "idempotency_key_reused"
    assert other.headers["x-should-retry"] == "false"
    alpha.api.post("/fine_tuning/jobs", 400, json=order(alpha), headers={"Idempotency-Key": "k" * 256})


def test_a_repeated_request_after_a_lost_answer_is_the_same_job(alpha):
    first = alpha.api.post("/fine_tuning/jobs", json=order(alpha), headers={"x-stainless-retry-count": "0"})
    other = alpha.api.post("/fine_tuning/jobs", json=order(alpha), headers={"x-stainless-retry-count": "0"})
    again = alpha.api.post("/fine_tuning/jobs", json=order(alpha), headers={"x-stainless-retry-count": "1"})
    assert first["id"] != other["id"] == again["id"]
    fresh = alpha.api.post(
        "/fine_tuning/jobs", json=order(alpha, seed=5), headers={"x-stainless-retry-count": "1"}
    )
    assert fresh["id"] not in (first["id"], other["id"])


def test_lists_page_by_age_and_filter_by_metadata(alpha):
    made = [
        alpha.api.post("/fine_tuning/jobs", json=order(alpha, metadata={"n": str(n % 2)} if n else None))[
            "id"
        ]
        for n in range(5)
    ]
    page = alpha.api.get("/fine_tuning/jobs?limit=2")
    assert [job["id"] for job in page["data"]] == made[:2:-1]
    assert (page["object"], page["has_more"]) == ("list", True)
    assert (page["first_id"], page["last_id"]) == (made[4], made[3])
    rest = alpha.api.get(f"/fine_tuning/jobs?limit=100&after={page['last_id']}")
    assert [job["id"] for job in rest["data"]] == made[2::-1]
    assert rest["has_more"] is False
    odd = alpha.api.get("/fine_tuning/jobs?metadata[n]=1")
    assert {job["id"] for job in odd["data"]} == {made[1], made[3]}
    without = alpha.api.get("/fine_tuning/jobs?metadata=null")
    assert [job["id"] for job in without["data"]] == [made[0]]
    assert alpha.api.get("/fine_tuning/jobs?metadata[n]=7") == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1000000", "after=none"])
def test_a_bad_page_is_a_400(alpha, query):
    for path in ("/files", "/fine_tuning/jobs", "/batches", "/schedules"):
        error = error_of(alpha.api.get(f"{path}?{query}", 400))
        assert error["param"] == query.split("=")[0]


def test_cancel_pause_and_resume_come_with_an_empty_body(alpha):
    job = alpha.api.post("/fine_tuning/jobs", json=order(alpha))["id"]

    def tell(verb, status=200):
        headers = {"Content-Type": "application/json"}
        return alpha.api.post(f"/fine_tuning/jobs/{job}/{verb}", status, headers=headers, data=b"")

    assert tell("pause")["status"] == "paused"
    assert tell("pause")["status"] == "paused"
    assert tell("resume")["status"] == "queued"
    assert tell("resume")["status"] == "queued"
    assert tell("cancel")["status"] == "cancelled"
    assert tell("cancel")["status"] == "cancelled"
    assert error_of(tell("pause", 400))["code"] == "job_is_final"
    assert error_of(tell("resume", 400))["code"] == "job_is_not_paused"


def test_a_cancelled_running_job_says_so_at_once(alpha):
    with transaction() as db:
        job = a_job(
            db, alpha.team, state=State.RUNNING, stage="training", progress={"step": 3, "eta_seconds": 60}
        )
        attempt = an_attempt(db, job)
        job.attempt_id = attempt.id
    before = alpha.api.get(f"/fine_tuning/jobs/{job.id}")
    assert (before["status"], before["x_state"]) == ("running", "training")
    assert 50 <= before["estimated_finish"] - now().timestamp() <= 61
    after = alpha.api.post(f"/fine_tuning/jobs/{job.id}/cancel")
    assert (after["status"], after["x_state"], after["finished_at"]) == ("cancelled", "cancelling", None)


def test_a_finished_job_cannot_be_cancelled(alpha):
    with transaction() as db:
        job = a_job(db, alpha.team, state=State.SUCCEEDED)
    error = error_of(alpha.api.post(f"/fine_tuning/jobs/{job.id}/cancel", 400))
    assert "already" in error["message"]


def test_a_failed_job_says_why(alpha):
    with transaction() as db:
        job = a_job(db, alpha.team, state=State.FAILED, reason_code="diverged", reason="The loss was NaN.")
    found = alpha.api.get(f"/fine_tuning/jobs/{job.id}")
    assert found["error"] == {"code": "diverged", "message": "The loss was NaN.", "param": None}


def test_a_job_whose_data_is_being_read_validates_files(alpha):
    with transaction() as db:
        job = a_job(db, alpha.team, dataset_version_id=alpha.chat.id)
        stored(db, alpha.chat).state = Ready.BUILDING
    assert alpha.api.get(f"/fine_tuning/jobs/{job.id}")["status"] == "validating_files"


def test_unknown_addresses_and_methods_answer_in_json(alpha):
    assert error_of(alpha.api.get("/responses", 404))["code"] == "unknown_url"
    assert error_of(alpha.api.ask("PUT", "/files", 405).json)


def test_a_database_that_is_away_is_a_503_that_may_be_repeated(alpha, monkeypatch):
    from sqlalchemy.exc import OperationalError

    def away(*_, **__):
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(waiting, "outlook", away)
    job = alpha.api.ask("POST", "/fine_tuning/jobs", 503, json=order(alpha))
    assert error_of(job.json)["code"] == "unavailable"
    assert job.headers["Retry-After"]


def test_a_fault_of_ours_tells_nothing_but_its_number(alpha, monkeypatch):
    monkeypatch.setattr("web.api_models.index", None)
    monkeypatch.setattr("shared.base_models.all_for", lambda *_: 1 / 0)
    answer = alpha.api.ask("GET", "/models", 500)
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


def test_a_deleted_job_is_gone(alpha):
    with transaction() as db:
        job = a_job(db, alpha.team, state=State.SUCCEEDED, deleted_at=now())
    alpha.api.get(f"/fine_tuning/jobs/{job.id}", 404)
    assert alpha.api.get("/fine_tuning/jobs")["data"] == []
