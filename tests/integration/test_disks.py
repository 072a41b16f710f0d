"""A worker whose disk is short, too small, or becomes full: on a small file system of its own."""

import hashlib
import os
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest
from sqlmodel import select

from shared import jobs, room, storage, workers
from shared.db import transaction
from shared.jobs import Order
from shared.settings import settings
from shared.tables import (
    Attempt,
    BaseModel,
    Checkpoint,
    DatasetVersion,
    File,
    Job,
    Kind,
    Outcome,
    Ready,
    Slot,
    State,
    Worker,
)
from tests.factories import a_base_model, a_checkpoint, a_dataset, a_job, a_team, a_worker
from tests.integration.runner.orders import submitted
from tests.integration.runner.runs import again, attempts, in_background, kept, steps, weights
from tests.integration.working import a_machine
from tests.services import until
from web import failures, waiting
from worker import needs
from worker.cache import IN_USE_SECONDS, Cache
from worker.disk import Disk
from worker.machine import Machine

MIB = 1024**2
SIZE = 64 * MIB


@pytest.fixture(scope="module")
def running(stack):
    """A worker in this process."""
    with a_machine(retry_seconds=0.1) as worker:
        yield worker


@pytest.fixture
def small(tmp_path):
    """A file system of 64 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def machine(running, small, clean, monkeypatch):
    """The worker on that file system, of which it leaves 4 MiB free."""
    cache = Cache(small / "cache")
    (small / "attempts").mkdir()
    monkeypatch.setattr(running, "attempts", small / "attempts")
    monkeypatch.setattr(running, "cache", cache)
    monkeypatch.setattr(running, "disk", Disk(small, cache, 4 * MIB, running.promised))
    running.register()
    yield running
    running.note = ""


@pytest.fixture
def team(machine):
    with transaction() as db:
        return a_team(db)


def fill(place, but):
    """A file that leaves so many bytes free there."""
    path = place / f"filler-{time.monotonic_ns()}"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with path.open("wb") as file:
        if free > but:
            os.posix_fallocate(file.fileno(), 0, free - but)
    return path


def empty(place):
    """What filled it is gone."""
    for path in place.glob("filler-*"):
        path.unlink()


def row_of(machine):
    with transaction() as db:
        return db.get_one(Worker, machine.id)


def why(job_id):
    with transaction() as db:
        return waiting.outlook(db, db.get_one(Job, job_id)).reason


# --- the floor --------------------------------------------------------------------------------------


def test_a_worker_below_its_floor_claims_nothing_says_so_and_goes_on_by_itself(
    machine, team, tiny, small, monkeypatch
):
    with monkeypatch.context() as between:
        between.setattr(Machine, "beat", lambda _: None)  # no sign of life comes between
        job = submitted(team, tiny, epochs=1, checkpoints=1)
        filler = fill(small, MIB)
        machine.note = ""
        machine.look(Slot.COMPUTE)
        assert attempts(job.id) == [], "the moment counts, not the last sign of life"
    machine.beat()
    said = f"has stopped claiming: 1 MiB free of its 4 MiB floor. Free space on {row_of(machine).host}"
    assert row_of(machine).note == said
    assert f"The worker on {row_of(machine).host} {said}." in why(job.id)
    filler.unlink()
    until(lambda: again(job.id).state == State.SUCCEEDED, 60, "its own next sign of life starts the job")
    assert row_of(machine).note == ""
    assert row_of(machine).disk["total"] == SIZE


# --- before an attempt ------------------------------------------------------------------------------


def aged(cache, name, size, hours):
    """An entry of the cache that was used so long ago."""
    path = cache.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    at = time.time() - hours * 3600
    os.utime(path, (at, at))
    return path


def test_what_the_cache_has_not_used_for_longest_goes_first_to_make_room(machine, team, tiny):
    oldest = aged(machine.cache, "datasets/oldest.parquet", 20 * MIB, 9)
    older = aged(machine.cache, "datasets/older.parquet", 24 * MIB, 8)
    fresh = aged(machine.cache, "datasets/fresh.parquet", 2 * MIB, 0)
    job = submitted(team, tiny, epochs=1, checkpoints=1)
    with transaction() as db:
        need = needs.reckoned(db, job, machine.cache)
    assert 16 * MIB < need.here < 30 * MIB
    machine.look(Slot.COMPUTE)
    assert again(job.id).state == State.SUCCEEDED
    assert (oldest.exists(), older.exists(), fresh.exists()) == (False, True, True)


@contextmanager
def training(machine, team, tiny):
    """A job that trains inside the block and is cancelled at its end."""
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    try:
        until(lambda: steps(job.id), what="a step")
        yield job
    finally:
        with transaction() as db:
            jobs.cancel(db, job, "somebody")
        thread.join(60)


def test_a_running_attempt_keeps_what_it_uses_of_the_cache(machine, team, tiny):
    with training(machine, team, tiny):
        (entry,) = machine.cache.folder.glob("datasets/*.parquet")
        long_ago = time.time() - 2 * IN_USE_SECONDS
        os.utime(entry, (long_ago, long_ago))
        machine.beat()
        assert entry not in machine.cache.idle()


def test_a_job_without_room_goes_back_without_charge_and_waits_until_there_is_some(
    machine, team, tiny, small
):
    filler = fill(small, 12 * MIB)
    job = submitted(team, tiny, epochs=1, checkpoints=1)
    machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    (first,) = attempts(job.id)
    assert (first.outcome, first.reason_code) == (Outcome.RELEASED, "no_room")
    assert (
        first.reason
        == f"It needs about {room.gib(job.disk_bytes)} of disk, and the worker had 8 MiB to spare."
    )
    machine.beat()
    assert f"It needs about {room.gib(job.disk_bytes)} of disk, and 8 MiB are to be had" in why(job.id)
    machine.look(Slot.COMPUTE)
    time.sleep(3 * settings().retry_seconds)
    machine.look(Slot.COMPUTE)
    assert len(attempts(job.id)) == 1, "no worker without room claims it"
    filler.unlink()
    machine.beat()
    until(lambda: machine.look(Slot.COMPUTE) and again(job.id).state == State.SUCCEEDED, 60)


def test_what_running_attempts_are_still_to_write_is_nobody_elses_room(machine, team, tiny):
    before = machine.disk.state()["room"]
    with training(machine, team, tiny):
        assert machine.promised() > 14 * MIB
        assert machine.disk.state()["room"] < before - 14 * MIB
    assert machine.promised() == 0


def test_a_job_that_no_workers_disk_could_hold_fails_with_the_sentence(machine, team, tiny):
    job = submitted(team, tiny)
    with transaction() as db:
        base = db.get_one(Job, job.id).base_model_id
        model = db.get_one(BaseModel, base)
        model.facts = model.facts | {"parameters": 10**9}
    machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert (job.state, job.reason_code) == (State.FAILED, "disk_too_small")
    assert job.reason.startswith("It needs about 1.7 GiB of a worker's disk")
    assert job.reason.endswith("the largest disk of a worker holds 60 MiB above its floor.")
    with transaction() as db:
        card = failures.card(db, job, [])
    assert card
    assert card.title == "No worker's disk is large enough"


@pytest.mark.usefixtures("stack")
def test_a_job_goes_to_a_worker_with_room_for_it(db):
    team = a_team(db)
    job = a_job(db, team, Kind.INFER, disk_bytes=5000)
    cramped = a_worker(db, disk={"free": 9000, "floor": 5000, "total": 99_999, "room": 4000})
    assert jobs.claim(db, cramped.id, "compute") is None
    assert waiting.outlook(db, job).reason.startswith("It needs about 0 MiB of disk, and 0 MiB are to be had")
    roomy = a_worker(db, disk={"free": 9000, "floor": 3000, "total": 99_999, "room": 6000})
    assert waiting.outlook(db, job).reason == "A slot is free; it starts within moments."
    attempt = jobs.claim(db, roomy.id, "compute")
    assert attempt
    assert attempt.job_id == job.id


@pytest.mark.usefixtures("stack")
def test_a_job_is_claimed_by_an_older_worker_that_says_nothing_of_its_disk(db):
    a_job(db, a_team(db), Kind.INFER, disk_bytes=10**15)
    assert jobs.claim(db, a_worker(db).id, "compute")


# --- while it runs ----------------------------------------------------------------------------------


def test_a_disk_that_becomes_full_gives_the_job_back_and_no_half_checkpoint_counts(
    machine, team, tiny, small
):
    knobs = {"epochs": 40, "checkpoints": 40, "evaluations": 2}
    undisturbed = submitted(team, tiny, **knobs)
    machine.look(Slot.COMPUTE)
    job = submitted(team, tiny, **knobs)
    thread = in_background(machine)
    until(lambda: kept(job.id), what="a checkpoint is stored")

    def over():
        with suppress(OSError):
            fill(small, 0)  # what is freed meanwhile, too
        return attempts(job.id)[0].ended_at

    until(over, 60, "the attempt is ended")
    first = attempts(job.id)[0]
    assert (first.outcome, first.reason_code) == (Outcome.RELEASED, "disk_full")
    job = again(job.id)
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    for point in kept(job.id):
        for entry in point.manifest:
            assert hashlib.sha256(storage.read(point.prefix + entry["name"])).hexdigest() == entry["sha256"]
    empty(small)
    machine.beat()
    until(lambda: machine.look(Slot.COMPUTE) and again(job.id).state == State.SUCCEEDED, 90)
    thread.join(60)
    assert weights(job.id) == weights(undisturbed.id) != {}


@pytest.fixture
def careless(machine, monkeypatch):
    """The worker reckons too low and leaves nothing free."""
    monkeypatch.setattr(needs, "SLACK", 0)
    machine.disk.floor = 0
    return machine


def long_rows(db, team):
    """A dataset version of 8 MB, and its file, whose rows say that they are tiny."""
    rows = [{"messages": [{"role": "user", "content": os.urandom(200_000).hex()}]} for _ in range(20)]
    version = a_dataset(db, team, rows)
    version.bytes = db.get_one(File, version.file_id).bytes = 1
    return version


def test_a_disk_that_is_full_before_the_data_is_there_is_told_as_such(careless, team, tiny, small):
    with transaction() as db:
        order = Order(
            team_id=team.id,
            recipe="sft",
            model=a_base_model(db, tiny).id,
            dataset_version_id=long_rows(db, team).id,
        )
        job = jobs.submit(db, order)
    fill(small, 3 * MIB)
    careless.look(Slot.COMPUTE)
    first = attempts(job.id)[0]
    assert (first.outcome, first.reason_code) == (Outcome.RELEASED, "disk_full"), first.reason
    assert not list(careless.cache.folder.glob("datasets/*"))


def test_a_disk_that_becomes_full_in_an_import_is_told_as_such(careless, team, small):
    with transaction() as db:
        version = long_rows(db, team)
        version.state = Ready.BUILDING
        job = jobs.submit_import(db, team_id=team.id, version_id=version.id, file_id=version.file_id)
    fill(small, 11 * MIB)
    careless.look(Slot.LIGHT)
    first = attempts(job.id)[0]
    assert (first.outcome, first.reason_code) == (Outcome.RELEASED, "disk_full"), first.reason


@pytest.mark.usefixtures("stack")
def test_a_job_that_fills_disks_again_and_again_ends_with_its_story(db):
    job, worker = a_job(db, a_team(db), Kind.INFER), a_worker(db)
    for _ in range(3):
        job.run_after = jobs.clock(db)
        db.flush()
        attempt = jobs.claim(db, worker.id, "compute")
        assert attempt
        jobs.finish(db, attempt.lease_id, Outcome.RELEASED, reason_code="disk_full", reason="It was full.")
    assert (job.state, job.reason_code) == (State.FAILED, "disk_full")
    assert job.reason == "It filled the disk of its worker 3 times in a day."


@pytest.mark.usefixtures("stack")
def test_a_job_waits_for_room_for_as_long_as_it_takes(db):
    job, worker = a_job(db, a_team(db), Kind.INFER), a_worker(db)
    for _ in range(25):
        job.run_after = jobs.clock(db)
        db.flush()
        attempt = jobs.claim(db, worker.id, "compute")
        assert attempt
        jobs.finish(db, attempt.lease_id, Outcome.RELEASED, reason_code="no_room", reason="There was none.")
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    assert job.run_after is not None


# --- the estimate -----------------------------------------------------------------------------------


def test_an_attempt_that_goes_on_needs_what_its_checkpoints_need(db, tmp_path):
    team = a_team(db)
    job = a_job(db, team)
    fresh = needs.reckoned(db, job, Cache(tmp_path))
    a_checkpoint(db, job, 5, bytes=100 * MIB)
    later = needs.reckoned(db, job, Cache(tmp_path))
    assert later.written - fresh.written > 390 * MIB
    assert later.fetched == fresh.fetched


def test_what_is_cached_already_needs_no_room(db, tmp_path):
    job = a_job(db, a_team(db))
    cache = Cache(tmp_path)
    cold = needs.reckoned(db, job, cache)
    version = db.get_one(DatasetVersion, job.dataset_version_id)
    cache.place(version).parent.mkdir(parents=True)
    cache.place(version).write_bytes(b"rows")
    warm = needs.reckoned(db, job, cache)
    assert cold.here - warm.here == version.bytes
    assert cold.anywhere == warm.anywhere


def test_the_commands_tell_what_workers_have_of_disk(clean, stack):
    from shared.commands import doctor

    with transaction() as db:
        disk = {"free": 800 * MIB, "floor": 5 * room.GIB, "total": 80 * room.GIB, "room": 0}
        a_worker(db, host="big-iron", disk=disk, note=room.why_short(disk, "big-iron"))
    told = {fact.name.strip(): fact for fact in doctor.workers()}
    assert told["its disk"].value == "0.8 GiB free of 80 GiB, floor 5 GiB, room for a job 0 MiB"
    assert told["its disk"].mend.startswith(
        "The worker has stopped claiming: 0.8 GiB free of its 5 GiB floor."
    )
    with transaction() as db:
        assert workers.takers(db) == []
        assert db.exec(select(Attempt)).all() == db.exec(select(Checkpoint)).all() == []
