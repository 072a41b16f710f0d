"""How often a job is tried again: the budget of each cause, over the real SQL."""

import pytest
from sqlalchemy import update
from sqlmodel import col

from shared import checkpoints, jobs
from shared.tables import Job, Outcome, State
from tests.factories import a_job, a_team, a_worker
from tests.integration.test_jobs import a_light_job, claimed


@pytest.fixture
def team(db):
    return a_team(db)


@pytest.fixture
def worker(db):
    return a_worker(db)


def crash(db, worker, job, step, reason_code="sigsegv"):
    """One more attempt that crashes at that step; the pause before it is passed."""
    db.exec(update(Job).where(col(Job.id) == job.id).values(run_after=jobs.clock(db)))
    attempt = claimed(db, worker.id, job.slot)
    jobs.report(db, attempt.lease_id, progress={"step": step})
    return jobs.finish(db, attempt.lease_id, Outcome.CRASHED, reason_code=reason_code, reason="It died.")


def test_a_crash_is_tried_again_after_a_pause_that_doubles(db, team, worker):
    job = a_light_job(db, team)
    pauses = []
    for step in (3, 5):
        assert crash(db, worker, job, step) == State.QUEUED
        pauses.append((job.run_after - jobs.clock(db)).total_seconds())
    assert 23 < pauses[0] < 37
    assert 47 < pauses[1] < 73
    assert jobs.claim(db, worker.id, "light") is None


def test_three_crashes_without_getting_on_end_the_job(db, team, worker):
    job = a_light_job(db, team)
    assert [crash(db, worker, job, step) for step in (3, 5, 7)] == [State.QUEUED, State.QUEUED, State.FAILED]
    assert "3 times" in job.reason
    assert job.reason_code == "sigsegv"


def test_a_new_checkpoint_gives_the_budget_back(db, team, worker):
    job = a_job(db, team)
    for step in (10, 20, 30, 40):
        attempt = claimed(db, worker.id, "compute")
        assert attempt.start_step == step - 10
        row = {"step": step, "epoch": 1.0, "metrics": {}, "adapter": True, "prefix": "x/", "manifest": []}
        checkpoints.record(db, attempt.lease_id, **row)
        jobs.report(db, attempt.lease_id, progress={"step": step + 1})
        assert jobs.finish(db, attempt.lease_id, Outcome.CRASHED, reason="It died.") == State.QUEUED
        db.exec(update(Job).where(col(Job.id) == job.id).values(run_after=jobs.clock(db)))


def test_crashes_count_also_below_a_checkpoint_that_is_damaged(db, team, worker):
    job = a_job(db, team)
    first = claimed(db, worker.id, "compute")
    row = {"step": 50, "epoch": 1.0, "metrics": {}, "adapter": True, "prefix": "x/", "manifest": []}
    checkpoints.record(db, first.lease_id, **row)
    jobs.release(db, first.lease_id, "drain")
    states = []
    for step in (11, 12, 13):
        db.exec(update(Job).where(col(Job.id) == job.id).values(run_after=jobs.clock(db)))
        attempt = claimed(db, worker.id, "compute")
        assert attempt.start_step == 50
        attempt.start_step = 10  # the newest checkpoint could not be read
        jobs.report(db, attempt.lease_id, progress={"step": step})
        states.append(jobs.finish(db, attempt.lease_id, Outcome.CRASHED, reason="It died."))
    assert states == [State.QUEUED, State.QUEUED, State.FAILED]


def test_two_crashes_at_the_same_step_are_poison(db, team, worker):
    job = a_light_job(db, team)
    assert [crash(db, worker, job, 7), crash(db, worker, job, 7)] == [State.QUEUED, State.FAILED]
    assert job.reason_code == "poison"
    assert "step 7" in job.reason


def test_two_crashes_before_the_first_step_of_their_own_are_no_poison(db, team, worker):
    job = a_job(db, team)
    attempt = claimed(db, worker.id, "compute")
    row = {"step": 10, "epoch": 1.0, "metrics": {}, "adapter": True, "prefix": "x/", "manifest": []}
    checkpoints.record(db, attempt.lease_id, **row)
    jobs.release(db, attempt.lease_id, "drain")
    assert [crash(db, worker, job, 10), crash(db, worker, job, 10)] == [State.QUEUED, State.QUEUED]
    assert crash(db, worker, job, 10) == State.FAILED
    assert "3 times" in (job.reason or "")


def test_want_of_memory_on_the_machine_is_tried_once_more(db, team, worker):
    job = a_light_job(db, team)
    assert crash(db, worker, job, 3, "host_out_of_memory") == State.QUEUED
    assert crash(db, worker, job, 5, "host_out_of_memory") == State.FAILED


def test_what_is_the_users_to_mend_is_never_tried_again(db, team, worker):
    job = a_light_job(db, team)
    attempt = claimed(db, worker.id, "light")
    told = ("out_of_memory", "Halve the batch.", "batch_size")
    code, reason, param = told
    state = jobs.finish(db, attempt.lease_id, Outcome.FAILED, reason_code=code, reason=reason, param=param)
    assert state == State.FAILED
    assert (job.reason_code, job.reason, job.reason_param) == told


def test_a_release_is_free_at_once_and_not_for_ever(db, team, worker):
    job = a_light_job(db, team)
    for _ in range(20):
        db.exec(update(Job).where(col(Job.id) == job.id).values(run_after=jobs.clock(db)))
        attempt = claimed(db, worker.id, "light")
        assert jobs.release(db, attempt.lease_id, "The worker was asked to stop.") == State.QUEUED
        assert job.attempts == 0
    db.exec(update(Job).where(col(Job.id) == job.id).values(run_after=jobs.clock(db)))
    assert jobs.release(db, claimed(db, worker.id, "light").lease_id, "again") == State.FAILED
    assert job.reason_code == "infrastructure"
