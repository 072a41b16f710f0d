"""The broker away, emptied, full, frozen (F13 to F15): the queue is a table, wake-ups are hints."""

import time

import redis

from shared.settings import settings
from tests.chaos.kills import TAKEOVER_SECONDS
from tests.chaos.proxy import Delay, Refuse, Reset, Swallow
from tests.chaos.scenario import scenario
from tests.chaos.workload import LONG, SHORT, Submitted, attempts, await_checkpoint, await_step, holder, row
from tests.chaos.world import World
from tests.services import until

SUBMIT_SECONDS = 1.5  # more than an undisturbed submit takes on this machine
START_SECONDS = 60.0  # after the broker is back: more jobs wait than there are slots


def unaffected(world: World, running: Submitted) -> None:
    """The running job goes on, a new one is accepted quickly and starts."""
    before = len(world.work.seconds)
    undisturbed = max(world.work.seconds[:3])
    for _ in range(3):
        world.submit(SHORT)
    taken = sorted(world.work.seconds[before:])
    assert taken[-1] < undisturbed + SUBMIT_SECONDS, f"the web took {taken[-1]:.1f} s to accept a job"
    await_step(running, row(running).progress["step"] + 1)


def started(world: World) -> None:
    """Every job starts soon after the broker's return, once."""
    until(lambda: all(row(job).started_at for job in world.jobs), START_SECONDS, "every job starts")
    assert all(len(attempts(job)) == 1 for job in world.jobs)


@scenario(
    "F13", "kill -9 of the broker, away for 8 s", "jobs go on; submits take under 1.5 s; new jobs start"
)
def the_broker_dies(world: World) -> None:
    running = world.submit(LONG)
    await_step(running)
    world.cluster.kill("valkey")
    world.hurt()
    unaffected(world, running)
    time.sleep(8)
    world.cluster.begin("valkey")
    started(world)


@scenario(
    "F13", "kill -9 of the broker, then of a worker", "the other worker takes over while the broker is away"
)
def the_broker_and_a_worker_die(world: World) -> None:
    world.overlap, world.intervals = 40.0, 20
    job = world.submit(LONG)
    await_checkpoint(job)
    name = holder(world.cluster, job)
    world.cluster.kill("valkey")
    world.hurt()
    time.sleep(2)  # what was on its way has arrived
    world.cluster.kill(name)
    world.hurt()
    until(lambda: len(attempts(job)) == 2, TAKEOVER_SECONDS + 10, "the other worker takes over")
    world.cluster.begin("valkey")


@scenario("F14", "the broker loses every key", "the same")
def the_broker_forgets(world: World) -> None:
    running = world.submit(LONG)
    await_step(running)
    for _ in range(3):
        with redis.Redis.from_url(settings().redis_url) as broker:
            broker.flushall()
        world.hurt()
        unaffected(world, running)
    started(world)


@scenario("F14", "the broker's memory is full", "wake-ups are refused, which only the log tells")
def the_broker_is_full(world: World) -> None:
    running = world.submit(LONG)
    await_step(running)
    with redis.Redis.from_url(settings().redis_url) as broker:
        broker.config_set("maxmemory", "1mb")
        world.hurt()
        try:
            unaffected(world, running)
            time.sleep(3)
        finally:
            broker.config_set("maxmemory", "0")
    started(world)


@scenario("F15", "SIGSTOP of the broker for 12 s", "the same as if it were gone")
def the_broker_freezes(world: World) -> None:
    running = world.submit(LONG)
    await_step(running)
    world.cluster.freeze("valkey")
    world.hurt()
    try:
        unaffected(world, running)
        time.sleep(12)
    finally:
        world.cluster.thaw("valkey")
    started(world)


@scenario("F15", "the links to the broker refuse, are reset, are a black hole, are slow", "the same")
def the_way_to_the_broker_is_bad(world: World) -> None:
    running = world.submit(LONG)
    await_step(running)
    for fault in (Refuse(), Reset(), Swallow(), Delay(0.3)):
        world.hurt()
        with world.cluster.faulty(fault, "valkey", seconds=3):
            unaffected(world, running)
    started(world)
