"""What freezes and what is asked to go (F9 to F12)."""

import signal
import time

from shared.settings import settings
from shared.tables import Outcome, State
from tests.chaos.kills import TAKEOVER_SECONDS
from tests.chaos.processes import descendants, living, trainers_of
from tests.chaos.scenario import scenario
from tests.chaos.workload import LONG, attempts, await_checkpoint, holder, row
from tests.chaos.world import World
from tests.services import until


@scenario("F9", "SIGSTOP of a worker for longer than its lease, its trainer goes on",
          "taken over; the frozen one is refused when it wakes and ends its trainer")  # fmt: skip
def a_worker_is_frozen(world: World) -> None:
    world.overlap = 30.0  # on another machine nobody can end its trainer before it wakes
    world.intervals = 20  # what its trainer does meanwhile counts for nothing
    job = world.submit(LONG)
    await_checkpoint(job)
    frozen = holder(world.cluster, job)
    trainers = trainers_of(world.cluster.pid(frozen))
    world.cluster.freeze(frozen, alone=True)
    world.hurt()
    until(lambda: len(attempts(job)) == 2, TAKEOVER_SECONDS, "the other worker takes over")
    first, second = attempts(job)
    assert (first.outcome, first.worker_id != second.worker_id) == (Outcome.LOST, True)
    world.cluster.thaw(frozen)
    until(lambda: not living(trainers), 8, "the refused worker ends its trainer")


@scenario("F10", "SIGSTOP of a trainer for longer than a lease", "the worker renews; nothing is requeued")
def a_trainer_is_frozen(world: World) -> None:
    import os

    job = world.submit(LONG)
    await_checkpoint(job)
    (trainer,) = trainers_of(world.cluster.pid(holder(world.cluster, job)))
    os.kill(trainer, signal.SIGSTOP)
    world.hurt()
    try:
        time.sleep(2 * settings().lease_seconds)
    finally:
        os.kill(trainer, signal.SIGCONT)
    world.work.await_end([job], 120)
    assert len(attempts(job)) == 1


@scenario("F11", "SIGTERM of a worker", "a checkpoint, given back without charge, resumed by the other")
def a_worker_is_drained(world: World) -> None:
    world.intervals = 0
    job = world.submit(LONG)
    await_checkpoint(job)
    name = holder(world.cluster, job)
    world.cluster.end(name)
    world.hurt()
    assert (attempts(job)[0].outcome, attempts(job)[0].reason_code) == (Outcome.RELEASED, "drain")
    assert row(job).attempts <= 1, "a drain is not charged"
    until(lambda: len(attempts(job)) == 2 or row(job).state != State.QUEUED, 10, "the other goes on")


@scenario(
    "F12",
    "SIGTERM and then SIGQUIT of a worker",
    "its trainers end with it; resumed from the last checkpoint",
)
def a_drain_is_cut_short(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    name = holder(world.cluster, job)
    below = descendants(world.cluster.pid(name))
    process = world.cluster.supervisor.children[name].process
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGQUIT)
    world.hurt()
    until(lambda: process.poll() is not None, 60, "it is gone")
    until(lambda: not living(below), 1.0, "nothing of it is left a second later")
