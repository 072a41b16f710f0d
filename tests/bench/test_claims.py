"""What a claim costs as the queue grows: twenty teams, one claim after another."""

import os
import time

import pytest
from sqlalchemy import text
from sqlmodel import SQLModel, select

from shared import jobs, positions, ranking
from shared.tables import Job, Kind, State
from tests.bench import sections
from tests.factories import a_job, a_team, a_worker

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

CLAIMS = 100
ROWS: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def report():
    """The table, once every length was measured."""
    yield
    sections.write(
        "queue.md",
        "A claim as the queue grows",
        f"Twenty teams, one claimer, {CLAIMS} claims of a worker with slots to spare; what the sweep's count and the place of"
        f" the last job of a team cost. {os.cpu_count()} cores, beside the embedded Postgres.\n\n"
        "| queued jobs | claim p50 ms | claim p99 ms | the sweep's count ms | place of the last job ms |\n"
        "|--:|--:|--:|--:|--:|\n" + "\n".join(ROWS),
    )


@pytest.mark.parametrize("queued", [100, 10_000, 1_000_000])
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
    positions.position(db, last)
    placed = time.perf_counter() - started
    p50, p99 = (sections.percentile(taken, share) * 1000 for share in (0.5, 0.99))
    ROWS.append(f"| {queued:,} | {p50:.1f} | {p99:.1f} | {counted * 1000:.1f} | {placed * 1000:.1f} |")


def fill(db, teams, many, first=1):
    """That many queued jobs, dealt out among the teams."""
    seed = a_job(db, teams[0], Kind.EXPORT, state=State.PAUSED)
    columns = [
        c.name
        for c in SQLModel.metadata.tables["jobs"].columns
        if c.name not in ("id", "team_id", "rank_at", "state")
    ]
    deal = text(f"""
        INSERT INTO jobs (id, team_id, rank_at, state, {", ".join(columns)})
        SELECT 'export-' || n, (CAST(:teams AS text[]))[1 + n % 20], now() + n * interval '1 second', 'queued',
               {", ".join(columns)}
          FROM jobs, generate_series(CAST(:first AS int), CAST(:last AS int)) n WHERE id = :seed""")
    known = {"teams": [team.id for team in teams], "first": first, "last": first + many - 1, "seed": seed.id}
    db.connection().execute(text("SET LOCAL statement_timeout = 0"))
    db.connection().execute(deal, known)
    if many > 1:
        db.connection().execute(text("ANALYZE jobs"))
