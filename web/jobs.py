"""Jobs: the list, the verbs that people have, and which rows belong to whom."""

from dataclasses import dataclass
from typing import Any

from flask import Blueprint, flash, g, redirect, render_template, request
from sqlmodel import Session, col, or_, select
from werkzeug.wrappers import Response

from shared import jobs, positions, queue
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.recipe import recipes
from shared.tables import (
    BaseModel,
    Dataset,
    DatasetVersion,
    Event,
    EventType,
    Job,
    Kind,
    State,
    User,
)
from web import failures

pages = Blueprint("jobs", __name__)

PAGE = 50
MADE_BY_PEOPLE = (Kind.TRAIN, Kind.EVALUATE, Kind.INFER)
VIEWS = {  # filter: word
    "": "All",
    "mine": "Mine",
    "scheduled": "Scheduled",
    "active": "Under way",
    "failed": "Failed",
    "background": "Imports and exports",
}


@dataclass
class Line:
    """A job as the list shows it."""

    job: Job
    dataset: str
    base: str
    who: str
    position: int | None = None
    spark: str = ""
    score: dict[str, Any] | None = None


@pages.get("/jobs")
def index() -> str:
    """The team's jobs, newest first, filtered by `view`, `recipe` and `q`; `before` is the next page."""
    view = request.args.get("view", "")
    with transaction() as db:
        found = db.exec(wanted(view, request.args)).all()
        lines = [
            Line(job, f"{dataset.name} v{version.number}" if dataset else "", base or "", email or "")
            for job, version, dataset, base, email in found[:PAGE]
        ]
        add_positions(db, lines)
        add_scores(db, lines)
        add_judgements(lines)
        some = bool(found) or db.exec(select(Job.id).where(Job.team_id == g.caller.team_id).limit(1)).first()
    return render_template(
        "jobs/index.html",
        lines=lines,
        view=view,
        views=VIEWS,
        recipes=recipes(),
        more=found[PAGE - 1][0].id if len(found) > PAGE else None,
        some=some,
    )


def wanted(view: str, args: Any) -> Any:
    """The query behind the list."""
    query = (
        select(Job, DatasetVersion, Dataset, col(BaseModel.title), col(User.email))  # ty: ignore[no-matching-overload] - it stops at four
        .outerjoin(DatasetVersion, col(Job.dataset_version_id) == DatasetVersion.id)
        .outerjoin(Dataset, col(DatasetVersion.dataset_id) == Dataset.id)
        .outerjoin(BaseModel, col(Job.base_model_id) == BaseModel.id)
        .outerjoin(User, col(Job.created_by) == User.id)
        .where(Job.team_id == g.caller.team_id, col(Job.deleted_at).is_(None))
    )
    background = view == "background"
    query = query.where(col(Job.kind).in_([Kind.IMPORT, Kind.EXPORT] if background else MADE_BY_PEOPLE))
    if view == "mine":
        query = query.where(Job.created_by == g.caller.user_id)
    elif view == "scheduled":
        query = query.where(col(Job.schedule_id).is_not(None))
    elif view == "active":
        query = query.where(col(Job.state).in_([State.QUEUED, State.RUNNING, State.PAUSED]))
    elif view == "failed":
        query = query.where(Job.state == State.FAILED)
    if args.get("recipe"):
        query = query.where(Job.recipe == args["recipe"])
    if words := args.get("q", "").strip():
        like = col(Job.name).icontains(words, autoescape=True)
        query = query.where(or_(like, col(Dataset.name).icontains(words, autoescape=True), Job.id == words))
    if args.get("before"):
        last = select(Job.created_at).where(Job.id == args["before"], Job.team_id == g.caller.team_id)
        query = query.where(col(Job.created_at) < last.scalar_subquery())
    return query.order_by(col(Job.created_at).desc(), col(Job.id).desc()).limit(PAGE + 1)


def add_positions(db: Session, lines: list[Line]) -> None:
    """Each waiting job's place in the queue."""
    waiting = [line for line in lines if line.job.state is State.QUEUED][:20]
    places = positions.of(db, [line.job for line in waiting])
    for line in waiting:
        line.position = places[line.job.id]


def add_scores(db: Session, lines: list[Line]) -> None:
    """The first metric of each training job: tuned, base, and its course over the evaluations."""
    trained = {
        line.job.id: line for line in lines if line.job.kind is Kind.TRAIN and line.job.recipe in recipes()
    }
    found = select(Event.job_id, Event.data).where(
        col(Event.job_id).in_(trained), Event.type == EventType.EVAL, col(Event.step).is_not(None)
    )
    curves: dict[str, list[float]] = {}
    for job_id, data in db.exec(found.order_by(col(Event.step), col(Event.id))):
        first = recipes()[trained[job_id].job.recipe or ""].metrics[0].name
        value = data.get("metrics", {}).get(first)
        if isinstance(value, int | float):
            curves.setdefault(job_id, []).append(value)
    for job_id, line in trained.items():
        curve = curves.get(job_id, [])
        line.spark = polyline(curve)
        metric = recipes()[line.job.recipe or ""].metrics[0]
        tuned = line.job.scores.get("tuned", {}).get(metric.name, curve[-1] if len(curve) > 1 else None)
        if tuned is not None:
            base = line.job.scores.get("base", {}).get(metric.name, curve[0] if curve else None)
            line.score = {
                "metric": metric,
                "tuned": tuned,
                "base": base,
                "better": is_better(metric, base, tuned),
            }


