"""A job's timeline: every change of state with its time, who made it and why; and what each attempt cost."""

from datetime import datetime
from itertools import zip_longest
from typing import NamedTuple

from sqlmodel import Session, col, select

from shared.schedules import ACTOR as SCHEDULE
from shared.tables import ApiToken, Attempt, Event, Job, Schedule, State, Transition, User, Worker

ROLES = {"reaper": "the sweeper", "system": "the system", SCHEDULE: "a schedule"}


class Line(NamedTuple):
    """One change of state, or a request for one."""

    at: datetime
    state: State
    who: str
    said: str


class Try(NamedTuple):
    """An attempt: on which host, the last step that it reached, how many of its steps were done again."""

    attempt: Attempt
    host: str
    reached: int
    repeated: int | None  # None: nothing followed


def lines(db: Session, job: Job) -> list[Line]:
    """The timeline, oldest first, its actors in words."""
    told = db.exec(select(Transition).where(Transition.job_id == job.id).order_by(col(Transition.id))).all()
    known = words(db, job, {line.actor for line in told})
    return [
        Line(line.at, line.state, known.get(line.actor, line.actor), line.reason.removesuffix("."))
        for line in told
    ]


def words(db: Session, job: Job, actors: set[str]) -> dict[str, str]:
    """{actor: in words}; an actor that is none of ours stays as it is."""
    known = dict(ROLES)
    if job.schedule_id and (schedule := db.get(Schedule, job.schedule_id)):
        known[SCHEDULE] = f"the schedule «{schedule.name}»"
    known |= dict(db.exec(select(User.id, User.email).where(col(User.id).in_(actors))).all())
    tokens = db.exec(select(ApiToken.id, ApiToken.name).where(col(ApiToken.id).in_(actors)))
    known |= {token: f"the token «{name or token}»" for token, name in tokens}
    workers = db.exec(select(Worker.id, Worker.host).where(col(Worker.id).in_(actors)))
    return known | {worker: f"the worker on {host}" for worker, host in workers}


def tries(db: Session, job: Job) -> list[Try]:
    """The attempts, oldest first. What an attempt had reached beyond the start of the next is done again."""
    last = (
        select(Event.step)
        .where(Event.job_id == Attempt.job_id, Event.lease_id == Attempt.lease_id)
        .where(col(Event.step).is_not(None))
        .order_by(col(Event.seq).desc())
        .limit(1)
        .scalar_subquery()
    )
    found = select(Attempt, Worker.host, last).join(Worker).where(Attempt.job_id == job.id)
    made = db.exec(found.order_by(col(Attempt.number))).all()
    starts: list[int | None] = [attempt.start_step for attempt, _, _ in made]
    return [
        Try(attempt, host, reached := max(step or 0, attempt.start_step), repeated(reached, after))
        for (attempt, host, step), after in zip_longest(made, starts[1:])
    ]


def repeated(reached: int, after: int | None) -> int | None:
    """The steps that the next attempt, which began `after` that one, did again."""
    return None if after is None else max(0, reached - after)
