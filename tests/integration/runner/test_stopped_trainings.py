"""Trainings that end before their time: cancelled, stopped, drained, too long, frozen, lost; and what is kept."""

import os
import signal

from shared import jobs, workers
from shared.db import transaction
from shared.settings import settings
from shared.tables import Job, Outcome, Slot, State
from tests.integration.runner.orders import submitted
from tests.integration.runner.runs import again, attempts, in_background, kept, steps, trainer_pid, weights
from tests.services import until
from worker import runner


def test_a_cancelled_training_keeps_its_last_checkpoint(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        jobs.cancel(db, job, "somebody")
    thread.join(60)
    assert again(job.id).state == State.CANCELLED
    assert kept(job.id)[0].step < again(job.id).progress["total_steps"]


def test_a_drained_worker_gives_its_job_back_with_a_checkpoint(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    machine.draining.set()
    try:
        thread.join(60)
    finally:
        machine.draining.clear()
    job = again(job.id)
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    assert attempts(job.id)[0].outcome == Outcome.RELEASED
    assert kept(job.id)


def test_a_worker_that_is_drained_from_outside_gives_its_job_back_until_it_takes_jobs_again(
    team, tiny, machine
):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        workers.drain(db, machine.id)
    thread.join(60)
    assert (again(job.id).state, again(job.id).attempts) == (State.QUEUED, 0)
    assert kept(job.id)
    machine.look(Slot.COMPUTE)
    assert len(attempts(job.id)) == 1
    with transaction() as db:
        workers.undrain(db, machine.id)
        jobs.cancel(db, job, "somebody")


def test_a_training_that_is_stopped_early_succeeds_with_scores_and_its_checkpoint(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1, evaluations=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        jobs.stop(db, job, "somebody")
    thread.join(60)
    job = again(job.id)
    assert (job.state, job.reason_code) == (State.SUCCEEDED, "stopped_early")
    (last,) = kept(job.id)
    assert 0 < last.step == job.progress["step"] < job.progress["total_steps"]
    assert job.best_checkpoint_id == last.id
    assert set(job.scores["tuned"]) == set(job.scores["base"]) != set()


def test_a_training_that_takes_too_long_fails_and_another_goes_on_from_its_checkpoint(team, tiny, machine):
    knobs = {"epochs": 40, "checkpoints": 1, "evaluations": 2}
    undisturbed = submitted(team, tiny, **knobs)
    machine.look(Slot.COMPUTE)
    job = submitted(team, tiny, **knobs)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        db.get_one(Job, job.id).max_run_seconds = 0
    thread.join(60)
    failed = again(job.id)
    assert (failed.state, failed.reason_code) == (State.FAILED, "max_run_time")
    assert "took longer than" in failed.reason
    (last,) = kept(job.id)
    with transaction() as db:
        db.get_one(Job, job.id).max_run_seconds = None
        follows = jobs.retry(db, db.get_one(Job, job.id), "somebody", last.id)
    machine.look(Slot.COMPUTE)
    assert again(follows.id).state == State.SUCCEEDED
    assert attempts(follows.id)[0].start_step == last.step
    assert min(steps(follows.id)) == last.step + 1
    assert weights(follows.id) == weights(undisturbed.id) != {}


def test_a_frozen_trainer_is_ended_and_tried_again(team, tiny, machine, monkeypatch):
    monkeypatch.setattr(settings(), "hang_seconds", 1.0)
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.5)
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: len(steps(job.id)) > 2, what="steps")
    os.kill(trainer_pid(machine), signal.SIGSTOP)
    until(lambda: attempts(job.id)[0].ended_at, 60, "the attempt is ended")
    first = attempts(job.id)[0]
    assert (first.outcome, first.reason_code) == (Outcome.CRASHED, "hang")
    monkeypatch.setattr(settings(), "hang_seconds", 600.0)
    with transaction() as db:
        jobs.cancel(db, job, "somebody")
    thread.join(60)


def test_a_lost_lease_stops_the_trainer_and_nothing_of_it_counts(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        row = jobs.held_job(db, attempts(job.id)[0].lease_id)
        assert row
        jobs.close(db, row, Outcome.LOST, actor="reaper", reason="a test")
        row.run_after = jobs.clock(db).replace(year=2100)
    thread.join(60)
    assert again(job.id).state == State.QUEUED
    assert kept(job.id) == []
    assert list(machine.attempts.iterdir()) == []
