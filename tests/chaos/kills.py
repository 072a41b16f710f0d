"""What dies at once: trainers, workers, zygotes, web processes, beats, everything (F1 to F8)."""

import os
import signal
import threading
import time
from datetime import timedelta

from sqlmodel import select

from shared import jobs, schedules
from shared.db import transaction
from shared.settings import settings
from shared.tables import DatasetVersion, Job, Outcome, RunOutcome
from tests.chaos.cluster import BEATS, WEBS, WORKERS
from tests.chaos.processes import children, descendants, living, trainers_of, zygote_of
from tests.chaos.scenario import scenario
from tests.chaos.workload import (
    LONG,
    MEDIUM,
    SHORT,
    attempts,
    await_checkpoint,
    await_step,
    holder,
    row,
)
from tests.chaos.world import World
from tests.services import until

GONE_SECONDS = 1.0
TAKEOVER_SECONDS = 12.0  # lease 3 s, grace, two sweeps of 1 s, on a busy machine


def gone(pids: set[int], what: str) -> None:
    """Raises AssertionError where one of them lives a second from now."""
    until(lambda: not living(pids), GONE_SECONDS, f"{what} is gone within a second")


@scenario("F1", "kill -9 of a trainer in the middle of a step", "crashed; resumed from the last checkpoint")
def a_trainer_is_killed(world: World) -> None:
    job = world.submit(LONG)
    kept = await_checkpoint(job, 2)
    (trainer,) = trainers_of(world.cluster.pid(holder(world.cluster, job)))
    os.kill(trainer, signal.SIGKILL)
    world.hurt()
    until(lambda: len(attempts(job)) == 2, 10, "another attempt within the back-off")
    first, second = attempts(job)
    assert (first.outcome, first.reason_code) == (Outcome.CRASHED, "sigkill")
    assert second.start_step >= kept


