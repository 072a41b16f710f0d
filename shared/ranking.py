"""Who is next: the order in which queued jobs are claimed.

Within a team the lowest `rank_at` goes first: the time of submission, moved by priority, so that age
always wins in the end. Between teams the head of the team that used least of this slot class in the
last day goes first. A job with a pause (`run_after`) or an unfinished dependency is passed over.

Costs O(teams × log n) of the queue's length: an index serves each team's head.
"""

from typing import Any

from sqlalchemy import text
from sqlmodel import Session, select

from shared.tables import Job, State

WINDOW_SECONDS = 86_400
LEAST_SECONDS = 60  # a running attempt counts at least this much, so that teams alternate at once

READY = """
    j.state = 'queued' AND j.slot = :slot AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
    AND NOT EXISTS (SELECT FROM job_dependencies d JOIN jobs o ON o.id = d.waits_for_id
                     WHERE d.job_id = j.id AND o.state <> 'succeeded')"""

HEADS = f"""
    WITH RECURSIVE teams AS (
        (SELECT team_id FROM jobs WHERE state = 'queued' AND slot = :slot ORDER BY team_id LIMIT 1)
        UNION ALL
        SELECT (SELECT n.team_id FROM jobs n
                 WHERE n.state = 'queued' AND n.slot = :slot AND n.team_id > teams.team_id
                 ORDER BY n.team_id LIMIT 1)
          FROM teams WHERE teams.team_id IS NOT NULL
    ), used AS (
        SELECT a.team_id, sum(CASE
                 WHEN a.ended_at IS NULL
                 THEN greatest(extract(epoch FROM clock_timestamp() - a.started_at), :least)
                 ELSE extract(epoch FROM a.ended_at - greatest(a.started_at, clock_timestamp() - make_interval(secs => :window)))
               END) AS seconds
          FROM attempts a
         WHERE (a.ended_at IS NULL OR a.ended_at > clock_timestamp() - make_interval(secs => :window))
           AND a.slots ->> 0 = :slot
         GROUP BY a.team_id
    )
    SELECT head.id, teams.team_id, coalesce(used.seconds, 0) AS seconds
      FROM teams
     CROSS JOIN LATERAL (SELECT j.id, j.rank_at FROM jobs j
                          WHERE j.team_id = teams.team_id AND j.id <> ALL(:taken) AND {READY}
                          ORDER BY j.rank_at, j.id LIMIT 1) head
      LEFT JOIN used ON used.team_id = teams.team_id
     ORDER BY seconds, head.rank_at, head.id"""  # noqa: S608 - constants of this file


def heads(db: Session, slot: str, taken: list[str] | None = None) -> list[Any]:
    """Each team's next job as (id, team_id, seconds used), in the order of claiming, but for `taken`."""
    known = {"slot": slot, "taken": taken or [], "window": WINDOW_SECONDS, "least": LEAST_SECONDS}
    return list(db.connection().execute(text(HEADS), known).all())


def first_free(db: Session, slot: str) -> Job | None:
    """The next job, locked. One that somebody else has locked just now (a cancel) is passed over."""
    taken: list[str] = []
    while found := heads(db, slot, taken):
        for head in found:
            row = (
                select(Job)
                .where(Job.id == head.id, Job.state == State.QUEUED)
                .with_for_update(skip_locked=True)
            )
            if job := db.exec(row.execution_options(populate_existing=True)).first():
                return job
            taken.append(head.id)
    return None


def position(db: Session, job: Job) -> int:
    """Its place in the queue if teams take turns from now on, counted from 1."""
    slot = str(job.slot)
    counted = text(f"""
        SELECT j.team_id, count(*) AS waiting, count(*) FILTER (WHERE (j.rank_at, j.id) < (:rank_at, :id)) AS before
          FROM jobs j WHERE {READY} AND j.id <> :id GROUP BY j.team_id""")  # noqa: S608 - constants of this file
    rows = db.connection().execute(counted, {"slot": slot, "rank_at": job.rank_at, "id": job.id}).all()
    turn = [head.team_id for head in heads(db, slot)]
    own = next((row.before for row in rows if row.team_id == job.team_id), 0)
    mine = turn.index(job.team_id) if job.team_id in turn else len(turn)
    others = sum(
        min(row.waiting, own + (turn.index(row.team_id) < mine))
        for row in rows
        if row.team_id != job.team_id and row.team_id in turn
    )
    return own + others + 1


def waiting(db: Session, slot: str, most: int) -> int:
    """How many jobs of that slot class could be claimed now, counted up to `most`."""
    counted = text(f"SELECT count(*) FROM (SELECT FROM jobs j WHERE {READY} LIMIT :most) found")  # noqa: S608 - constants of this file
    return db.connection().execute(counted, {"slot": str(slot), "most": most}).scalar_one()
