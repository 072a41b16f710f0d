"""A worker whose process ends while a trainer of a zygote that was started anew still writes its checkpoint."""

import pytest

from shared.db import transaction
from shared.tables import Outcome, Slot, State
from tests.factories import a_team
from tests.integration.runner.orders import submitted
from tests.integration.runner.runs import again, attempts, kept, steps
from tests.integration.working import a_machine
from tests.services import until


@pytest.fixture
def passing(clean, stack, tmp_path):
    """A worker in this process that will end."""
    with a_machine(burnish_home=tmp_path) as worker:
        yield worker


def test_a_worker_that_ends_lets_a_revived_zygotes_trainer_write_its_checkpoint(passing, tiny):
    first = passing.zygote
    first.process.kill()
    until(lambda: passing.zygote is not first and passing.zygote_alive, 60, "another zygote")
    with transaction() as db:
        team = a_team(db)
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    passing.look_soon(Slot.COMPUTE)
    until(lambda: steps(job.id), 120, "a step")
    trainer = next(iter(passing.trips.values())).trainer
    terminate = trainer.terminate
    trainer.terminate = lambda: passing.stopping.wait(1.5) or terminate()  # it takes its time
    passing.stop()
    assert (again(job.id).state, attempts(job.id)[0].outcome) == (State.QUEUED, Outcome.RELEASED)
    assert kept(job.id)
