"""/v1/schedules: jobs that are submitted again at fixed times with the newest rows. Ours, not OpenAI's."""

from typing import Any, cast

from flask import Blueprint, Response, g
from sqlmodel import Session, col, select

from shared import datasets, schedules
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.settings import settings
from shared.tables import Schedule, ScheduleRun
from web import methods, shapes, wire

api = Blueprint("api_schedules", __name__, url_prefix="/v1")


@api.post("/schedules")
@wire.operation(shapes.Schedule, body=shapes.CreateSchedule)
def create() -> Response:
    """Start a schedule."""
    asked = wire.body(shapes.CreateSchedule)
    method = methods.read(asked.method, asked.hyperparameters)
    order = {
        "recipe": method.recipe.name,
        "base_model": asked.model,
        "hyperparameters": method.hyperparameters,
        "columns": asked.x_columns,
        "name": asked.suffix or "",
        "seed": asked.seed,
        "processes": asked.resources.processes if asked.resources else None,
        "needs": asked.resources.needs if asked.resources else None,
    }
    with transaction() as db:
        schedule = schedules.create(
            db,
            team_id=g.caller.team_id,
            name=asked.name,
            cron=asked.cron,
            zone=asked.zone,
            dataset_id=dataset_of(db, asked.dataset),
            order={name: value for name, value in order.items() if value is not None},
            created_by=g.caller.user_id,
            active=asked.active,
        )
    return wire.answer(shape(schedule))


@api.get("/schedules")
@wire.operation(shapes.Page[shapes.Schedule], query=wire.Paging)
def index() -> Response:
    """List the team's schedules, newest first."""
    asked = wire.query(wire.Paging)
    wanted = select(Schedule).where(Schedule.team_id == g.caller.team_id, col(Schedule.deleted_at).is_(None))
    with transaction() as db:
        rows, more = wire.cut(db, wanted, Schedule.id, asked)
    return wire.listed([shape(row) for row in rows], more)


@api.get("/schedules/<schedule_id>")
@wire.operation(shapes.Schedule)
def retrieve(schedule_id: str) -> Response:
    """One schedule, with its next time."""
    with transaction() as db:
        return wire.answer(shape(schedules.get(db, g.caller.team_id, schedule_id)))


@api.post("/schedules/<schedule_id>")
@wire.operation(shapes.Schedule, body=shapes.UpdateSchedule)
def update(schedule_id: str) -> Response:
    """Change a schedule: its name, times, zone, on or off. Times that have passed are let go."""
    asked = wire.body(shapes.UpdateSchedule)
    changes = {
        name: value for name, value in asked.model_dump(exclude_unset=True).items() if value is not None
    }
    with transaction() as db:
        found = schedules.get(db, g.caller.team_id, schedule_id)
        return wire.answer(shape(schedules.update(db, found, **changes)))


@api.delete("/schedules/<schedule_id>")
@wire.operation(shapes.Deleted)
def delete(schedule_id: str) -> Response:
    """End a schedule; its jobs stay."""
    with transaction() as db:
        schedules.delete(db, schedules.get(db, g.caller.team_id, schedule_id))
    return wire.answer(shapes.Deleted(id=schedule_id, object="schedule"))


@api.get("/schedules/<schedule_id>/runs")
@wire.operation(shapes.Page[shapes.ScheduleRun], query=wire.Paging)
def runs(schedule_id: str) -> Response:
    """List what became of a schedule's times, newest first."""
    asked = wire.query(wire.Paging)
    with transaction() as db:
        schedule = schedules.get(db, g.caller.team_id, schedule_id)
        wanted = select(ScheduleRun).where(ScheduleRun.schedule_id == schedule.id)
        if asked.after is not None:
            last = db.get(ScheduleRun, (schedule.id, asked.after.partition("@")[2]))
            if last is None:
                raise Refused(f"There is no object «{asked.after}» in this list.", param="after")
            wanted = wanted.where(col(ScheduleRun.due_at) < last.due_at)
        rows = db.exec(wanted.order_by(col(ScheduleRun.due_at).desc()).limit(asked.limit + 1)).all()
    return wire.listed([run(row) for row in rows[: asked.limit]], len(rows) > asked.limit)


def dataset_of(db: Session, name: str) -> str:
    """The dataset that an id of it, of a version or of a file stands for. Raises Refused (404)."""
    try:
        return datasets.version_of(db, g.caller.team_id, name).dataset_id
    except NotFound as missing:
        raise Refused(missing.message, param="dataset", code="not_found", status=404) from None


def shape(schedule: Schedule) -> shapes.Schedule:
    """A schedule on the wire."""
    order: dict[str, Any] = schedule.order
    following = schedules.next_times(schedule, 1)
    return shapes.Schedule(
        id=schedule.id,
        created_at=cast(int, wire.seconds(schedule.created_at)),
        name=schedule.name,
        cron=schedule.cron,
        zone=schedule.zone,
        active=schedule.active,
        dataset=schedule.dataset_id,
        next_at=wire.seconds(following[0]) if following else None,
        model=order.get("base_model"),
        method=methods.write(order.get("recipe"), order.get("hyperparameters") or {}, given=True),
        suffix=order.get("name") or None,
        seed=order.get("seed"),
        x_resources={"processes": order.get("processes") or 1} | (order.get("needs") or {}),
        x_page=f"{settings().public_url}/schedules/{schedule.id}",
    )


def run(row: ScheduleRun) -> shapes.ScheduleRun:
    """A run on the wire; its id is the schedule's and the nominal time."""
    return shapes.ScheduleRun(
        id=f"{row.schedule_id}@{row.nominal}",
        schedule_id=row.schedule_id,
        nominal=row.nominal,
        due_at=cast(int, wire.seconds(row.due_at)),
        outcome=row.outcome.value,
        reason=row.reason,
        job_id=row.job_id,
    )
