"""Clocks that are wrong (F27): of workers and of a web. Only the database's clock decides."""

import subprocess
from pathlib import Path

from tests.chaos.cluster import WEBS, WORKERS
from tests.chaos.kills import TAKEOVER_SECONDS, a_schedule, forget, schedules_runs
from tests.chaos.scenario import scenario
from tests.chaos.workload import LONG, SHORT, attempts, await_checkpoint, holder, row, waited
from tests.chaos.world import World
from tests.services import until

SOURCE = Path(__file__).with_name("clock.c")
TEN_MINUTES, A_DAY = 600, 86_400


def with_clock(world: World, name: str, seconds: int) -> None:
    """That program starts again with a clock that is so much ahead (its monotonic clock is right)."""
    wrong = {"LD_PRELOAD": str(library(world)), "CLOCK_SHIFT": str(seconds)}
    world.cluster.end(name)
    world.cluster.supervisor.start([world.cluster.program(name, **wrong)])
    world.cluster.await_workers()


def library(world: World) -> Path:
    """The compiled clock. Raises AssertionError where there is no compiler."""
    made = world.cluster.folder / "clock.so"
    if not made.exists():
        try:
            subprocess.run(["cc", "-shared", "-fPIC", "-O", "-o", made, SOURCE, "-ldl"], check=True)
        except (OSError, subprocess.CalledProcessError) as no:
            raise AssertionError(f"The rows about clocks need a C compiler: {no}") from no
    return made


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
    with_clock(world, WORKERS[0], TEN_MINUTES)
    with_clock(world, WORKERS[1], -TEN_MINUTES)
    world.hurt(2)
    jobs = [world.submit(LONG) for _ in range(3)]
    for job in jobs:
        await_checkpoint(job)
    world.work.await_end(jobs, 120)
    assert [len(attempts(job)) for job in jobs] == [1] * 3
    for name in WORKERS:
        with_right_clock(world, name)


@scenario(
    "F27",
    "the clocks of all workers are ten minutes fast, and one worker is killed",
    "what beat sends still counts: the job is taken over, a schedule runs",
)
def the_clocks_of_all_workers_are_fast(world: World) -> None:
    for name in WORKERS:
        with_clock(world, name, TEN_MINUTES)
    world.hurt(2)
    job, schedule = world.submit(LONG), a_schedule(world)
    await_checkpoint(job)
    victim = holder(world.cluster, job)
    world.cluster.kill(victim)
    world.hurt()
    until(lambda: len(attempts(job)) == 2, TAKEOVER_SECONDS, "the other worker takes over")
    until(lambda: schedules_runs(schedule), 20, "the schedule runs")
    forget(schedule)
    for name in WORKERS:
        if name != victim:
            with_right_clock(world, name)


@scenario("F27", "the web's clock is a day behind", "jobs are queued by the database's clock and run at once")
def the_clock_of_a_web_is_a_day_behind(world: World) -> None:
    with_clock(world, WEBS[0], -A_DAY)
    world.hurt()
    jobs = [world.submit(SHORT) for _ in range(2)]
    for job in jobs:
        until(lambda job=job: row(job).started_at, 15, "it starts")
        assert waited(job) >= 0
    with_right_clock(world, WEBS[0])
    world.work.await_end(jobs, 60)
