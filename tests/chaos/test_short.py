"""The short version of `make chaos`: a few rows of the matrix and a soak of half a minute on one cluster."""

import pytest

from tests.chaos.scenario import Scenario, matrix
from tests.chaos.soak import soak
from tests.chaos.workload import LONG, MEDIUM, SHORT, attempts, await_checkpoint, final_weights, holder
from tests.chaos.world import World, world

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]
SEED, MINUTES = 20, 0.5


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with world(tmp_path_factory.mktemp("cluster"), (SHORT, MEDIUM)) as one:
        yield one


@pytest.mark.parametrize("one", [s for s in matrix() if s.short], ids=lambda one: one.name)
def test_what_must_follow_follows(running: World, one: Scenario):
    running.fresh()
    one.run(running)
    running.settle()


@pytest.mark.slow
def test_weights_after_two_kills_are_those_of_an_undisturbed_run(running: World):
    running.fresh()
    running.intervals = 20  # how far behind uploads are depends on the machine
    running.work.learn_weights(LONG)  # a shorter one may be over before its eighth checkpoint is stored
    job = running.submit(LONG)
    for count in (3, 8):
        await_checkpoint(job, count)
        running.cluster.kill(holder(running.cluster, job))
        running.cluster.begin_all()
    running.settle()
    assert len(attempts(job)) >= 2
    assert final_weights(job) == running.work.weights[LONG]


def test_a_soak_loses_nothing_and_doubles_nothing(running: World):
    soaked = soak(running, SEED, MINUTES, lambda _: None)
    assert not soaked.problems
    assert (soaked.figures.lost, soaked.figures.doubled) == (0, 0)
    assert soaked.figures.faults >= 1
