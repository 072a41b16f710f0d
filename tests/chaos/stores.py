"""The store away, refusing, full, slow, lying; and a full disk (F20 to F24, F30, F33)."""

import time

import httpx

from shared import checkpoints, storage
from shared.db import transaction
from shared.tables import Artifact, Kind, Ready, State, Team, Worker
from tests.chaos.cluster import WEBS, WORKERS
from tests.chaos.processes import trainers_of
from tests.chaos.proxy import Answer, Cut, Flip, Refuse, Slow, Swallow
from tests.chaos.scenario import scenario
from tests.chaos.workload import (
    LONG,
    MEDIUM,
    SHORT,
    Submitted,
    attempts,
    await_checkpoint,
    await_step,
    holder,
    last_step,
    row,
    stored,
)
from tests.chaos.world import World, asked
from tests.factories import a_file, a_job, a_user
from tests.services import until
from tests.visitor import cookies


def goes_on_and_catches_up(world: World, job: Submitted, fault, seconds: float) -> None:
    """While the store has that fault the training goes on; after it every checkpoint arrives."""
    at = await_step(job)
    world.hurt()
    with world.cluster.faulty(fault, "seaweedfs", WORKERS, seconds=seconds):
        await_step(job, at + 10)
    world.work.await_end([job], 120)
    assert len(attempts(job)) == 1, "an outage of the store is no reason for another attempt"


