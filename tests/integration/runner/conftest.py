"""A worker in this process, a team, and a job that has trained an adapter."""

import pytest

from shared.db import transaction
from shared.tables import Slot, State
from tests.factories import a_team
from tests.integration.runner.orders import submitted
from tests.integration.runner.runs import again
from tests.integration.working import a_machine


@pytest.fixture(scope="package")
def machine(stack):
    """A worker in this process, for all files of this folder. It looks for jobs when a test says so."""
    with a_machine(retry_seconds=0.1, sweep_seconds=1000) as running:
        yield running


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
    job = again(job.id)
    assert job.state == State.SUCCEEDED, job.reason
    return job
