"""People who cancel, pause and submit at the worst moment (F38, F39)."""

import random
import time

import httpx

from shared.columns import now
from shared.tables import FINAL, State
from tests.chaos.cluster import WEBS
from tests.chaos.scenario import scenario
from tests.chaos.workload import LONG, SHORT, Submitted, attempts, await_checkpoint, holder, row
from tests.chaos.world import World
from tests.services import until

CANCELS = 24
ENDINGS = {State.CANCELLED, State.SUCCEEDED}


def cancel(world: World, job: Submitted, web: str = WEBS[0]) -> int:
    """What the web answers to a cancel."""
    token = next(team.token for team in world.work.teams if team.id == job.team)
    url = f"{world.cluster.url(web)}/v1/fine_tuning/jobs/{job.id}/cancel"
    return httpx.post(
        url, headers={"Authorization": f"Bearer {token}"}, timeout=20, trust_env=False
    ).status_code


@scenario(
    "F38",
    f"{CANCELS} cancels at random moments of a job's life",
    "cancelled or succeeded, as the timeline says; none goes on",
)
def jobs_are_cancelled_at_any_moment(world: World) -> None:
    chance = random.Random(38)
    for _ in range(CANCELS // 4):
        jobs = [world.submit(SHORT) for _ in range(4)]
        for job in jobs:
            time.sleep(chance.uniform(0.0, 2.0))
            told = cancel(world, job, chance.choice(WEBS))
            world.hurt()
            assert told == 200 or row(job).state in FINAL, told
        until(lambda jobs=jobs: all(row(job).state in FINAL for job in jobs), 60, "every one ends")
    assert {row(job).state for job in world.jobs} <= ENDINGS


@scenario(
    "F38",
    "kill -9 of a worker, and a cancel of its job before the lease has run out",
    "cancelled without another attempt",
)
def a_job_without_a_worker_is_cancelled(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    world.cluster.kill(holder(world.cluster, job))
    world.hurt()
    told = cancel(world, job)
    assert told == 200, told
    until(lambda: row(job).state in FINAL, 20, "the reaper ends it")
    assert (row(job).state, len(attempts(job))) == (State.CANCELLED, 1), row(job).state


@scenario(
    "F39",
    "sixteen jobs of two teams at once for four slots",
    "no worker runs more than its slots; both teams get their turn",
)
def teams_ask_for_more_than_there_is(world: World) -> None:
    jobs = [world.submit(SHORT, team=0) for _ in range(10)] + [world.submit(SHORT, team=1) for _ in range(6)]
    world.hurt()
    world.work.await_end(jobs, 240)
    order = sorted(jobs, key=lambda job: row(job).started_at or now())
    second = world.work.teams[1].id
    assert sum(job.team == second for job in order[:12]) >= 4, [job.team == second for job in order]
