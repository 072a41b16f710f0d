"""An order once more: two clicks are one job, and it is the job of whoever asked."""

import re

import pytest
from sqlmodel import col, select

from shared.db import transaction
from shared.tables import Job, State
from tests.factories import a_checkpoint, a_job, a_user
from tests.visitor import Visitor

SPEC = {"epochs": 2, "batch_size": 8, "max_length": 256, "learning_rate": 3e-4}
STATE = [{"name": "state/x", "bytes": 1, "sha256": "a"}]


@pytest.fixture
def people(alpha):
    """Two members of team Alpha."""
    with transaction() as db:
        return a_user(db, alpha.team), a_user(db, alpha.team)


@pytest.fixture
def failed(alpha, people):
    """A training of the first of them that has failed and left a checkpoint."""
    with transaction() as db:
        job = a_job(
            db,
            alpha.team,
            state=State.FAILED,
            reason_code="host_out_of_memory",
            spec=SPEC,
            created_by=people[0].id,
        )
        a_checkpoint(db, job, manifest=STATE)
    return job


def forms(visitor, job):
    """{label: (address, fields)} of the buttons on the job's page."""
    page = visitor.get(f"/jobs/{job.id}").text
    found = re.findall(r'<form method="post" action="([^"]+)">(.*?)</form>', page, re.DOTALL)
    return {
        re.sub(r"<[^>]+>", "", inside).strip(): (
            address,
            dict(re.findall(r'name="(\w+)" value="([^"]*)"', inside)),
        )
        for address, inside in found
    }


def of_the_team(alpha):
    """Its jobs, oldest first."""
    with transaction() as db:
        return db.exec(select(Job).where(Job.team_id == alpha.team.id).order_by(col(Job.id))).all()


@pytest.mark.parametrize("label", ["Retry", "Retry with half the batch (4)", "Go on from here"])
def test_two_clicks_on_a_button_are_one_job(app, alpha, people, failed, label):
    visitor = Visitor(app, people[1])
    address, fields = forms(visitor, failed)[label]
    led = [visitor.client.post(address, data=fields) for _ in range(2)]
    assert [answer.status_code for answer in led] == [303, 303]
    old, new = of_the_team(alpha)
    assert old.id == failed.id
    assert {answer.headers["Location"] for answer in led} == {f"/jobs/{new.id}"}
    address, fields = forms(visitor, failed)[label]
    visitor.client.post(address, data=fields)
    assert len(of_the_team(alpha)) == 3  # a page that was loaded again means it


@pytest.mark.parametrize("label", ["Retry", "Retry with half the batch (4)", "Go on from here"])
def test_a_retry_is_the_job_of_who_asked_for_it(app, alpha, people, failed, label):
    visitor = Visitor(app, people[1])
    address, fields = forms(visitor, failed)[label]
    visitor.client.post(address, data=fields)
    assert [job.created_by for job in of_the_team(alpha)] == [people[0].id, people[1].id]


def test_a_key_makes_one_retry_over_the_api(alpha, failed):
    path, key = f"/fine_tuning/jobs/{failed.id}/retry", {"Idempotency-Key": "once"}
    first = alpha.api.post(path, data=b"", headers=key)
    assert alpha.api.post(path, data=b"", headers=key)["id"] == first["id"]
    alpha.api.post(path, 409, json={"checkpoint": "last"}, headers=key)
    assert alpha.api.post(path, data=b"")["id"] != first["id"]
