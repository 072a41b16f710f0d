"""/v1/fine_tuning/jobs/{id}/events: a job's history in OpenAI's words, newest first.

Two sources make one list: the timeline (transitions) and what attempts reported (events), both sorted
by time. A line's id names its source and row, so that a page can be asked for after any line. A row of
the timeline may say several lines.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from flask import Blueprint, Response
from sqlalchemy import tuple_
from sqlmodel import Session, col, select

from shared import base_models
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Checkpoint, DatasetVersion, Event, EventType, Job, Kind, State, Team, Transition
from web import shapes, wire
from web.api_jobs import find as find_job

api = Blueprint("api_events", __name__, url_prefix="/v1")
TOLD = (EventType.STEP, EventType.EVAL, EventType.CHECKPOINT, EventType.LOG, EventType.ERROR)
LINE = re.compile(r"ftevent-([te])(\d{1,18})-(\d)")


@dataclass(frozen=True, order=True)
class Place:
    """Where a line stands: its time, its source (timeline before reports), its row, its number there."""

    at: datetime
    source: str
    row: int
    number: int

    @property
    def id(self) -> str:
        """The line's name."""
        return f"ftevent-{self.source}{self.row}-{self.number}"


@dataclass(frozen=True)
class Line:
    """One event on the wire."""

    place: Place
    message: str
    level: str = "info"
    metrics: dict[str, Any] | None = None


@dataclass(frozen=True)
class Told:
    """What the lines name: the files, the checkpoints by step, the team."""

    job: Job
    files: list[str]
    checkpoints: dict[int, Checkpoint]
    team: Team


@api.get("/fine_tuning/jobs/<job_id>/events")
@wire.operation(shapes.Page[shapes.JobEvent], query=shapes.EventsAsked)
def index(job_id: str) -> Response:
    """List what has happened to a job, newest first; steps and evaluations have the type `metrics`."""
    asked = wire.query(shapes.EventsAsked)
    with transaction() as db:
        job = find_job(db, job_id, Kind.TRAIN)
        after = place_of(db, job, asked.after) if asked.after else None
        told = what_is_told(db, job)
        both = heapq.merge(
            timeline(db, told, after),
            reports(db, told, after, asked.limit + 1),
            key=lambda line: line.place,
            reverse=True,
        )
        lines = [line for line, _ in zip(both, range(asked.limit + 1), strict=False)]
    return wire.listed([shape(line) for line in lines[: asked.limit]], len(lines) > asked.limit)


def place_of(db: Session, job: Job, name: str) -> Place:
    """Where the line of that id stands. Raises Refused where the job has none."""
    parts = LINE.fullmatch(name)
    at = None
    if parts:
        table: Any = Transition if parts[1] == "t" else Event
        at = db.exec(select(table.at).where(table.job_id == job.id, table.id == int(parts[2]))).first()
    if at is None or parts is None:
        raise Refused(f"There is no object «{name}» in this list.", param="after")
    return Place(at, parts[1], int(parts[2]), int(parts[3]))


def what_is_told(db: Session, job: Job) -> Told:
    """The rows that lines name."""
    ids = [v for v in (job.dataset_version_id, job.valid_version_id) if v]
    files = {v.id: v.file_id for v in db.exec(select(DatasetVersion).where(col(DatasetVersion.id).in_(ids)))}
    stored = db.exec(select(Checkpoint).where(Checkpoint.job_id == job.id))
    return Told(
        job, [files[v] for v in ids if v in files], {c.step: c for c in stored}, db.get_one(Team, job.team_id)
    )


def timeline(db: Session, told: Told, after: Place | None) -> list[Line]:
    """The lines of the timeline, newest first; a job has few."""
    rows = db.exec(
        select(Transition).where(Transition.job_id == told.job.id).order_by(col(Transition.id))
    ).all()
    lines = [
        line
        for before, row in zip([None, *rows], rows, strict=False)
        for line in of_transition(row, before, told)
    ]
    return sorted(
        (line for line in lines if after is None or line.place < after), key=lambda x: x.place, reverse=True
    )


def of_transition(row: Transition, before: Transition | None, told: Told) -> Iterator[Line]:
    """What OpenAI says when a job comes into this state, oldest first."""
    for number, (message, level) in enumerate(sentences(row, before, told)):
        yield Line(Place(row.at, "t", cast(int, row.id), number), message, level)


