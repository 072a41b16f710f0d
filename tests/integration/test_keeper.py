"""What a worker's keeper sees to when the store, or whoever asks for sweeps, is away."""

import socket
import time
from datetime import timedelta

import pytest

from shared import jobs, workers
from shared.columns import now
from shared.db import transaction
from shared.settings import settings
from shared.tables import Job, Kind, Outcome, Slot, State, Worker
from tests.factories import a_job, a_team, a_user, a_worker, an_attempt
from tests.integration.runner.runs import again, attempts
from tests.integration.working import a_machine
from tests.services import until
from tests.visitor import Visitor, the_web
from worker.rounds import ROUNDS


@pytest.fixture(scope="module")
def running(stack):
    """A worker in this process, whom nobody sends a message."""
    with a_machine(lease_seconds=1, sweep_seconds=1000) as worker:
        yield worker


@pytest.fixture
def machine(running, clean):
    running.register()
    return running


def row_of(machine):
    with transaction() as db:
        return db.get_one(Worker, machine.id)


def test_a_dead_worker_s_job_is_taken_over_although_nobody_asks_for_sweeps(machine, monkeypatch):
    with transaction() as db:
        job = a_job(db, a_team(db), state=State.RUNNING, resources={"processes": 1, "gpus": 8})
        held = an_attempt(
            db, job, a_worker(db), slots=["compute"], lease_expires_at=now() - timedelta(seconds=30)
        )
        job.attempt_id = held.id
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(settings(), "sweep_seconds", 0.3)
        until(lambda: again(job.id).state == State.QUEUED, 20, "the job is taken back")
    assert attempts(job.id)[0].outcome == Outcome.LOST
    assert ROUNDS.thread
    ROUNDS.thread.join(20)


def test_the_rounds_fall_to_the_oldest_worker_that_lives(machine, monkeypatch):
    with transaction() as db:
        older = a_worker(db, id="worker-0", heartbeat_at=now() + timedelta(hours=1))
        job = a_job(db, a_team(db), state=State.RUNNING, resources={"processes": 1, "gpus": 8})
        expired = {"lease_expires_at": now() - timedelta(seconds=30), "started_at": now()}
        job.attempt_id = an_attempt(db, job, a_worker(db), slots=["compute"], **expired).id
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(settings(), "sweep_seconds", 0.3)
        time.sleep(4)
        assert again(job.id).state == State.RUNNING, "that one would have taken it back"
        with transaction() as db:
            workers.stop(db, older.id)
        until(lambda: again(job.id).state == State.QUEUED, 20, "the job is taken back")


def test_a_store_that_is_slow_for_a_moment_stops_no_worker(machine, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as meanwhile:
        meanwhile.setattr(settings(), "s3_endpoint", f"http://127.0.0.1:{silent.getsockname()[1]}")
        until(lambda: machine.shelf.failing, 15, "the store does not take it")
        time.sleep(2)  # several more signs of life
        assert machine.ready
    until(lambda: machine.shelf.failing is None, 15, "the store takes it")


def test_while_the_store_is_silent_nothing_is_claimed_and_the_queue_page_says_why(machine, monkeypatch):
    with transaction() as db:
        team = a_team(db)
        person = a_user(db, team)
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as meanwhile:
        meanwhile.setattr(settings(), "s3_endpoint", f"http://127.0.0.1:{silent.getsockname()[1]}")
        until(lambda: row_of(machine).note, 15, "the worker says that it claims nothing")
        with transaction() as db:
            job = a_job(db, team, Kind.INFER)
        assert machine.look(Slot.COMPUTE)  # a slot was free
        assert again(job.id).state == State.QUEUED
        with transaction() as db:
            jobs.cancel(db, db.get_one(Job, job.id), "tests")
        page = Visitor(the_web(), person).get("/queue").text
        assert "the store does not take what is put there" in page
    until(lambda: machine.ready, 15, "it claims again by itself")
    until(lambda: row_of(machine).note == "", 15, "it says so")
