"""The queue: what runs where, what waits and why, who may use how much, and the workers."""

from datetime import timedelta
from typing import Any

from flask import Blueprint, flash, g, redirect, render_template, request
from sqlalchemy import and_
from sqlmodel import Session, col, func, select
from werkzeug.wrappers import Response

from shared import caps, queue, workers
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Attempt, Job, Slot, State, Team, Worker
from web import waiting

pages = Blueprint("queue", __name__)

SHOWN = 50
GONE_SHOWN = timedelta(hours=1)


@pages.get("/queue")
def index() -> str:
    """Everything under way. Of other teams' jobs only their number is told, never a name, except to operators
    the teams' own.
    """
    with transaction() as db:
        alive = {worker.id: worker for worker in workers.alive(db)}
        return render_template(
            "queue/index.html",
            running=running(db),
            waiting=waiting_jobs(db),
            waiting_more=waiting_more(db),
            paused=mine(db, State.PAUSED),
            others=others(db),
            shares=shares(db),
            workers=busy(db, lately(db)),
            alive=alive,
            missing={worker.id: workers.missing_walls(worker) for worker in alive.values()},
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
    own = mine(db, State.RUNNING)
    found = (
        select(Attempt, Worker)
        .join(Worker, col(Worker.id) == Attempt.worker_id)
        .where(col(Attempt.id).in_([job.attempt_id for job in own]))
    )
    held = {attempt.id: (attempt, worker) for attempt, worker in db.exec(found)}
    told = [(job, *held.get(job.attempt_id or "", (None, None))) for job in own]
    return [{"job": job, "attempt": attempt, "worker": worker} for job, attempt, worker in told]


def waiting_jobs(db: Session) -> list[tuple[Job, waiting.Outlook]]:
    """The team's first waiting jobs, each with what is known of its wait."""
    first = mine(db, State.QUEUED)
    told = waiting.outlooks(db, first)
    return [(job, told[job.id]) for job in first]


def waiting_more(db: Session) -> int:
    """How many of the team's jobs wait besides those that are shown."""
    found = select(func.count()).where(
        Job.team_id == g.caller.team_id, Job.state == State.QUEUED, col(Job.deleted_at).is_(None)
    )
    return max(0, db.exec(found).one() - SHOWN)


def others(db: Session) -> dict[str, int]:
    """How many jobs of other teams run and wait."""
    counted = select(Job.state, func.count()).where(
        Job.team_id != g.caller.team_id, col(Job.state).in_([State.RUNNING, State.QUEUED])
    )
    return {str(state): number for state, number in db.exec(counted.group_by(Job.state))}


def shares(db: Session) -> list[dict[str, Any]]:
    """What the own team and all together occupy, may occupy and used; to an operator every team."""
    by_slot = {slot.value: waiting.usage(db, slot) for slot in Slot}
    return [
        {"id": team_id, "name": name, **{slot: usage(team_id) for slot, usage in by_slot.items()}}
        for team_id, name in teams_seen(db)
    ]


def teams_seen(db: Session) -> list[tuple[str | None, str]]:
    """(id, name) of the teams whose shares the caller may see; at the end (None, …), all together."""
    teams: list[tuple[str | None, str]] = [(g.caller.team_id, db.get_one(Team, g.caller.team_id).name)]
    if g.caller.operator:
        teams = [(team.id, team.name) for team in db.exec(select(Team).order_by(Team.name).limit(SHOWN))]
    return [*teams, (None, "All teams together")]


def lately(db: Session) -> list[Worker]:
    """The workers of the last hour, those alive first."""
    seen = select(Worker).where(col(Worker.heartbeat_at) > now() - GONE_SHOWN)
    order = (col(Worker.stopped_at).is_not(None), col(Worker.heartbeat_at).desc())
    return list(db.exec(seen.order_by(*order).limit(SHOWN)).all())


def busy(db: Session, seen: list[Worker]) -> list[tuple[Worker, list[tuple[Job | None, list[str]]]]]:
    """[(worker, [(job, its slots)])] of what they do now; without the job where it is another team's."""
    own = and_(col(Job.id) == Attempt.job_id, col(Job.team_id) == g.caller.team_id)
    found = (
        select(Attempt, Job)
        .outerjoin(Job, own)
        .where(col(Attempt.worker_id).in_([worker.id for worker in seen]), col(Attempt.ended_at).is_(None))
    )
    does: dict[str, list[tuple[Job | None, list[str]]]] = {worker.id: [] for worker in seen}
    for attempt, job in db.exec(found.order_by(col(Attempt.started_at))):
        does[attempt.worker_id].append((job, attempt.slots))
    return [(worker, does[worker.id]) for worker in seen]


# --- what operators do ------------------------------------------------------------------------------


@pages.post("/queue/workers/<worker_id>/drain")
def drain(worker_id: str) -> Response:
    """No more jobs for that worker; what it does is saved and goes on elsewhere."""
    with transaction() as db:
        worker = workers.drain(db, worker_id)
    return back(f"The worker on {worker.host} saves what it does, gives it back and takes no more jobs.")


@pages.post("/queue/workers/<worker_id>/undrain")
def undrain(worker_id: str) -> Response:
    """That worker takes jobs again."""
    with transaction() as db:
        worker = workers.undrain(db, worker_id)
    wake()
    return back(f"The worker on {worker.host} takes jobs again.")


@pages.post("/queue/caps")
def cap() -> Response:
    """Set or lift the caps of a team, or of all together."""
    team_id = request.form.get("team") or None
    with transaction() as db:
        if team_id and db.get(Team, team_id) is None:
            raise Refused("There is no such team.", param="team", code="not_found", status=404)
        for slot in Slot:
            if slot.value in request.form:
                caps.put(db, slot, caps.read(request.form[slot.value]), team_id)
    wake()
    return back("The caps are set. What runs already goes on.")


def wake() -> None:
    """There may be room for more."""
    for slot in Slot:
        queue.wake(slot)


def back(sentence: str) -> Response:
    """To the page, with what has happened."""
    flash(sentence, "good")
    return redirect("/queue", 303)
