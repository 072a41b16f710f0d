"""The table holds every job to what the diagram of its life promises."""

from datetime import timedelta

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from shared import jobs, retention, storage
from shared.columns import now
from shared.db import transaction
from shared.promises import PROMISES
from shared.tables import Job, Kind, Outcome, State
from tests.factories import a_job, a_team, a_worker
from worker import janitor

BROKEN = [  # promise, state, what is written
    ("running_is_held", State.QUEUED, {"attempt_id": "attempt-x"}),
    ("running_is_held", State.PAUSED, {"attempt_id": "attempt-x"}),
    ("running_is_held", State.RUNNING, {"attempt_id": None}),
    ("running_is_held", State.SUCCEEDED, {"attempt_id": "attempt-x"}),
    ("end_is_timed", State.QUEUED, {"finished_at": now()}),
    ("end_is_timed", State.CANCELLED, {"finished_at": None}),
    ("attempts_are_counted", State.QUEUED, {"attempts": -1}),
    ("cancel_is_kept", State.SUCCEEDED, {"cancel_requested_at": now()}),
    ("cancel_is_kept", State.PAUSED, {"cancel_requested_at": now()}),
    ("request_is_to_a_holder", State.QUEUED, {"stop_requested_at": now()}),
    ("request_is_to_a_holder", State.PAUSED, {"pause_requested_at": now()}),
    ("pause_is_before_a_try", State.RUNNING, {"run_after": now()}),
    ("deleted_is_ended", State.RUNNING, {"deleted_at": now()}),
]


@pytest.mark.parametrize(("promise", "state", "written"), BROKEN)
def test_no_row_breaks_a_promise(db, promise, state, written):
    job = a_job(db, a_team(db), Kind.INFER, state=state)
    with pytest.raises(IntegrityError, match=promise):
        db.exec(update(Job).where(col(Job.id) == job.id).values(**written))


def test_every_promise_is_tried_and_the_migrations_hold_them_all(db):
    held = text(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'jobs'::regclass AND contype = 'c' AND conname !~ '_values$'"
    )
    assert set(db.connection().execute(held).scalars()) == set(PROMISES) == {name for name, _, _ in BROKEN}


def test_an_end_is_looked_at_though_the_job_was_looked_at_while_it_ran(clean, monkeypatch):
    with transaction() as db:
        team, worker = a_team(db), a_worker(db)
        job = a_job(db, team, Kind.INFER)
        attempt = jobs.claim(db, worker.id, "compute")
        assert attempt
        retention.swept(db, job)
    with transaction() as db:
        jobs.finish(db, attempt.lease_id, Outcome.SUCCEEDED)
    with transaction() as db:
        retention.swept(db, job)  # by a sweep that saw it run
        db.get_one(Job, job.id).finished_at = now() - timedelta(days=2)
    left = f"teams/{team.id}/jobs/{job.id}/9-lost/half"
    storage.put_bytes(left, b"half")
    monkeypatch.setattr(janitor, "now", lambda: now() + timedelta(days=2))  # what is stored has become old
    janitor.tidy()
    assert not storage.exists(left)
