"""Jobs at the head of the queue that cannot be claimed here or now: they hold nobody up, and their time comes."""

import json
from datetime import timedelta

import pytest
from sqlalchemy import text, update
from sqlmodel import SQLModel, col

from shared import jobs, ranking
from shared.resources import Offer
from shared.tables import Job, Kind, Outcome, Slot, State
from tests.factories import a_job, a_team, a_worker

MANY = 3_000


@pytest.fixture
def team(db):
    return a_team(db)


@pytest.fixture
def worker(db):
    return a_worker(db)


def queued(db, team, **fields):
    return a_job(db, team, Kind.INFER, **fields)


def claimed(db, worker, slot="compute"):
    attempt = jobs.claim(db, worker.id, slot)
    return attempt.job_id if attempt else None


def copied(db, job, many):
    """That many jobs like it, which wait for what it waits for."""
    names = [c.name for c in SQLModel.metadata.tables["jobs"].columns if c.name != "id"]
    listed = ", ".join(names)
    db.connection().execute(
        text(f"INSERT INTO jobs (id, {listed}) SELECT id || '-' || n, {listed} FROM jobs, generate_series(1, :many) n WHERE id = :id"),
        {"many": many, "id": job.id},
    )  # fmt: skip
    db.connection().execute(
        text("INSERT INTO job_dependencies SELECT job_id || '-' || n, waits_for_id FROM job_dependencies, generate_series(1, :many) n WHERE job_id = :id"),
        {"many": many, "id": job.id},
    )  # fmt: skip
    db.connection().execute(text("ANALYZE jobs, job_dependencies"))


def jobs_looked_at(db, place):
    """How many rows a claim reads until it knows the next job."""
    known = {"slot": "compute", "taken": [], "window": ranking.WINDOW_SECONDS, "least": ranking.LEAST_SECONDS}
    known |= place.values | {"most": ranking.MOST_LET_IN}
    return sum(rows_read(plan(db, query, known)) for query in (ranking.LET_IN, ranking.HEADS))


def plan(db, query, known):
    """What Postgres did for it."""
    told = db.connection().execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"), known).scalar_one()
    return (json.loads(told) if isinstance(told, str) else told)[0]["Plan"]


def rows_read(node):
    """Of jobs, in this part of the plan and those below."""
    each = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    own = each * node["Actual Loops"] if node.get("Relation Name") == "jobs" else 0
    return own + sum(rows_read(part) for part in node.get("Plans", ()))


def waits_for_an_import(db, team, job_id="batch_held"):
    imports = a_job(db, team, Kind.IMPORT)
    job = Job(id=job_id, team_id=team.id, kind=Kind.INFER, slot=Slot.COMPUTE)
    return jobs.enter(db, job, "somebody", {imports.id}), imports


def rests(db, team, worker):
    job = queued(db, team)
    attempt = jobs.claim(db, worker.id, "compute")
    assert attempt
    jobs.finish(db, attempt.lease_id, Outcome.CRASHED, reason="It died.")
    assert job.run_after
    return job


@pytest.mark.parametrize("why", ["fits nowhere here", "finds no room", "rests", "waits"])
def test_what_is_blocked_at_the_head_is_not_looked_at_by_every_claim(db, team, worker, why):
    if why == "rests":
        job = rests(db, team, worker)
    elif why == "waits":
        job, _ = waits_for_an_import(db, team)
    else:
        job = queued(db, team, resources={"processes": 1, "gpus": 8 * (why == "fits nowhere here")})
        job.disk_bytes = 10**15
        worker.disk = {"room": 10**9}
    job.rank_at -= timedelta(days=1)
    db.flush()
    copied(db, job, MANY)
    mine = queued(db, team)
    place = ranking.Place(Offer(slots=1), free=1, room=10**9)
    assert [head.id for head in ranking.heads(db, "compute", place)] == [mine.id]
    assert jobs_looked_at(db, place) < 50
    assert claimed(db, worker) == mine.id
    assert claimed(db, worker) is None


def test_a_job_whose_rest_is_over_is_let_in_and_has_waited_since(db, team, worker):
    job = rests(db, team, worker)
    job.created_at -= timedelta(hours=1)
    db.flush()
    assert claimed(db, worker) is None
    job.run_after = jobs.clock(db) - timedelta(seconds=5)
    db.flush()
    ranking.let_in(db, "light")
    assert ranking.waiting(db, "compute", 9) == 0
    ranking.let_in(db, "compute")
    assert ranking.waiting(db, "compute", 9) == 1
    assert 5 <= ranking.heads(db, "compute")[0].waited < 60
    assert claimed(db, worker) == job.id


def test_a_job_that_was_paused_while_it_waited_waits_on_after(db, team, worker):
    job, imports = waits_for_an_import(db, team)
    jobs.pause(db, job, "somebody")
    jobs.resume(db, job, "somebody")
    assert not job.ready
    assert claimed(db, worker) is None
    attempt = jobs.claim(db, worker.id, "light")
    assert attempt
    assert attempt.job_id == imports.id
    jobs.finish(db, attempt.lease_id, Outcome.SUCCEEDED)
    assert claimed(db, worker) == job.id


def test_a_job_that_was_paused_while_it_rested_goes_on_when_resumed(db, team, worker):
    job = rests(db, team, worker)
    jobs.pause(db, job, "somebody")
    jobs.resume(db, job, "somebody")
    assert claimed(db, worker) == job.id


def test_what_a_worker_of_the_release_before_leaves_behind_is_claimed(db, team, worker):
    job, imports = waits_for_an_import(db, team)
    done = update(Job).where(col(Job.id) == imports.id)
    db.exec(done.values(state=State.SUCCEEDED, finished_at=jobs.clock(db)))
    assert claimed(db, worker) is None
    ranking.release(db)
    assert claimed(db, worker) == job.id
    held, _ = waits_for_an_import(db, team, "batch_again")
    ranking.release(db)
    db.refresh(held)
    assert not held.ready


def test_a_job_never_stands_ready_while_it_waits_even_if_it_says_so(db, team, worker):
    job, _ = waits_for_an_import(db, team)
    job.ready = True
    db.flush()
    assert claimed(db, worker) is None
