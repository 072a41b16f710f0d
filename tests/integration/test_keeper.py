"""What a worker's keeper sees to when the store, or whoever asks for sweeps, is away."""

import socket

import pytest

from shared import jobs
from shared.db import transaction
from shared.settings import settings
from shared.tables import Job, Kind, Slot, State, Worker
from tests.factories import a_job, a_team, a_user
from tests.integration.runner.runs import again
from tests.services import until
from tests.visitor import Visitor
from web import create_app
from worker.machine import Machine


@pytest.fixture(scope="module")
def running(stack):
    """A worker in this process, whom nobody sends a message."""
    settings().heartbeat_seconds, settings().lease_seconds, settings().sweep_seconds = 0.3, 1, 1000
    worker = Machine()
    worker.start()
    yield worker
    worker.stop()
    assert worker.zygote
    worker.zygote.stop()
    settings.cache_clear()


@pytest.fixture
def machine(running, clean):
    running.register()
    return running


def row_of(machine):
    with transaction() as db:
        return db.get_one(Worker, machine.id)


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
        page = Visitor(create_app(testing=True), person).get("/queue").text
        assert "the store does not take what is put there" in page
    until(lambda: machine.ready, 15, "it claims again by itself")
    until(lambda: row_of(machine).note == "", 15, "it says so")