@scenario("F2", "kill -9 of a trainer while it writes a checkpoint", "the half one has no row and no reader")
def a_trainer_is_killed_while_it_saves(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    name = holder(world.cluster, job)
    folder = world.cluster.folder / name / "attempts" / attempts(job)[0].lease_id / "checkpoints"
    (trainer,) = trainers_of(world.cluster.pid(name))
    until(lambda: any(not one.name.startswith("step-") for one in folder.iterdir()), 30, "a half checkpoint")
    os.kill(trainer, signal.SIGKILL)
    world.hurt()
    until(lambda: len(attempts(job)) == 2, 10, "another attempt")


@scenario("F4", "kill -9 of a worker", "its trainers are gone within a second; the other worker goes on")
def a_worker_is_killed(world: World) -> None:
    running = [world.submit(LONG) for _ in range(2)]
    for job in running:
        await_checkpoint(job)
    victim = holder(world.cluster, running[0])
    below = descendants(world.cluster.pid(victim))
    mine = [job for job in running if holder(world.cluster, job) == victim]
    world.cluster.kill(victim)
    world.hurt()
    gone(below, "everything below the worker")
    for job in mine:
        until(lambda job=job: len(attempts(job)) == 2, TAKEOVER_SECONDS, "the other worker takes over")
        assert attempts(job)[0].outcome == Outcome.LOST
    assert all(row(job).attempts == 1 for job in mine), "what the machine did is not charged"


@scenario("F5", "kill -9 of the zygote alone", "its trainers are gone; given back without charge")
def a_zygote_is_killed(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    worker = world.cluster.pid(holder(world.cluster, job))
    trainers = trainers_of(worker)
    os.kill(zygote_of(worker), signal.SIGKILL)
    world.hurt()
    gone(trainers, "every trainer")
    until(lambda: len(attempts(job)) == 2, 30, "another attempt")
    assert (attempts(job)[0].outcome, attempts(job)[0].reason_code) == (Outcome.RELEASED, "zygote")


@scenario(
    "F6", "kill -9 of every program and server at once", "after a restart every job ends as it would have"
)
def everything_is_killed(world: World) -> None:
    running = [world.submit(MEDIUM) for _ in range(3)]
    await_step(running[0], 20)
    below = {pid for name in WORKERS for pid in descendants(world.cluster.pid(name))}
    world.cluster.kill_all()
    world.hurt()
    gone(below, "every trainer")
    world.cluster.begin_all()


@scenario(
    "F7", "kill -9 of the web processes right after a submit", "the accepted job runs; the same key gives it"
)
def a_web_is_killed_after_a_submit(world: World) -> None:
    job = world.submit(SHORT)
    for pid in children(world.cluster.pid(WEBS[0])):
        os.kill(pid, signal.SIGKILL)
    world.hurt()
    until(world.cluster.supervisor.children[WEBS[0]].program.ready, 60, "gunicorn has new workers")
    until(lambda: row(job).started_at, settings().sweep_seconds + 5, "a sweep finds the job")


@scenario(
    "F7", "kill -9 of a web process during an upload", "no file, no dataset, no half upload in the store"
)
def a_web_is_killed_during_an_upload(world: World) -> None:
    import httpx

    team, over = world.work.teams[0], threading.Event()

    def pieces():
        for _ in range(200):
            if over.is_set():
                return
            yield b'{"text": "' + b"x" * 200_000 + b'"}\n'
            time.sleep(0.02)

    def upload() -> None:
        address = f"{world.cluster.url(WEBS[0])}/v1/files"
        edge = b"----chaos"
        head = (
            b"--" + edge + b'\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--' + edge
            + b'\r\nContent-Disposition: form-data; name="file"; filename="killed.jsonl"\r\n\r\n'
        )  # fmt: skip

        def body():
            yield head
            yield from pieces()

        headers = {
            "Authorization": f"Bearer {team.token}",
            "Content-Type": f"multipart/form-data; boundary={edge.decode()}",
        }
        try:
            httpx.post(address, content=body(), headers=headers, timeout=20, trust_env=False)
        except httpx.TransportError:
            return

    thread = threading.Thread(target=upload)
    thread.start()
    time.sleep(1.0)
    for pid in children(world.cluster.pid(WEBS[0])):
        os.kill(pid, signal.SIGKILL)
    world.hurt()
    over.set()
    thread.join(30)
    from shared.tables import File

    with transaction() as db:
        assert db.exec(select(File).where(File.filename == "killed.jsonl")).first() is None
    world.submit(SHORT)


@scenario("F8", "kill -9 of a beat when a schedule is due", "the run exists once")
def a_beat_is_killed_when_a_schedule_is_due(world: World) -> None:
    schedule = a_schedule(world)
    world.cluster.kill(BEATS[0])
    world.hurt()
    until(lambda: schedules_runs(schedule), 20, "a run")
    world.cluster.begin(BEATS[0])
    time.sleep(3)  # both beats have ticked again
    runs = schedules_runs(schedule)
    nominal = [run.nominal for run in runs if run.outcome == RunOutcome.SUBMITTED]
    assert len(nominal) == len(set(nominal)) >= 1
    forget(schedule)


def a_schedule(world: World):
    """A schedule of every minute that was due a second ago."""
    team = world.work.teams[0]
    with transaction() as db:
        version = db.exec(select(DatasetVersion).where(DatasetVersion.file_id == team.file)).one()
        order = {"recipe": "sft", "base_model": world.work.model, "hyperparameters": {"epochs": 0.1}}
        made = schedules.create(
            db,
            team_id=team.id,
            name=f"chaos {time.monotonic_ns()}",
            cron="* * * * *",
            zone="UTC",
            dataset_id=version.dataset_id,
            order=order,
        )
        made.since = jobs.clock(db) - timedelta(seconds=61)
        return made


def schedules_runs(schedule):
    """What it has run."""
    with transaction() as db:
        return schedules.runs(db, schedule.id)


def forget(schedule) -> None:
    """It runs no more, and what it ran is as often there as it says."""
    with transaction() as db:
        made = db.exec(select(Job).where(Job.schedule_id == schedule.id)).all()
        runs = schedules.runs(db, schedule.id)
        assert {job.id for job in made} == {run.job_id for run in runs if run.job_id}
        schedules.delete(db, schedule)
