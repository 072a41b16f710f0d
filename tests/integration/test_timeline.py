"""The timeline of a job page: who did what and why, and what every attempt cost."""

import pytest

from shared import checkpoints, jobs
from shared.db import transaction
from shared.tables import Event, EventType, Job, Outcome, Schedule, State
from tests.factories import a_dataset, a_job, a_team, a_user, a_worker
from tests.visitor import Visitor, the_web
from web import timeline


@pytest.fixture
def team(clean):
    with transaction() as db:
        return a_team(db)


def claimed(db, worker):
    """The next attempt; there is one."""
    attempt = jobs.claim(db, worker.id, "compute")
    assert attempt is not None
    return attempt


def tried(db, worker, reached, stored=None):
    """An attempt that reaches that step, may store a checkpoint, and is then given back."""
    attempt = claimed(db, worker)
    db.add(Event(job_id=attempt.job_id, lease_id=attempt.lease_id, seq=1, team_id=attempt.team_id,
                 type=EventType.STEP, step=reached))  # fmt: skip
    if stored:
        checkpoints.record(db, attempt.lease_id, step=stored, epoch=1.0, metrics={}, adapter=False, prefix="x/", manifest=[])  # fmt: skip
    jobs.release(db, attempt.lease_id, "The worker was asked to stop.")


def test_every_change_tells_who_made_it_and_why(team):
    with transaction() as db:
        person, worker = a_user(db, team, email="ann@example.com"), a_worker(db, host="gpu-7")
        job = a_job(db, team)
        jobs.note(db, job, person.id, "submitted")
        attempt = claimed(db, worker)
        jobs.close(
            db, job, Outcome.LOST, reason_code="lost", reason="The worker went silent.", actor="reaper"
        )
        assert attempt.outcome == Outcome.LOST
        jobs.cancel(db, job, person.id)
    page = Visitor(the_web(), person).get(f"/jobs/{job.id}").text
    told = page[page.index('id="timeline"') :]
    expected = ["submitted", "by ann@example.com", "attempt 1", "by the worker on gpu-7", "The worker went silent",
                "by the sweeper", "It was cancelled", "by ann@example.com"]  # fmt: skip
    places = [told.index(words) for words in expected[:-1]]
    assert places == sorted(places)
    assert told.index(expected[-1], places[-1]) > places[-1]
    assert told.count("<time datetime=") >= 4


def test_a_schedule_is_named(team):
    with transaction() as db:
        person, version = a_user(db, team), a_dataset(db, team)
        schedule = Schedule(team_id=team.id, name="nightly", cron="0 2 * * *", zone="UTC",
                            dataset_id=version.dataset_id, order={}, created_by=person.id)  # fmt: skip
        db.add(schedule)
        db.flush()
        job = a_job(db, team, schedule_id=schedule.id)
        jobs.note(db, job, "schedule", "submitted")
        assert [line.who for line in timeline.lines(db, job)] == ["the schedule «nightly»"]


def test_an_attempt_cost_the_steps_that_the_next_one_did_again(team):
    with transaction() as db:
        person, worker = a_user(db, team), a_worker(db)
        job = a_job(db, team)
        tried(db, worker, 1000, stored=800)
        tried(db, worker, 2500)
        attempt = claimed(db, worker)
        assert attempt.start_step == 800
        costs = [(one.attempt.start_step, one.reached, one.repeated) for one in timeline.tries(db, job)]
        assert costs == [(0, 1000, 200), (800, 2500, 1700), (800, 800, None)]
    page = Visitor(the_web(), person).get(f"/jobs/{job.id}").text
    assert "1,900 steps done again" in page
    assert "800 to 2,500" in page
    with transaction() as db:
        assert db.get_one(Job, job.id).state == State.RUNNING
