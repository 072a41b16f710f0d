"""The database restarted, killed, away, frozen, locked, cut off (F16 to F19, F29, F42)."""

import os
import signal
import time

import psycopg

from shared.settings import settings
from shared.tables import Outcome
from tests.chaos.kills import TAKEOVER_SECONDS
from tests.chaos.processes import descendants, living, trainers_of
from tests.chaos.proxy import Delay, Refuse, Reset, Swallow
from tests.chaos.scenario import scenario
from tests.chaos.workload import (
    LONG,
    SHORT,
    Submitted,
    attempts,
    await_checkpoint,
    await_step,
    holder,
    waited,
)
from tests.chaos.world import World
from tests.services import until


def connection() -> psycopg.Connection:
    """A session of our own, straight to the server."""
    return psycopg.connect(settings().database_url.replace("+psycopg", ""), autocommit=True)


def busy(world: World) -> list[Submitted]:
    """Two jobs, each with a stored checkpoint."""
    running = [world.submit(LONG) for _ in range(2)]
    for job in running:
        await_checkpoint(job)
    return running


def nothing_requeued(world: World, running: list[Submitted]) -> None:
    """Each ends in the one attempt that it had."""
    world.work.await_end(running, 120)
    assert [len(attempts(job)) for job in running] == [1] * len(running), "a job was queued again"


def honest(world: World, began: float) -> None:
    """Meanwhile the web said 503, and every answer came soon."""
    assert any(probe.status == 503 for probe in world.prober.since(began)), "nobody was told of it"
    world.prober.require_soon(began)


@scenario(
    "F16", "the database restarts in order", "heartbeats resume; no job is queued again; the web says 503"
)
def the_database_restarts(world: World) -> None:
    running = busy(world)
    world.cluster.end("postgres", signal.SIGINT)
    world.hurt()
    time.sleep(1.5)
    world.cluster.begin("postgres")
    nothing_requeued(world, running)


@scenario("F16", "kill -9 of the database", "the same")
def the_database_is_killed(world: World) -> None:
    running = busy(world)
    world.cluster.kill("postgres")
    world.hurt()
    world.cluster.begin("postgres")
    nothing_requeued(world, running)


@scenario("F17", "the database refuses connections for five leases",
          "training goes on; no job is queued again; the web says 503 at once; events arrive without gaps")  # fmt: skip
def the_database_is_away(world: World) -> None:
    running, began = busy(world), time.monotonic()
    world.hurt()
    with world.cluster.faulty(Refuse(), "postgres", seconds=5 * settings().lease_seconds):
        pass
    honest(world, began)
    nothing_requeued(world, running)


@scenario("F17", "SIGSTOP of the database for three leases", "the same; nobody waits for longer than 1.5 s")
def the_database_freezes(world: World) -> None:
    running, began = busy(world), time.monotonic()
    server = world.cluster.pid("postgres")
    frozen = {server} | descendants(server)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    world.hurt()
    try:
        time.sleep(3 * settings().lease_seconds)
    finally:
        for pid in living(frozen):
            os.kill(pid, signal.SIGCONT)
    honest(world, began)
    nothing_requeued(world, running)


@scenario(
    "F19",
    "the database has no connection left for 5 s",
    "heartbeats go on over what is open; no job is queued again",
)
def the_database_is_full(world: World) -> None:
    running = busy(world)
    taken: list[psycopg.Connection] = []
    world.hurt()
    try:
        while len(taken) < 300:
            taken.append(connection())
    except psycopg.OperationalError:
        time.sleep(5)
    finally:
        for one in taken:
            one.close()
    nothing_requeued(world, running)


@scenario(
    "F19",
    "somebody locks the table of jobs for 6 s",
    "heartbeats give up waiting and come again; no job is queued again; the web says 503 soon",
)
def a_table_is_locked(world: World) -> None:
    running, began = busy(world), time.monotonic()
    world.hurt()
    with connection() as blocker, blocker.transaction():
        blocker.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        time.sleep(6)
    honest(world, began)
    nothing_requeued(world, running)


@scenario(
    "F29",
    "a worker's answers from the database vanish for longer than a lease",
    "taken over; the worker is refused when it is back",
)
def a_worker_is_cut_off_from_the_database(world: World) -> None:
    world.overlap, world.intervals = 40.0, 20
    job = world.submit(LONG)
    await_checkpoint(job)
    name = holder(world.cluster, job)
    trainers = trainers_of(world.cluster.pid(name))
    world.hurt()
    with world.cluster.faulty(Swallow("down"), "postgres", (name,)):
        until(lambda: len(attempts(job)) == 2, TAKEOVER_SECONDS + 5, "the other worker takes over")
    assert attempts(job)[0].outcome == Outcome.LOST
    until(lambda: not living(trainers), 15, "the refused worker ends its trainer")


@scenario("F29", "the links to the database are reset and slow", "no job is queued again")
def the_way_to_the_database_is_bad(world: World) -> None:
    running = busy(world)
    for fault, seconds in ((Reset(), 2), (Delay(0.05), 4), (Reset(), 1)):
        world.hurt()
        with world.cluster.faulty(fault, "postgres", seconds=seconds):
            pass
    nothing_requeued(world, running)


@scenario("F42", "a reader keeps a transaction open", "claims and heartbeats do not wait for it")
def a_reader_stays(world: World) -> None:
    with connection() as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM jobs, attempts, events")
        world.hurt()
        jobs = [world.submit(SHORT) for _ in range(3)]
        for job in jobs:
            await_step(job)
            assert waited(job) < 10
        world.work.await_end(jobs, 60)
