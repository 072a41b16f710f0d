"""What a claim costs as the queue grows: twenty teams, one claim after another."""

import time

import pytest
from sqlalchemy import text
from sqlmodel import SQLModel

from shared import jobs, ranking
from shared.tables import Kind
from tests.factories import a_job, a_team, a_worker

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("queued", [100, 10_000, 100_000])
def test_claims(db, queued):
    worker = a_worker(db)
    teams = [a_team(db) for _ in range(20)]
    seed = a_job(db, teams[0], Kind.EXPORT)
    columns = [
        c.name for c in SQLModel.metadata.tables["jobs"].columns if c.name not in ("id", "team_id", "rank_at")
    ]
    many = text(f"""
        INSERT INTO jobs (id, team_id, rank_at, {", ".join(columns)})
        SELECT 'export-' || n, (CAST(:teams AS text[]))[1 + n % 20], now() + n * interval '1 second', {", ".join(columns)}
          FROM jobs, generate_series(1, :many) n WHERE id = :seed""")
    known = {"teams": [team.id for team in teams], "many": queued, "seed": seed.id}
    db.connection().execute(many, known)
    db.connection().execute(text("ANALYZE jobs"))
    taken = []
    for _ in range(100):
        started = time.perf_counter()
        assert jobs.claim(db, worker.id, "light")
        taken.append(time.perf_counter() - started)
    taken.sort()
    started = time.perf_counter()
    ranking.waiting(db, "light", 20)
    counted = time.perf_counter() - started
    print(
        f"{queued:>8} queued: claim p50 {taken[50] * 1000:.1f} ms, p99 {taken[98] * 1000:.1f} ms; "
        f"sweep's count {counted * 1000:.1f} ms"
    )
