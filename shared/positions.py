"""The place of a waiting job: how many jobs are claimed before it.

The claim gives the turn to the team that used least, so that one that used less than others catches up first. Reckoned:
every waiting job costs what is usual, and goes before a job of another team if its own team will have used less until
then, what runs included to its end. Where all jobs do take as long as is usual, a place is right but for one job of
each other team and as many jobs as there are slots (`tests/integration/test_positions.py` plays the claim); caps,
and jobs to come, are not foreseen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlmodel import Session

from shared.ranking import LEAST_SECONDS, READY, WINDOW_SECONDS
from shared.tables import Job, Slot, State

LATELY_SECONDS = 14 * 86_400
PAST = 200  # ended attempts from which the usual length is told
MOST_COUNTED = 10_000  # jobs of a team before one of its own
EQUAL = 1e-3  # uses that differ by less of a job are the same

USUAL = """
    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY took) AS seconds,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY took * width) AS cost
      FROM (SELECT extract(epoch FROM ended_at - started_at)::float AS took, jsonb_array_length(slots) AS width
              FROM attempts
             WHERE outcome = 'succeeded' AND ended_at > statement_timestamp() - make_interval(secs => :lately)
               AND slots ->> 0 = :slot
             ORDER BY ended_at DESC LIMIT :past) ended"""

USES = """
    SELECT team_id, sum(width * gone) AS used, sum(width * greatest(:least, gone + still)) AS counted
      FROM (SELECT a.team_id, jsonb_array_length(a.slots) AS width, t.gone,
                   CASE WHEN a.ended_at IS NULL THEN greatest(0, coalesce(
                       (SELECT (j.progress ->> 'eta_seconds')::float FROM jobs j WHERE j.id = a.job_id),
                       :usual - t.gone)) ELSE 0 END AS still
              FROM attempts a
             CROSS JOIN LATERAL (SELECT extract(epoch FROM coalesce(a.ended_at, statement_timestamp())
                       - greatest(a.started_at, statement_timestamp() - make_interval(secs => :window)))::float) t (gone)
             WHERE (a.ended_at IS NULL OR a.ended_at > statement_timestamp() - make_interval(secs => :window))
               AND a.slots ->> 0 = :slot) lately
     GROUP BY team_id"""

OWN = f"""
    SELECT one.id, (SELECT count(*) FROM (
               SELECT FROM jobs j WHERE j.team_id = :team AND (j.rank_at, j.id) < (one.rank_at, one.id) AND {READY}
                LIMIT :most) found) AS own
      FROM unnest(CAST(:ids AS text[]), CAST(:ranks AS timestamptz[])) AS one (id, rank_at)"""  # noqa: S608 - constants of this file

OTHERS = f"""
    WITH RECURSIVE teams AS (
        (SELECT j.team_id FROM jobs j WHERE {READY} ORDER BY j.team_id LIMIT 1)
        UNION ALL
        SELECT (SELECT j.team_id FROM jobs j WHERE {READY} AND j.team_id > teams.team_id ORDER BY j.team_id LIMIT 1)
          FROM teams WHERE teams.team_id IS NOT NULL
    )
    SELECT teams.team_id, coalesce(uses.seconds, 0) AS seconds, head.rank_at, head.id, line.waiting
      FROM teams
      LEFT JOIN unnest(CAST(:teams AS text[]), CAST(:uses AS float[])) AS uses (team_id, seconds)
             ON uses.team_id = teams.team_id
     CROSS JOIN LATERAL (SELECT j.rank_at, j.id FROM jobs j WHERE j.team_id = teams.team_id AND {READY}
                          ORDER BY j.rank_at, j.id LIMIT 1) head
     CROSS JOIN LATERAL (SELECT count(*) AS waiting FROM (
               SELECT FROM jobs j WHERE j.team_id = teams.team_id AND {READY}
                LIMIT greatest(0, least(:most, :own + 1 + ceil((:mine - coalesce(uses.seconds, 0)) / :cost)))::int
          ) found) line
     WHERE teams.team_id <> :team"""  # noqa: S608 - constants of this file


@dataclass(frozen=True)
class Usual:
    """How long jobs of a class took lately: the median in seconds, None without any; and in seconds of slots, which
    the claim counts, with its least.
    """

    seconds: float | None
    cost: float


def usual(db: Session, slot: Slot | str) -> Usual:
    """By the last attempts that succeeded, whoever's they were."""
    known = {"slot": str(slot), "lately": LATELY_SECONDS, "past": PAST}
    found = db.connection().execute(text(USUAL), known).one()
    return Usual(found.seconds, max(found.cost or 0.0, LEAST_SECONDS))


@dataclass(frozen=True)
class Ahead:
    """How many jobs go before one: of its own team, up to `MOST_COUNTED`, and of others."""

    own: int
    others: int

    @property
    def position(self) -> int:
        """Counted from 1."""
        return self.own + self.others + 1


@dataclass(frozen=True)
class Use:
    """Seconds of slots that a team used within the last day; and as its turns count them, with what runs to its end."""

    used: float = 0.0
    counted: float = 0.0


def uses(db: Session, slot: Slot | str, usually: Usual) -> dict[str, Use]:
    """{team: its use of that class}."""
    known = {
        "slot": str(slot),
        "window": WINDOW_SECONDS,
        "least": LEAST_SECONDS,
        "usual": usually.seconds or 0.0,
    }
    return {row.team_id: Use(row.used, row.counted) for row in db.connection().execute(text(USES), known)}


def ahead(db: Session, waiting: Sequence[Job], usually: Usual, used: dict[str, Use]) -> dict[str, Ahead]:
    """{job: what goes before it} of jobs of one team and class of slot, in the same two queries for any number."""
    if not waiting:
        return {}
    team_id = waiting[0].team_id
    known = {"slot": str(waiting[0].slot), "team": team_id, "most": MOST_COUNTED}
    asked = {"ids": [job.id for job in waiting], "ranks": [job.rank_at for job in waiting]}
    own = {row.id: row.own for row in db.connection().execute(text(OWN), known | asked)}
    mine = used.get(team_id, Use()).counted
    asked = {
        "teams": list(used),
        "uses": [use.counted for use in used.values()],
        "mine": mine,
        "cost": usually.cost,
    }
    others = list(db.connection().execute(text(OTHERS), known | asked | {"own": max(own.values())}))
    told = {}
    for job in waiting:
        first = 0
        for team in others:
            turns = own[job.id] + (mine - team.seconds) / usually.cost
            first += min(team.waiting, before(turns, (team.rank_at, team.id) < (job.rank_at, job.id)))
        told[job.id] = Ahead(own[job.id], first)
    return told


def before(turns: float, is_older: bool) -> int:
    """How many jobs a team may start until it has used as much as another that has so many turns; where both have used
    the same, the older job goes.
    """
    equal = abs(turns - round(turns)) < EQUAL
    return max(0, round(turns) + is_older if equal else math.ceil(turns))


def of(db: Session, waiting: Sequence[Job]) -> dict[str, int]:
    """{job: its place in the queue, counted from 1} of jobs of one team."""
    told = {}
    for slot in Slot:
        if same := [job for job in waiting if job.slot == slot]:
            usually = usual(db, slot)
            found = ahead(db, same, usually, uses(db, slot, usually))
            told |= {job_id: before.position for job_id, before in found.items()}
    return told


def place(db: Session, job: Job) -> int | None:
    """Its place in the queue, counted from 1; None: it is not in it."""
    return of(db, [job])[job.id] if job.state == State.QUEUED else None