def add_judgements(lines: list[Line]) -> None:
    """The first metric of each evaluation."""
    for line in lines:
        recipe, told = recipes().get(line.job.recipe or ""), line.job.scores.get("tuned")
        if line.job.kind is Kind.EVALUATE and recipe and told:
            metric = recipe.metrics[0]
            line.score = {"metric": metric, "tuned": told.get(metric.name), "base": None, "better": None}


def is_better(metric: Any, base: float | None, tuned: float | None) -> bool | None:
    """Whether tuned beats base by this metric; None where it cannot be said."""
    if base is None or tuned is None or base == tuned:
        return None
    return (tuned > base) is (metric.better == "higher")


def polyline(values: list[float]) -> str:
    """The points of a line of values in a box of 72 by 18; empty below two values."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    height = (high - low) or 1
    step = 70 / (len(values) - 1)
    return " ".join(f"{1 + n * step:.1f},{16 - 14 * (v - low) / height:.1f}" for n, v in enumerate(values))


def own(db: Session, job_id: str) -> Job:
    """The team's job. Raises NotFound, also for another team's."""
    job = db.get(Job, job_id)
    if job is None or job.team_id != g.caller.team_id or job.deleted_at:
        raise NotFound("job", job_id)
    return job


def name_of(job: Job) -> str:
    """What people call it."""
    return job.name or job.id


@pages.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """Cancel it; a running one keeps the checkpoint of the step that it is at."""
    with transaction() as db:
        job = jobs.cancel(db, own(db, job_id), g.caller.actor)
    queue.wake(job.slot)
    flash(cancelled(job), "good")
    return redirect(f"/jobs/{job_id}", 303)


def cancelled(job: Job) -> str:
    """What is said after a cancel."""
    if job.state is State.QUEUED:
        return "The job is cancelled; its answers so far are made into files."
    if job.state is not State.RUNNING:
        return "The job is cancelled."
    if job.kind is Kind.TRAIN:
        return "It stops at the end of this step and keeps the checkpoint."
    return "It stops within moments."


@pages.post("/jobs/<job_id>/stop")
def stop(job_id: str) -> Response:
    """End a running training here, scored and saved."""
    with transaction() as db:
        job = jobs.stop(db, own(db, job_id), g.caller.actor)
    running = job.state is State.RUNNING
    flash(
        "It ends at this step: it is scored and saved, and counts as done."
        if running
        else "The job is cancelled.",
        "good",
    )
    return redirect(f"/jobs/{job_id}", 303)


@pages.post("/jobs/<job_id>/priority")
def prioritise(job_id: str) -> Response:
    """Move a waiting job within the team's queue."""
    with transaction() as db:
        job = own(db, job_id)
        jobs.prioritise(db, job, whole(request.form.get("priority", "")), g.caller.actor)
    flash("The priority is changed.", "good")
    return redirect(f"/jobs/{job_id}", 303)


def whole(typed: str) -> int:
    """A whole number as typed. Raises Refused."""
    try:
        return int(typed.strip().replace("−", "-"))
    except ValueError:
        raise Refused(f"The priority is a whole number; «{typed}» is not.", param="priority") from None


@pages.post("/jobs/<job_id>/pause")
def pause(job_id: str) -> Response:
    """Give its slot back and keep its place to go on from."""
    with transaction() as db:
        job = jobs.pause(db, own(db, job_id), g.caller.actor)
    running = job.state is State.RUNNING
    flash("It pauses at the end of this step." if running else "The job is paused.", "good")
    return redirect(f"/jobs/{job_id}", 303)


@pages.post("/jobs/<job_id>/resume")
def resume(job_id: str) -> Response:
    """Queue a paused job again, from its newest checkpoint."""
    with transaction() as db:
        job = jobs.resume(db, own(db, job_id), g.caller.actor)
    queue.wake(job.slot)
    return redirect(f"/jobs/{job_id}", 303)


@pages.post("/jobs/<job_id>/retry")
def retry(job_id: str) -> Response:
    """The same order again, as a new job; with `checkpoint` it goes on from there."""
    checkpoint = request.form.get("checkpoint") or None
    with transaction() as db:
        job = jobs.retry(
            db, own(db, job_id), g.caller.actor, checkpoint, created_by=g.caller.user_id, key=nonce()
        )
    queue.wake(job.slot)
    if job.team_id != g.caller.team_id:
        flash("Another team's import of it is under way already; this one waits for that.", "good")
        return redirect(f"/models/{job.base_model_id}", 303)
    what = "goes on from that checkpoint" if checkpoint else "has the same settings"
    flash(f"This is a new job; it {what}. The old one is {job_id}.", "good")
    return redirect(f"/jobs/{job.id}", 303)


def nonce() -> str | None:
    """The key of the form that was sent: its second click is no second order."""
    sent = request.form.get("nonce")
    return f"form-{sent}" if sent else None


@pages.post("/jobs/<job_id>/mend")
def mend(job_id: str) -> Response:
    """A failed job again, with the setting changed that its card names."""
    with transaction() as db:
        order = failures.mended(own(db, job_id), g.caller.actor, g.caller.user_id)
        job = jobs.submit(db, order, nonce())
    queue.wake(job.slot)
    flash(f"This is a new job with that one setting changed. The old one is {job_id}.", "good")
    return redirect(f"/jobs/{job.id}", 303)


@pages.post("/jobs/<job_id>/delete")
def delete(job_id: str) -> Response:
    """Take an ended job away, its checkpoints with it."""
    with transaction() as db:
        job = own(db, job_id)
        jobs.delete(db, job, g.caller.actor)
    flash(f"«{name_of(job)}» is deleted.", "good")
    return redirect("/jobs", 303)
