"""A worker in this process, a team, and a job that has trained an adapter."""

import pytest

from shared.db import transaction
from shared.settings import settings
from shared.tables import Slot
from tests.factories import a_team
from tests.integration.runner.orders import submitted
from tests.integration.runner.runs import again
from worker.machine import Machine


@pytest.fixture(scope="module")
def machine(stack):
    """A worker in this process."""
    settings().heartbeat_seconds, settings().retry_seconds, settings().trainer_threads = 0.3, 0.1, 1
    running = Machine()
    running.start()
    yield running
    running.stop()
    assert running.zygote
    running.zygote.stop()
    settings.cache_clear()


@pytest.fixture
def team(clean, machine):
    """The worker's row is there again after the tables were emptied."""
    machine.register()
    with transaction() as db:
        return a_team(db)


@pytest.fixture
def trained(team, tiny, machine):
    """A job that has trained an adapter."""
    job = submitted(team, tiny, epochs=1, checkpoints=1)
    machine.look(Slot.COMPUTE)
    return again(job.id)