@scenario(
    "F20",
    "the store refuses connections for 8 s while checkpoints are written",
    "training goes on; uploads catch up",
)
def the_store_is_away_at_a_checkpoint(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    goes_on_and_catches_up(world, job, Refuse(), 8)


@scenario(
    "F20",
    "kill -9 of the store when the training has ended",
    "the attempt waits in «uploading»; success only with its bytes",
)
def the_store_is_away_at_the_end(world: World) -> None:
    job = world.submit(MEDIUM)
    await_checkpoint(job)
    worker = world.cluster.pid(holder(world.cluster, job))
    world.cluster.kill("seaweedfs")
    world.hurt()
    until(lambda: not trainers_of(worker), 60, "the trainer ends")
    time.sleep(2)
    assert row(job).state == State.RUNNING, "no success without the bytes"
    assert row(job).stage == "uploading"
    world.cluster.begin("seaweedfs")
    world.work.await_end([job], 60)
    assert len(attempts(job)) == 1


@scenario("F21", "the store answers 500 to three in ten requests", "tried again until it works")
def the_store_fails_now_and_then(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    goes_on_and_catches_up(world, job, Answer(500, rate=0.3), 6)


@scenario(
    "F21",
    "the store answers 503 to everything, then 403, then that the bucket is gone",
    "tried again; no success without bytes",
)
def the_store_refuses(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    for fault in (
        Answer(503, code="SlowDown"),
        Answer(403, code="AccessDenied"),
        Answer(404, code="NoSuchBucket"),
    ):
        world.hurt()
        with world.cluster.faulty(fault, "seaweedfs", WORKERS, seconds=3):
            pass
    world.work.await_end([job], 120)
    assert len(attempts(job)) == 1


@scenario(
    "F21",
    "the links to the store carry 200 KB a second, then cut answers short",
    "checkpoints come late and whole",
)
def the_way_to_the_store_is_bad(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    goes_on_and_catches_up(world, job, Slow(200_000), 6)
    other = world.submit(MEDIUM)
    await_checkpoint(other)
    goes_on_and_catches_up(world, other, Cut(after=50, method=b"", within=b"step-"), 4)


@scenario(
    "F22",
    "the store is full: «No writable volumes»",
    "the attempt waits, workers claim nothing and say so; every checkpoint arrives when there is room",
)
def the_store_is_full(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    at = await_step(job)
    world.hurt()
    full = Answer(500, code="InternalError", message="No writable volumes left")
    with world.cluster.faulty(full, "seaweedfs", WORKERS):
        until(lambda: all(notes(world)), 10, "each worker says that it claims nothing")
        waiting = world.submit(SHORT)
        await_step(job, at + 10)
        time.sleep(2)
        assert not attempts(waiting), "a job was begun that could store nothing"
    world.work.await_end([job, waiting], 120)
    assert [len(attempts(one)) for one in (job, waiting)] == [1, 1]


def notes(world: World) -> list[str]:
    """Why each worker claims nothing."""
    with transaction() as db:
        return [db.get_one(Worker, worker_id).note for worker_id in world.cluster.worker_ids()]


@scenario(
    "F23",
    "the store gives back another byte than it was given",
    "seen by its SHA-256; an older checkpoint or the beginning",
)
def the_store_lies(world: World) -> None:
    world.intervals, world.damages = 20, True
    job = world.submit(LONG)
    await_checkpoint(job, 2)
    name = holder(world.cluster, job)
    world.hurt()
    with world.cluster.faulty(Flip(), "seaweedfs", WORKERS):
        world.cluster.kill(name)
        until(lambda: len(attempts(job)) == 2, 15, "the other worker takes over")
        until(lambda: last_step(attempts(job)[1].lease_id), 60, "it trains")


@scenario(
    "F30",
    "a worker's link to the store is a black hole for 8 s",
    "the job goes on, its checkpoints come late",
)
def a_worker_is_cut_off_from_the_store(world: World) -> None:
    job = world.submit(LONG)
    await_checkpoint(job)
    goes_on_and_catches_up(world, job, Swallow(), 8)


@scenario(
    "F30",
    "the web's links to the store are a black hole for 6 s",
    "pages that show something of it come within 1.5 s and say what is missing",
)
def the_web_is_cut_off_from_the_store(world: World) -> None:
    running = world.submit(MEDIUM)
    with transaction() as db:
        team = db.get_one(Team, world.work.teams[0].id)
        job = a_job(db, team, Kind.INFER, state=State.SUCCEEDED)
        file = a_file(db, team, b'{"row": 1, "output": "yes"}\n')
        made = Artifact(
            team_id=team.id, job_id=job.id, form="predictions", state=Ready.READY, file_id=file.id
        )
        db.add(made)
        person = a_user(db, team)
    with httpx.Client(
        base_url=world.cluster.url(WEBS[0]), cookies=cookies(person), trust_env=False
    ) as client:
        assert "yes" in client.get(f"/jobs/{job.id}").text
        world.hurt()
        began, ends = time.monotonic(), time.monotonic() + 6
        with world.cluster.faulty(Swallow(), "seaweedfs", WEBS):
            while time.monotonic() < ends:
                world.prober.told.append(asked(client, WEBS[0], f"/jobs/{job.id}"))
            assert "The store does not answer just now" in client.get(f"/jobs/{job.id}").text
        world.prober.require_soon(began)
    world.work.await_end([running], 120)


@scenario(
    "F33",
    "the newest checkpoint's bytes are changed in the store, then its files are gone",
    "the one before it is resumed from",
)
def the_newest_checkpoint_is_bad(world: World) -> None:
    world.intervals, world.damages = 4, True
    job = world.submit(LONG)
    for spoil in (change, remove):
        await_checkpoint(job, len(stored(job)) + 2)
        tries = len(attempts(job))
        world.cluster.kill(holder(world.cluster, job))
        with transaction() as db:
            newest, *_ = checkpoints.of(db, job.id)
        spoil(newest)
        world.hurt()
        until(lambda tries=tries: len(attempts(job)) == tries + 1, 15, "the other worker takes over")
        until(lambda: last_step(attempts(job)[-1].lease_id), 60, "it trains")
        world.cluster.begin_all()


def change(checkpoint) -> None:
    """One byte of its first file of weights is another."""
    entry = next(e for e in checkpoint.manifest if e["name"].endswith(".safetensors"))
    data = bytearray(storage.read(checkpoint.prefix + entry["name"]))
    data[len(data) // 2] ^= 1
    storage.put_bytes(checkpoint.prefix + entry["name"], bytes(data))


def remove(checkpoint) -> None:
    """Its files are gone, its row is there."""
    storage.delete_prefix(checkpoint.prefix)
