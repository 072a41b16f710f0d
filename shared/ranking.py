"""Who is next: the order in which queued jobs are claimed.

Within a team the lowest `rank_at` goes first: the time of submission, moved by priority, so that age
always wins in the end. Between teams the head of the team that used least of this slot class in the
last day goes first. A job that rests (`run_after`) or waits for another is not `ready`: it stands apart from the
others until its time comes (`let_in`) or the other has succeeded (`shared.settling`).

A job is passed over where its team, or everybody together, would occupy more slots than its cap; where
the worker lacks what it needs, or room for it on its disk; and where too few of the worker's slots are free.
So that a wide job is not passed over for ever, the roomiest worker takes nothing else once it is its turn and
it has waited for long.

Costs O(teams × needs × log n) of the queue's length: an index serves the first of each team's jobs with the same
needs, so that none is looked at only because it fits no worker here.
"""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text
from sqlmodel import Session, select

from shared.resources import FITS, TAKES, Offer
from shared.room import HAS_ROOM, UNTOLD
from shared.tables import Job, Slot, State

WINDOW_SECONDS = 86_400
LEAST_SECONDS = 60  # an attempt counts at least this much, so that teams alternate at once
PATIENCE_SECONDS = 600  # after which a wide job whose turn it is has a worker's slots kept free for it
ANY = Offer(slots=1_000_000, gpus=1_000_000, gpu_bytes=2**62)  # for the order alone

MOST_LET_IN = 1_000  # jobs at once whose rest is over

# no condition that an index is to serve may name clock_timestamp(), which changes from row to row
READY = "j.state = 'queued' AND j.ready AND j.slot = :slot"
SHAPE = "j.team_id, j.resources, coalesce(j.disk_bytes, 0)"

LET_IN = """
    UPDATE jobs SET ready = true WHERE id IN (
        SELECT id FROM jobs WHERE state = 'queued' AND NOT ready AND slot = :slot AND run_after <= statement_timestamp()
         ORDER BY run_after LIMIT :most FOR UPDATE SKIP LOCKED)"""

RELEASE = """
    UPDATE jobs SET ready = true WHERE id IN (
        SELECT j.id FROM jobs o
          JOIN job_dependencies d ON d.waits_for_id = o.id
          JOIN jobs j ON j.id = d.job_id AND j.state = 'queued' AND NOT j.ready AND j.run_after IS NULL
         WHERE o.state = 'succeeded' AND o.swept_at IS NULL AND o.finished_at > statement_timestamp() - interval '1 hour'
           AND NOT EXISTS (SELECT FROM job_dependencies e JOIN jobs p ON p.id = e.waits_for_id
                            WHERE e.job_id = j.id AND p.state <> 'succeeded')
           FOR UPDATE OF j SKIP LOCKED)"""

HELD = """
    SELECT a.team_id, sum(jsonb_array_length(a.slots)) AS slots
      FROM attempts a WHERE a.ended_at IS NULL AND a.slots ->> 0 = :slot GROUP BY a.team_id"""

USED = """
    SELECT a.team_id, sum(jsonb_array_length(a.slots) * greatest(:least, extract(epoch FROM
             coalesce(a.ended_at, statement_timestamp())
             - greatest(a.started_at, statement_timestamp() - make_interval(secs => :window))))) AS seconds
      FROM attempts a
     WHERE (a.ended_at IS NULL OR a.ended_at > statement_timestamp() - make_interval(secs => :window))
       AND a.slots ->> 0 = :slot
     GROUP BY a.team_id"""

