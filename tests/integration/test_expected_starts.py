"""When a waiting job is expected to start: by the workers that could hold it, what runs there, and the caps."""

import math
from datetime import timedelta

import pytest

from shared import caps, jobs, workers
from shared.room import GIB
from shared.tables import Kind, Slot
from tests.factories import a_job, a_team, a_worker
from web import waiting
from web.waiting import reckoned

GPU = {"name": "A GPU", "memory_bytes": 40 * 10**9}
UNKNOWN = math.inf


@pytest.fixture
def team(db):
    return a_team(db)


def queued(db, team, **needs):
    return a_job(db, team, Kind.INFER, resources={"processes": 1} | needs)


def busy(db, team, worker, *lefts):
    """Jobs that run on the worker and say how long they will still take."""
    for left in lefts:
        job = queued(db, team)
        assert jobs.claim(db, worker.id, "compute")
        job.progress = {"eta_seconds": left}
    db.flush()


def told(db, job):
    found = waiting.outlook(db, job)
    return found.reason, found.seconds


def test_a_free_slot_where_it_does_not_fit_is_none_of_its_own(db, team):
    busy(db, team, a_worker(db, slots={"compute": 1}, devices=[GPU]), 7200)
    a_worker(db, slots={"compute": 1})
    job = queued(db, team, gpus=1)
    assert told(db, job) == ("Every compute slot that could hold it is taken; it is next.", 7200)


def test_a_wide_job_starts_once_one_worker_has_its_slots(db, team):
    busy(db, team, a_worker(db, slots={"compute": 2}), 3600)
    busy(db, team, a_worker(db, slots={"compute": 2}), 1800, 60)
    busy(db, team, a_worker(db, slots={"compute": 2}), 900, 5400)
    job = queued(db, team, processes=2)
    assert told(db, job) == ("It takes 2 slots of one worker at once, and none has as many free.", 1800)


def test_a_slot_of_a_worker_that_takes_no_jobs_is_not_waited_for(db, team):
    drains, works = a_worker(db, slots={"compute": 1}), a_worker(db, slots={"compute": 1})
    busy(db, team, drains, 60)
    busy(db, team, works, 600)
    workers.drain(db, drains.id)
    job = queued(db, team)
    assert told(db, job)[1] == 600
    works.note = "has stopped claiming: its disk is short"
    db.flush()
    reason, seconds = told(db, job)
    assert reason.startswith("Every worker that could run it takes no jobs just now.")
    assert seconds is None


def test_a_slot_of_a_worker_without_room_on_its_disk_is_not_waited_for(db, team):
    disk = {"free": 9 * GIB, "floor": GIB, "total": 90 * GIB}
    a_worker(db, slots={"compute": 1}, disk=disk | {"room": GIB})
    busy(db, team, a_worker(db, slots={"compute": 1}, disk=disk | {"room": 8 * GIB}), 600)
    job = queued(db, team)
    job.disk_bytes = 4 * GIB
    assert told(db, job) == ("Every compute slot that could hold it is taken; it is next.", 600)


def test_a_resting_job_that_no_worker_takes_is_promised_nothing(db, team):
    workers.drain(db, a_worker(db).id)
    job = queued(db, team)
    job.run_after = jobs.clock(db) + timedelta(minutes=1)
    reason, seconds = told(db, job)
    assert reason.startswith("It failed in a way that passes, and rests")
    assert seconds is None


def test_under_a_lowered_cap_the_first_to_end_make_no_room(db, team):
    worker = a_worker(db)
    busy(db, team, worker, 100, 200, 300)
    caps.put(db, Slot.COMPUTE, 2, team.id)
    job = queued(db, team)
    assert told(db, job)[1] == 200
    caps.put(db, Slot.COMPUTE, None, team.id)
    assert told(db, job) == ("A slot is free; it starts within moments.", 0)
    caps.put(db, Slot.COMPUTE, 1)
    assert told(db, job)[1] == 300


def test_a_job_wider_than_the_cap_of_all_is_promised_nothing(db, team):
    a_worker(db)
    caps.put(db, Slot.COMPUTE, 1)
    assert told(db, queued(db, team, processes=2))[1] is None


@pytest.mark.parametrize(
    ("slots", "before", "takes", "starts"),
    [
        ([[0.0]], 0, 1, 0),
        ([[50.0]], 0, 1, 50),
        ([[50.0, 80.0]], 0, 2, 80),
        ([[50.0], [80.0]], 0, 2, UNKNOWN),
        ([[50.0]], 2, 1, 70),
        ([[0.0, 0.0], [0.0, 0.0]], 2, 2, 10),
        ([[0.0, 35.0]], 5, 1, 40),
        ([[0.0, 35.0]], 1_000_005, 1, 5_000_040),
        ([[UNKNOWN]], 0, 1, UNKNOWN),
        ([[UNKNOWN, 70.0]], 0, 1, 70),
        ([[]], 0, 1, UNKNOWN),
        ([], 0, 1, UNKNOWN),
    ],
)  # fmt: skip
def test_a_start_is_reckoned_from_the_slots_that_get_free(slots, before, takes, starts):
    named = {f"worker-{number}": lefts for number, lefts in enumerate(slots)}
    assert reckoned(named, dict.fromkeys(named, takes), before, usual=10.0) == starts


def test_without_a_usual_length_only_what_waits_for_no_other_job_is_reckoned():
    assert reckoned({"a": [0.0, 30.0]}, {"a": 1}, 1, UNKNOWN) == 30
    assert reckoned({"a": [0.0, 30.0]}, {"a": 1}, 2, UNKNOWN) == UNKNOWN
