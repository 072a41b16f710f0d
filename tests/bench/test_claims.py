"""What a claim costs: as the queue grows, behind jobs that cannot be claimed, and among many claimers."""

import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, SQLModel, select

from shared import jobs, positions, ranking
from shared.columns import now
from shared.db import SESSION_LIMITS, transaction
from shared.settings import settings
from shared.tables import Job, Kind, State
from tests.bench import sections
from tests.bench.sections import sized
from tests.factories import a_job, a_team, a_worker
from tests.services import empty

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

CLAIMS = sized(100, 10)
CLAIMERS, TURNS, PROCESSES, CONNECTIONS, STARTING_SECONDS = sized((200, 5, 8, 22, 30), (8, 2, 2, 4, 15))
LENGTHS = sized((100, 10_000, 1_000_000), (100,))
ROWS: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def report():
    """The table, once every length was measured."""
    yield
    if len(ROWS) < len(LENGTHS):
        return
    sections.write(
        "queue.md",
        "A claim as the queue grows",
        f"Twenty teams, one claimer, {CLAIMS} claims of a worker with slots to spare; what the sweep's count and the place of"
        f" the last job of a team cost. {os.cpu_count()} cores, beside the embedded Postgres.\n\n"
        "| queued jobs | claim p50 ms | claim p99 ms | the sweep's count ms | place of the last job ms |\n"
        "|--:|--:|--:|--:|--:|\n" + "\n".join(ROWS),
    )


@pytest.mark.parametrize("queued", LENGTHS)
def test_claims(db, queued):
    worker = a_worker(db)
    teams = [a_team(db) for _ in range(20)]
    fill(db, teams, queued)
    taken = []
    for _ in range(CLAIMS):
        started = time.perf_counter()
        assert jobs.claim(db, worker.id, "light")
        taken.append(time.perf_counter() - started)
    started = time.perf_counter()
    ranking.waiting(db, "light", 20)
    counted = time.perf_counter() - started
    fill(db, teams, 1, first=queued + 1)
    last = db.exec(select(Job).where(Job.state == State.QUEUED, Job.id == f"export-{queued + 1}")).one()
    started = time.perf_counter()
    positions.of(db, [last])
    placed = time.perf_counter() - started
    p50, p99 = (sections.percentile(taken, share) * 1000 for share in (0.5, 0.99))
    ROWS.append(f"| {queued:,} | {p50:.1f} | {p99:.1f} | {counted * 1000:.1f} | {placed * 1000:.1f} |")


BLOCKED = {  # why a job is not claimed: its columns
    "fits no worker here": {"resources": {"processes": 1, "gpus": 8}},
    "rests for an hour": {"ready": False, "run_after": now() + timedelta(hours=1)},
    "waits for another": {"ready": False},
}


@pytest.mark.usefixtures("clean")
def test_claims_behind_jobs_that_cannot_be_claimed():
    rows = [behind(why, many) for why in BLOCKED for many in LENGTHS]
    sections.write(
        "queue.md",
        "A claim behind jobs that cannot be claimed",
        f"Twenty teams, one claimer, {CLAIMS} claims; so many jobs stand before the first that the worker may have."
        f" {os.cpu_count()} cores, beside the embedded Postgres.\n\n"
        "| what stands before it | jobs | claim p50 ms | claim p99 ms |\n|---|--:|--:|--:|\n"
        + "\n".join(rows),
    )


def behind(why, many):
    """The table's row for so many jobs of that kind."""
    with transaction() as db:
        worker = a_worker(db, devices=[])
        teams = [a_team(db) for _ in range(20)]
        fill(db, teams, many, slot="compute", **BLOCKED[why])
        fill(db, teams, 2 * CLAIMS, first=many + 1, slot="compute")
    taken = []
    for _ in range(CLAIMS):
        started = time.perf_counter()
        with transaction() as db:
            assert jobs.claim(db, worker.id, "compute")
        taken.append(time.perf_counter() - started)
    empty()
    p50, p99 = (sections.percentile(taken, share) * 1000 for share in (0.5, 0.99))
    return f"| {why} | {many:,} | {p50:.1f} | {p99:.1f} |"


@pytest.mark.usefixtures("clean")
def test_two_hundred_claimers_at_once():
    with transaction() as db:
        teams = [a_team(db) for _ in range(20)]
        fill(db, teams, 10_000)
        workers = [a_worker(db, slots={"light": TURNS}).id for _ in range(CLAIMERS)]
    each = CLAIMERS // PROCESSES
    starts = time.time() + STARTING_SECONDS
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        shares = [workers[n : n + each] for n in range(0, CLAIMERS, each)]
        found = list(pool.map(crowd, shares, [starts] * PROCESSES))
    taken = [seconds for part, _, _ in found for seconds in part]
    late = sum(count for _, count, _ in found)
    p50, p99 = (sections.percentile(taken, share) * 1000 for share in (0.5, 0.99))
    sections.write(
        "queue.md",
        "Two hundred claimers at once",
        f"{CLAIMERS} workers in {PROCESSES} processes, {TURNS} claims each, all at once, over {PROCESSES * CONNECTIONS} connections;"
        " 10,000 jobs of twenty teams are queued. From the wish to the commit, with the wait for a connection and for the lock."
        f" {os.cpu_count()} cores, shared with the claimers.\n\n"
        "| claims a second | p50 ms | p99 ms | asked again as their turn did not come within 10 s |\n|--:|--:|--:|--:|\n"
        f"| {len(taken) / (max(end for _, _, end in found) - starts):.0f} | {p50:.0f} | {p99:.0f} | {late} |",
    )


def crowd(workers, starts):
    """These workers' claims, in a process of their own: (seconds of each, how often the lock came too late, the end)."""
    over = create_engine(
        settings().database_url, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=300,
        connect_args={"options": SESSION_LIMITS},
    )  # fmt: skip
    taken, late = [], []

    def work(worker_id):
        time.sleep(max(0.0, starts - time.time()))
        for _ in range(TURNS):
            started = time.perf_counter()
            while not claimed(over, worker_id):
                late.append(worker_id)
            taken.append(time.perf_counter() - started)

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(work, workers))
    return taken, len(late), time.time()


def claimed(over, worker_id):
    """Whether the lock came in time; the worker has one job more then."""
    try:
        with Session(over) as db, db.begin():
            assert jobs.claim(db, worker_id, "light")
    except OperationalError:
        return False
    return True


def fill(db, teams, many, first=1, **fields):
    """That many queued jobs, dealt out among the teams."""
    rests = {name: fields.pop(name, default) for name, default in (("ready", True), ("run_after", None))}
    seed = a_job(db, teams[0], Kind.EXPORT, state=State.PAUSED, **fields)
    own = {"id", "team_id", "rank_at", "state", *rests}
    columns = [c.name for c in SQLModel.metadata.tables["jobs"].columns if c.name not in own]
    deal = text(f"""
        INSERT INTO jobs (id, team_id, rank_at, state, ready, run_after, {", ".join(columns)})
        SELECT 'export-' || n, (CAST(:teams AS text[]))[1 + n % 20], now() + n * interval '1 second', 'queued',
               :ready, CAST(:run_after AS timestamptz), {", ".join(columns)}
          FROM jobs, generate_series(CAST(:first AS int), CAST(:last AS int)) n WHERE id = :seed""")
    known = {"teams": [team.id for team in teams], "first": first, "last": first + many - 1, "seed": seed.id}
    known |= rests
    db.connection().execute(text("SET LOCAL statement_timeout = 0"))
    db.connection().execute(deal, known)
    if many > 1:
        db.connection().execute(text("ANALYZE jobs"))
