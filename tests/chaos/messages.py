"""Wake-ups doubled and lost, orders sent many times, schedules ticked twice (F25, F26, F36, F37)."""

import time
from concurrent.futures import ThreadPoolExecutor

import redis
from sqlmodel import select

from shared import queue
from shared.db import transaction
from shared.settings import settings
from shared.tables import Job, RunOutcome
from tests.chaos.cluster import BEATS, WEBS
from tests.chaos.kills import a_schedule, forget, schedules_runs
from tests.chaos.scenario import scenario
from tests.chaos.workload import SHORT, Submitted, attempts, row
from tests.chaos.world import World
from tests.services import until

WAKE_UPS, CLICKS = 300, 50


@scenario("F25", f"the same wake-up {WAKE_UPS} times", "each job is run once", short=True)
def a_wake_up_comes_many_times(world: World) -> None:
    jobs = [world.submit(SHORT) for _ in range(4)]
    for _ in range(WAKE_UPS):
        queue.wake("compute")
    world.hurt()
    world.work.await_end(jobs, 120)
    assert [len(attempts(job)) for job in jobs] == [1] * 4


@scenario("F26", "every wake-up is lost while jobs are submitted", "a sweep finds them")
def wake_ups_are_lost(world: World) -> None:
    jobs = []
    with redis.Redis.from_url(settings().redis_url) as broker:
        for _ in range(4):
            jobs.append(world.submit(SHORT))
            broker.delete(queue.LIST)
            world.hurt()
    for job in jobs[:2]:
        until(lambda job=job: row(job).started_at, settings().sweep_seconds + 5, "a sweep finds it")


@scenario(
    "F36",
    f"{CLICKS} times the same order at once, at both webs",
    "one job; the same answer to all",
    short=True,
)
def an_order_is_sent_many_times(world: World) -> None:
    team = world.work.teams[0]
    body, key = world.work.body(team, SHORT), f"clicks {time.monotonic_ns()}"
    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(lambda n: world.work.post(WEBS[n % 2], team, key, body), range(CLICKS)))
    world.hurt()
    answers = [answer for answer in told if answer is not None]
    assert {answer.status_code for answer in answers} == {200}
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 1
    other = world.work.post(WEBS[0], team, key, body | {"seed": 8})
    assert other is not None
    assert other.status_code == 409
    world.jobs.append(Submitted(ids.pop(), team.id, SHORT))
    with transaction() as db:
        assert len(db.exec(select(Job).where(Job.idempotency_key == key)).all()) == 1


@scenario("F37", "two beats tick one schedule; then both are away for a while", "each nominal time runs once")
def two_beats_tick(world: World) -> None:
    schedule = a_schedule(world)
    until(lambda: schedules_runs(schedule), 20, "a run")
    for beat in BEATS:
        world.cluster.freeze(beat)
    world.hurt()
    time.sleep(4)
    for beat in BEATS:
        world.cluster.thaw(beat)
    time.sleep(3)
    nominal = [run.nominal for run in schedules_runs(schedule) if run.outcome == RunOutcome.SUBMITTED]
    assert len(nominal) == len(set(nominal)) >= 1
    forget(schedule)
