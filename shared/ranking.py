"""Who is next: the order in which queued jobs are claimed.

Within a team the lowest `rank_at` goes first: the time of submission, moved by priority, so that age
always wins in the end. Between teams the head of the team that used least of this slot class in the
last day goes first. A job with a pause (`run_after`) or an unfinished dependency is passed over.

A job is passed over where its team, or everybody together, would occupy more slots than its cap; where
the worker lacks what it needs, or room for it on its disk; and where too few of the worker's slots are free.
So that a wide job is not passed over for ever, the roomiest worker takes nothing else once it is its turn and
it has waited for long.

Costs O(teams × log n) of the queue's length: an index serves each team's head.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlmodel import Session, select

from shared.resources import FITS, TAKES, Offer
from shared.room import HAS_ROOM, UNTOLD
from shared.tables import Job, State

WINDOW_SECONDS = 86_400
LEAST_SECONDS = 60  # an attempt counts at least this much, so that teams alternate at once
PATIENCE_SECONDS = 600  # after which a wide job whose turn it is has a worker's slots kept free for it
ANY = Offer(slots=1_000_000, gpus=1_000_000, gpu_bytes=2**62)  # for the order alone

READY = """
    j.state = 'queued' AND j.slot = :slot AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
    AND NOT EXISTS (SELECT FROM job_dependencies d JOIN jobs o ON o.id = d.waits_for_id
                     WHERE d.job_id = j.id AND o.state <> 'succeeded')"""

HELD = """
    SELECT a.team_id, sum(jsonb_array_length(a.slots)) AS slots
      FROM attempts a WHERE a.ended_at IS NULL AND a.slots ->> 0 = :slot GROUP BY a.team_id"""

USED = """
    SELECT a.team_id, sum(jsonb_array_length(a.slots) * greatest(:least, extract(epoch FROM
             coalesce(a.ended_at, clock_timestamp())
             - greatest(a.started_at, clock_timestamp() - make_interval(secs => :window))))) AS seconds
      FROM attempts a
     WHERE (a.ended_at IS NULL OR a.ended_at > clock_timestamp() - make_interval(secs => :window))
       AND a.slots ->> 0 = :slot
     GROUP BY a.team_id"""

HEADS = f"""
    WITH RECURSIVE teams AS (
        (SELECT team_id FROM jobs WHERE state = 'queued' AND slot = :slot ORDER BY team_id LIMIT 1)
        UNION ALL
        SELECT (SELECT n.team_id FROM jobs n
                 WHERE n.state = 'queued' AND n.slot = :slot AND n.team_id > teams.team_id
                 ORDER BY n.team_id LIMIT 1)
          FROM teams WHERE teams.team_id IS NOT NULL
    ), used AS ({USED}
    ), held AS ({HELD}
    ), room AS (
        SELECT teams.team_id,
               CASE WHEN :capped THEN
                   least(:free, c.slots - coalesce(h.slots, 0),
                         (SELECT e.slots FROM caps e WHERE e.slot = :slot AND e.team_id IS NULL)
                         - coalesce((SELECT sum(slots) FROM held), 0))
               ELSE :free END AS slots
          FROM teams
          LEFT JOIN caps c ON c.slot = :slot AND c.team_id = teams.team_id
          LEFT JOIN held h ON h.team_id = teams.team_id
         WHERE teams.team_id IS NOT NULL
    )
    SELECT head.id, room.team_id, coalesce(used.seconds, 0) AS seconds, head.takes,
           extract(epoch FROM clock_timestamp() - greatest(head.created_at, head.run_after)) AS waited
      FROM room
     CROSS JOIN LATERAL (SELECT j.id, j.rank_at, j.created_at, j.run_after, {TAKES} AS takes FROM jobs j
                          WHERE room.slots > 0 AND j.team_id = room.team_id AND j.id <> ALL(:taken)
                            AND {TAKES} <= room.slots AND {FITS} AND {HAS_ROOM} AND {READY}
                          ORDER BY j.rank_at, j.id LIMIT 1) head
      LEFT JOIN used ON used.team_id = room.team_id
     ORDER BY seconds, head.rank_at, head.id"""  # noqa: S608 - constants of this file


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


def kept_for(db: Session, slot: str, place: Place) -> str | None:
    """The job for which free slots of this place are to be kept: its turn has come, it has waited for long,
    and it takes more than are free.
    """
    if place.free >= place.has.slots:
        return None
    turn = heads(db, slot, Place(place.has, place.has.slots, room=place.room))
    wide = turn and turn[0].takes > place.free and turn[0].waited > PATIENCE_SECONDS
    return turn[0].id if wide else None


def first_free(db: Session, slot: str, place: Place) -> tuple[Job, int] | None:
    """The next job, locked, and how many slots it takes. One that somebody else has locked just now (a
    cancel) is passed over.
    """
    taken: list[str] = []
    while found := heads(db, slot, place, taken):
        for head in found:
            row = (
                select(Job)
                .where(Job.id == head.id, Job.state == State.QUEUED)
                .with_for_update(skip_locked=True)
            )
            if job := db.exec(row.execution_options(populate_existing=True)).first():
                return job, head.takes
            taken.append(head.id)
    return None


def used(db: Session, slot: str) -> dict[str, float]:
    """{team: seconds of slots of that class that it really used within the last day}; to be shown, while turns go by
    seconds of which each attempt has `LEAST_SECONDS` at least.
    """
    known = {"slot": slot, "window": WINDOW_SECONDS, "least": 0}
    return {row.team_id: float(row.seconds) for row in db.connection().execute(text(USED), known)}


def waiting(db: Session, slot: str, most: int) -> int:
    """How many jobs of that slot class could be claimed now, counted up to `most`."""
    counted = text(f"SELECT count(*) FROM (SELECT FROM jobs j WHERE {READY} LIMIT :most) found")  # noqa: S608 - constants of this file
    return db.connection().execute(counted, {"slot": str(slot), "most": most}).scalar_one()
