"""Clocks that are wrong (F27): of a worker and of a web. Only the database's clock decides."""

from pathlib import Path

from tests.chaos.cluster import WEBS, WORKERS
from tests.chaos.scenario import scenario
from tests.chaos.workload import LONG, SHORT, attempts, await_checkpoint, row, waited
from tests.chaos.world import World
from tests.services import until

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def with_clock(world: World, name: str, shift: str) -> None:
    """That program starts again with a clock that is so much off (its monotonic clock is right)."""
    if LIBRARY is None:
        raise AssertionError("Install Debian's package libfaketime for the rows about clocks.")
    wrong = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    world.cluster.end(name)
    world.cluster.supervisor.start([world.cluster.program(name, **wrong)])
    world.cluster.await_workers()


def with_right_clock(world: World, name: str) -> None:
    """That program starts again as it was."""
    world.cluster.end(name)
    world.cluster.begin(name)


@scenario(
    "F27",
    "a worker's clock is ten minutes fast, another's ten minutes slow",
    "no effect on leases; no job is queued again",
)
def the_clocks_of_workers_differ(world: World) -> None:
    with_clock(world, WORKERS[0], "+10m")
    with_clock(world, WORKERS[1], "-10m")
    world.hurt(2)
    jobs = [world.submit(LONG) for _ in range(3)]
    for job in jobs:
        await_checkpoint(job)
    world.work.await_end(jobs, 120)
    assert [len(attempts(job)) for job in jobs] == [1] * 3
    for name in WORKERS:
        with_right_clock(world, name)


@scenario("F27", "the web's clock is a day behind", "jobs are queued by the database's clock and run at once")
def the_clock_of_a_web_is_a_day_behind(world: World) -> None:
    with_clock(world, WEBS[0], "-1d")
    world.hurt()
    jobs = [world.submit(SHORT) for _ in range(2)]
    for job in jobs:
        until(lambda job=job: row(job).started_at, 15, "it starts")
        assert waited(job) >= 0
    with_right_clock(world, WEBS[0])
    world.work.await_end(jobs, 60)
