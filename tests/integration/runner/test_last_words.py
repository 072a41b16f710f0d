"""A worker whose process ends while a trainer of a zygote that was started anew still writes its checkpoint."""

import pytest

from shared.db import transaction
from shared.settings import settings
from shared.tables import Outcome, Slot, State
from tests.factories import a_team
from tests.integration.runner.orders import submitted
from tests.integration.runner.runs import again, attempts, kept, steps
from tests.services import until
from worker.machine import Machine


@pytest.fixture
def passing(clean, stack, tmp_path, monkeypatch):
    """A worker in this process that will end."""
    settings().heartbeat_seconds, settings().trainer_threads = 0.3, 1
    monkeypatch.setattr(settings(), "burnish_home", tmp_path)
    worker = Machine()
    worker.start()
    yield worker
    worker.stop()
    assert worker.zygote
    worker.zygote.stop()
    settings.cache_clear()


def test_a_worker_that_ends_lets_a_revived_zygotes_trainer_write_its_checkpoint(passing, tiny):
    first = passing.zygote
    first.process.kill()
    until(lambda: passing.zygote is not first and passing.zygote_alive, what="another zygote")
    with transaction() as db:
        team = a_team(db)
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    passing.look_soon(Slot.COMPUTE)
    until(lambda: steps(job.id), what="a step")
    trainer = next(iter(passing.trips.values())).trainer
    terminate = trainer.terminate
    trainer.terminate = lambda: passing.stopping.wait(1.5) or terminate()  # it takes its time
    passing.stop()
    assert (again(job.id).state, attempts(job.id)[0].outcome) == (State.QUEUED, Outcome.RELEASED)
    assert kept(job.id)