# the first of a shape is sought between two ends, not by equality, so that no other index will do
HEADS = f"""
    WITH RECURSIVE shapes (team_id, resources, disk_bytes) AS (
        (SELECT {SHAPE} FROM jobs j WHERE {READY} ORDER BY {SHAPE} LIMIT 1)
        UNION ALL
        SELECT following.* FROM shapes s
         CROSS JOIN LATERAL (
               SELECT {SHAPE} FROM jobs j WHERE {READY} AND ({SHAPE}) > (s.team_id, s.resources, s.disk_bytes)
                ORDER BY {SHAPE} LIMIT 1) following
    ), used AS ({USED}
    ), held AS ({HELD}
    ), room AS (
        SELECT teams.team_id,
               CASE WHEN :capped THEN
                   least(:free, c.slots - coalesce(h.slots, 0),
                         (SELECT e.slots FROM caps e WHERE e.slot = :slot AND e.team_id IS NULL)
                         - coalesce((SELECT sum(slots) FROM held), 0))
               ELSE :free END AS slots
          FROM (SELECT DISTINCT team_id FROM shapes) teams
          LEFT JOIN caps c ON c.slot = :slot AND c.team_id = teams.team_id
          LEFT JOIN held h ON h.team_id = teams.team_id
    ), heads AS (
        SELECT DISTINCT ON (j.team_id) j.team_id, {TAKES} AS takes, head.*
          FROM shapes j
          JOIN room ON room.team_id = j.team_id
         CROSS JOIN LATERAL (
               SELECT q.id, q.rank_at, greatest(q.created_at, q.run_after) AS since FROM jobs q
                WHERE q.state = 'queued' AND q.ready AND q.slot = :slot
                  AND (q.team_id, q.resources, coalesce(q.disk_bytes, 0)) >= (j.team_id, j.resources, j.disk_bytes)
                  AND (q.team_id, q.resources, coalesce(q.disk_bytes, 0)) <= (j.team_id, j.resources, j.disk_bytes)
                  AND q.id <> ALL(:taken) AND (q.run_after IS NULL OR q.run_after <= clock_timestamp())
                  AND NOT EXISTS (SELECT FROM job_dependencies d JOIN jobs o ON o.id = d.waits_for_id
                                   WHERE d.job_id = q.id AND o.state <> 'succeeded')
                ORDER BY q.team_id, q.resources, coalesce(q.disk_bytes, 0), q.rank_at, q.id LIMIT 1) head
         WHERE room.slots > 0 AND {TAKES} <= room.slots AND {FITS} AND {HAS_ROOM}
         ORDER BY j.team_id, head.rank_at, head.id
    )
    SELECT heads.id, heads.team_id, coalesce(used.seconds, 0) AS seconds, heads.takes,
           extract(epoch FROM clock_timestamp() - heads.since) AS waited
      FROM heads
      LEFT JOIN used ON used.team_id = heads.team_id
     ORDER BY seconds, heads.rank_at, heads.id"""  # noqa: S608 - constants of this file


@dataclass(frozen=True)
class Place:
    """Where a job may go: what a worker has, how many of its slots are free, and its room in bytes of disk; within
    the caps or not.
    """

    has: Offer
    free: int
    capped: bool = True
    room: int = UNTOLD

    @property
    def values(self) -> dict[str, int | bool]:
        """For `HEADS`."""
        return self.has.values | {"free": self.free, "capped": self.capped, "room": self.room}


ANYWHERE = Place(ANY, ANY.slots, capped=False)


def heads(db: Session, slot: str, place: Place = ANYWHERE, taken: list[str] | None = None) -> list[Any]:
    """Each team's next job for that place as (id, team_id, seconds used, slots that it takes, seconds waited),
    in the order of claiming, but for `taken`.
    """
    known = {"slot": slot, "taken": taken or [], "window": WINDOW_SECONDS, "least": LEAST_SECONDS}
    return list(db.connection().execute(text(HEADS), known | place.values).all())


def turns(db: Session, slot: str, place: Place) -> list[Any]:
    """`heads` for that place as if all of its slots were free."""
    return heads(db, slot, replace(place, free=place.has.slots))


def kept_for(turn: list[Any], place: Place) -> str | None:
    """The job for which free slots of this place are to be kept: its turn has come, it has waited for long,
    and it takes more than are free.
    """
    wide = turn and turn[0].takes > place.free and turn[0].waited > PATIENCE_SECONDS
    return turn[0].id if wide else None


def first_free(db: Session, slot: str, place: Place, turn: list[Any]) -> tuple[Job, int] | None:
    """The next job, locked, and how many slots it takes. One that somebody else has locked just now (a
    cancel) is passed over.
    """
    taken: list[str] = []
    found = turn if all(head.takes <= place.free for head in turn) else heads(db, slot, place)
    while found:
        for head in found:
            row = (
                select(Job)
                .where(Job.id == head.id, Job.state == State.QUEUED)
                .with_for_update(skip_locked=True)
            )
            if job := db.exec(row.execution_options(populate_existing=True)).first():
                return job, head.takes
            taken.append(head.id)
        found = heads(db, slot, place, taken)
    return None


def used(db: Session, slot: str) -> dict[str, float]:
    """{team: seconds of slots of that class that it really used within the last day}; to be shown, while turns go by
    seconds of which each attempt has `LEAST_SECONDS` at least.
    """
    known = {"slot": slot, "window": WINDOW_SECONDS, "least": 0}
    return {row.team_id: float(row.seconds) for row in db.connection().execute(text(USED), known)}


def let_in(db: Session, slot: Slot | str) -> None:
    """The jobs of that class whose rest is over may be claimed."""
    db.connection().execute(text(LET_IN), {"slot": str(slot), "most": MOST_LET_IN})


def release(db: Session) -> None:
    """The jobs that wait for nothing any more, since a worker of the release before ended the last, which says it to
    nobody, may be claimed.
    """
    db.connection().execute(text(RELEASE))


def waiting(db: Session, slot: str, most: int) -> int:
    """How many jobs of that slot class could be claimed now, counted up to `most`."""
    counted = text(f"SELECT count(*) FROM (SELECT FROM jobs j WHERE {READY} LIMIT :most) found")  # noqa: S608 - constants of this file
    return db.connection().execute(counted, {"slot": str(slot), "most": most}).scalar_one()
