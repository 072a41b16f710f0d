"""The queue: what runs where, what waits and why, and the workers."""

from datetime import timedelta
from typing import Any

from flask import Blueprint, g, render_template
from sqlmodel import Session, col, func, select

from shared import ranking, workers
from shared.columns import now
from shared.db import transaction
from shared.tables import Attempt, Job, JobDependency, Slot, State, Worker

pages = Blueprint("queue", __name__)

SHOWN = 50
GONE_SHOWN = timedelta(hours=1)


@pages.get("/queue")
def index() -> str:
    """Everything under way. Of other teams' jobs only their number is told, never a name."""
    with transaction() as db:
        alive = {worker.id: worker for worker in workers.alive(db)}
        return render_template(
            "queue/index.html",
            running=running(db),
            waiting=waiting(db),
            paused=mine(db, State.PAUSED),
            others=others(db),
            workers=lately(db),
            alive=alive,
            slots={slot.value: sum(w.slots.get(slot.value, 0) for w in alive.values()) for slot in Slot},
        )


def mine(db: Session, state: State) -> list[Job]:
    """The team's jobs in that state, in the order of claiming."""
    found = select(Job).where(
        Job.team_id == g.caller.team_id, Job.state == state, col(Job.deleted_at).is_(None)
    )
    return list(db.exec(found.order_by(col(Job.rank_at), col(Job.id)).limit(SHOWN)).all())


def running(db: Session) -> list[dict[str, Any]]:
    """The team's running jobs with their attempt and worker."""
    told = []
    for job in mine(db, State.RUNNING):
        attempt = db.get(Attempt, job.attempt_id) if job.attempt_id else None
        told.append(
            {"job": job, "attempt": attempt, "worker": db.get(Worker, attempt.worker_id) if attempt else None}
        )
    return told


def waiting(db: Session) -> list[dict[str, Any]]:
    """The team's waiting jobs, each with its place and the reason why it waits."""
    free = {slot: workers.free_slots(db, slot) for slot in Slot}
    offered = {slot: any(w.slots.get(slot.value) for w in workers.alive(db)) for slot in Slot}
    told = []
    for job in mine(db, State.QUEUED):
        held_by = held_back(db, job)
        place = None if held_by else ranking.position(db, job)
        told.append(
            {
                "job": job,
                "position": place,
                "held_by": held_by,
                "why": why(job, held_by, place, free, offered),
            }
        )
    return told


def held_back(db: Session, job: Job) -> list[Job]:
    """The unfinished jobs that it waits for."""
    found = select(Job).join(JobDependency, col(JobDependency.waits_for_id) == Job.id)
    return list(db.exec(found.where(JobDependency.job_id == job.id, Job.state != State.SUCCEEDED)).all())


def why(
    job: Job, held_by: list[Job], place: int | None, free: dict[Slot, int], offered: dict[Slot, bool]
) -> str:
    """In a sentence, why it does not run yet."""
    if held_by:
        return "It waits for another job to end."
    if job.run_after and job.run_after > now():
        return "It failed in a way that passes, and rests before the next try."
    if not offered[job.slot]:
        return f"No worker that is alive offers a {job.slot} slot."
    if free[job.slot]:
        return "A slot is free; it starts within moments."
    return f"Every {job.slot} slot is taken" + (
        f"; {place - 1} jobs go first." if place and place > 1 else "; it is next."
    )


def others(db: Session) -> dict[str, int]:
    """How many jobs of other teams run and wait."""
    counted = select(Job.state, func.count()).where(
        Job.team_id != g.caller.team_id, col(Job.state).in_([State.RUNNING, State.QUEUED])
    )
    return {str(state): number for state, number in db.exec(counted.group_by(Job.state))}


def lately(db: Session) -> list[Worker]:
    """The workers of the last hour, those alive first."""
    seen = select(Worker).where(col(Worker.heartbeat_at) > now() - GONE_SHOWN)
    order = (col(Worker.stopped_at).is_not(None), col(Worker.heartbeat_at).desc())
    return list(db.exec(seen.order_by(*order).limit(SHOWN)).all())