def sentences(row: Transition, before: Transition | None, told: Told) -> list[tuple[str, str]]:
    """(message, level) for a row of the timeline."""
    if before is None:
        data = " and validation file: ".join(told.files)
        said = [(f"Created fine-tuning job: {told.job.id}", "info")]
        return [*said, (f"Validating training file: {data}", "info")] if data else said
    if row.state == before.state and row.state != State.RUNNING:
        return [(f"{row.reason.capitalize()}.", "info")] if row.reason else []
    if row.state == State.RUNNING:
        return [(running(row, before), "info")]
    if row.state == State.SUCCEEDED:
        best = next((c for c in told.checkpoints.values() if c.id == told.job.best_checkpoint_id), None)
        done = [("The job has successfully completed", "info")]
        if best is None:
            return done
        return [
            (f"New fine-tuned model created: {base_models.name_of(best, told.job, told.team)}", "info"),
            *done,
        ]
    if row.state == State.QUEUED:
        resumed = before.state == State.PAUSED
        return [("Job resumed", "info") if resumed else (f"Job requeued: {row.reason}", "warn")]
    if row.state == State.FAILED:
        return [(f"The job has failed: {row.reason}", "error")]
    return [("Job paused" if row.state == State.PAUSED else "The job has been cancelled", "warn")]


def running(row: Transition, before: Transition) -> str:
    """The start of an attempt, or a request to one that runs."""
    if before.state == State.RUNNING:
        return f"{row.reason.capitalize()}."
    return (
        "Fine-tuning job started"
        if row.reason in ("", "attempt 1")
        else f"Fine-tuning job started ({row.reason})"
    )


def reports(db: Session, told: Told, after: Place | None, limit: int) -> list[Line]:
    """The newest `limit` lines of attempts before `after`."""
    wanted = select(Event).where(Event.job_id == told.job.id, col(Event.type).in_(TOLD))
    if after is not None and after.source == "e":
        wanted = wanted.where(tuple_(col(Event.at), col(Event.id)) < (after.at, after.row))
    elif after is not None:
        wanted = wanted.where(col(Event.at) <= after.at)
    rows = db.exec(wanted.order_by(col(Event.at).desc(), col(Event.id).desc()).limit(limit))
    return [
        of_event(row, told)
        for row in rows
        if after is None or Place(row.at, "e", cast(int, row.id), 0) < after
    ]


def of_event(row: Event, told: Told) -> Line:
    """What OpenAI says of a reported event."""
    place = Place(row.at, "e", cast(int, row.id), 0)
    data = row.data
    if row.type == EventType.STEP:
        metrics = step_metrics(row, data)
        return Line(
            place, f"{counted(row, told)}: training loss={written(data.get('loss'))}", metrics=metrics
        )
    if row.type == EventType.EVAL:
        metrics = eval_metrics(row, data, told)
        found = metrics.get("valid_loss")
        said = f"validation loss={written(found)}" if found is not None else named(data.get("metrics", {}))
        return Line(place, f"{counted(row, told)}: {said}", metrics=metrics)
    if row.type == EventType.CHECKPOINT:
        stored = told.checkpoints.get(row.step or 0)
        name = f" with Snapshot ID: {base_models.name_of(stored, told.job, told.team)}" if stored else ""
        return Line(place, f"Checkpoint created at step {row.step}{name}")
    level = "error" if row.type == EventType.ERROR else data.get("level", "info")
    return Line(place, str(data.get("message", "")), level if level in ("info", "warn", "error") else "info")


def counted(row: Event, told: Told) -> str:
    """«Step 30/120»."""
    total = row.data.get("total_steps") or told.job.progress.get("total_steps")
    return f"Step {row.step or 0}/{total}" if total else f"Step {row.step or 0}"


def step_metrics(row: Event, data: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's names, then the rest as reported."""
    rest = {name: value for name, value in data.items() if name != "loss"}
    return {"step": row.step, "train_loss": data.get("loss"), "total_steps": data.get("total_steps")} | rest


def eval_metrics(row: Event, data: dict[str, Any], told: Told) -> dict[str, Any]:
    """The recipe's metrics as `valid_<name>`; the loss also as OpenAI's `full_valid_loss`."""
    found = {f"valid_{name}": value for name, value in data.get("metrics", {}).items()}
    full = {"full_valid_loss": found["valid_loss"]} if "valid_loss" in found else {}
    total = told.job.progress.get("total_steps")
    return {"step": row.step, "total_steps": total, "which": data.get("which", "tuned")} | found | full


def named(metrics: dict[str, Any]) -> str:
    """«accuracy=0.91, f1=0.90»."""
    return ", ".join(f"{name}={written(value)}" for name, value in metrics.items()) or "evaluated"


def written(value: Any) -> str:
    """A number as OpenAI's events have it."""
    return f"{value:.2f}" if isinstance(value, int | float) else str(value)


def shape(line: Line) -> shapes.JobEvent:
    """A line on the wire."""
    return shapes.JobEvent(
        id=line.place.id,
        created_at=cast(int, wire.seconds(line.place.at)),
        level=cast(Any, line.level),
        message=line.message,
        type="metrics" if line.metrics is not None else "message",
        data=line.metrics or {},
    )
