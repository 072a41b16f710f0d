"""What evaluations and batches need of a worker, and how long they may run: asked for like a training's."""

import json
import re

import pytest

from shared import jobs
from shared.db import transaction
from shared.tables import Job, Kind, State
from tests.factories import a_checkpoint, a_file, a_job, a_user, a_worker
from tests.visitor import Visitor

NEEDS = {"gpus": 1, "gpu_memory_gb": 24, "cpus": 4}
KEPT = {"processes": 1} | NEEDS


@pytest.fixture
def member(app, alpha):
    with transaction() as db:
        user = a_user(db, alpha.team)
    return Visitor(app, user)


def made(answer):
    assert answer.status_code == 303, re.findall('<p class="wrong".*?</p>', answer.text)
    with transaction() as db:
        return db.get_one(Job, answer.location.rsplit("/", 1)[1])


@pytest.mark.parametrize("noun", ["evaluations", "batches"])
def test_the_forms_ask_what_a_worker_must_have_and_how_long_it_may_run(alpha, member, noun):
    form = {"model": alpha.model.id, "dataset": alpha.chat.id, "recipe": "sft", "gpus": "1", "gpu_memory_gb": "24",
            "cpus": "4", "max_run_hours": "1.5"}  # fmt: skip
    empty = member.get(f"/{noun}/new").text
    assert 'id="max_run_hours"' in empty
    assert 'id="processes"' not in empty, "they are done by one process"
    wrong = member.post(f"/{noun}/new", **form | {"max_run_hours": "soon"})
    assert wrong.status_code == 422
    assert "The longest run is a number of hours" in wrong.text
    assert member.post(f"/{noun}/new", **form | {"gpus": "-1"}).status_code == 422
    job = made(member.post(f"/{noun}/new", **form))
    assert (job.resources, job.max_run_seconds) == (KEPT, 5400)
    shown = member.get(f"/jobs/{job.id}").text
    assert "It needs 1 GPU of 24 GB, 4 CPU cores" in shown or "No worker that is alive" in shown
    assert "Longest run, in hours" in shown


def asked(alpha, kind):
    """(path, body) of an order over the API."""
    if kind is Kind.EVALUATE:
        return "/evaluations", {"model": alpha.model.id, "dataset": alpha.chat.file_id}
    body = {"model": alpha.model.id, "messages": [{"role": "user", "content": "hello"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    with transaction() as db:
        file = a_file(db, alpha.team, json.dumps(line).encode(), "batch.jsonl", "batch")
    order = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return "/batches", order | {"input_file_id": file.id}


@pytest.mark.parametrize("kind", [Kind.EVALUATE, Kind.INFER])
def test_the_api_takes_and_tells_them_and_a_retry_keeps_them(alpha, kind):
    path, body = asked(alpha, kind)
    plain = alpha.api.post(path, json=body)
    assert (plain["x_resources"], plain["x_max_run_seconds"]) == ({"processes": 1}, None)
    told = alpha.api.post(path, json=body | {"resources": NEEDS, "x_max_run_seconds": 90})
    assert (told["x_resources"], told["x_max_run_seconds"]) == (KEPT, 90)
    assert alpha.api.get(f"{path}/{told['id']}")["x_resources"] == KEPT
    alpha.api.post(path, 400, json=body | {"x_max_run_seconds": 59})
    alpha.api.post(path, 400, json=body | {"resources": {"processes": 2}})
    with transaction() as db:
        job = db.get_one(Job, told["id"])
        jobs.cancel(db, job, "somebody")
        again = jobs.retry(db, job, "somebody")
        assert (again.resources, again.max_run_seconds) == (KEPT, 90)


def test_an_evaluation_goes_to_a_worker_that_has_what_it_needs(alpha):
    with transaction() as db:
        job = a_job(db, alpha.team, state=State.SUCCEEDED)
        point = a_checkpoint(db, job)
    told = alpha.api.post(
        "/evaluations", json={"model": point.id, "dataset": alpha.chat.file_id, "resources": {"cpus": 64}}
    )
    with transaction() as db:
        assert jobs.claim(db, a_worker(db, cpus=8).id, "compute") is None
        attempt = jobs.claim(db, a_worker(db, cpus=64).id, "compute")
        assert attempt
        assert attempt.job_id == told["id"]
