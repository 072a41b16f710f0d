"""Schedules: a job submitted again at each nominal time, with the newest version of its dataset.

A nominal time is local: «2026-11-23T02:30» in the schedule's zone. The primary key of `schedule_runs`
claims it in the transaction that submits the job, so each runs once, however many beats tick. On the
night that skips an hour a job in it runs at the first minute after; in the hour that repeats, the first
time alone. After an outage the newest time of the last six hours runs, the others are noted as missed.
"""

import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from shared import base_models, checkpoints, datasets, jobs, orders, resources
from shared import recipe as recipes
from shared.errors import NotFound, Refused
from shared.leases import clock
from shared.spec import resolve
from shared.tables import FINAL, Dataset, Job, RunOutcome, Schedule, ScheduleRun

log = logging.getLogger(__name__)

CATCH_UP = timedelta(hours=6)
MOST_MISSED = 100  # of a long outage, the newest
NEVER_WITHIN = timedelta(days=366 * 8)
ORDER_FIELDS = (
    "recipe", "base_model", "hyperparameters", "columns", "name", "seed", "labels", "priority", "processes",
    "needs", "max_run_seconds",
)  # fmt: skip
ACTOR = "schedule"


# --- a person's verbs -------------------------------------------------------------------------------


def create(
    db: Session,
    *,
    team_id: str,
    name: str,
    cron: str,
    zone: str,
    dataset_id: str,
    order: dict[str, Any],
    created_by: str | None = None,
    active: bool = True,
) -> Schedule:
    """A new schedule, whose first nominal time is the next one. Raises Refused naming the field."""
    schedule = Schedule(
        team_id=team_id,
        name=checked_name(name),
        cron=checked_cron(cron, zone),
        zone=zone,
        active=active,
        dataset_id=dataset_id,
        order=checked_order(db, team_id, dataset_id, order),
        since=clock(db),
        created_by=created_by,
    )
    db.add(schedule)
    db.flush()
    return schedule


def update(db: Session, schedule: Schedule, **changes: Any) -> Schedule:
    """Changes name, cron, zone, dataset_id, order or active. Times before this moment are let go."""
    schedule = locked(db, schedule.id)
    new = {f: changes.get(f, getattr(schedule, f)) for f in ("name", "cron", "zone", "dataset_id", "order")}
    schedule.name = checked_name(new["name"])
    schedule.cron, schedule.zone = checked_cron(new["cron"], new["zone"]), new["zone"]
    if "order" in changes or "dataset_id" in changes:
        schedule.order = checked_order(db, schedule.team_id, new["dataset_id"], new["order"])
        schedule.dataset_id = new["dataset_id"]
    schedule.active = changes.get("active", schedule.active)
    schedule.since = clock(db)
    db.flush()
    return schedule


def toggle(db: Session, schedule: Schedule) -> Schedule:
    """On becomes off and off on; what would have run while it was off is let go."""
    return update(db, schedule, active=not schedule.active)


def delete(db: Session, schedule: Schedule) -> None:
    """It never runs again; its runs and their jobs stay."""
    schedule = locked(db, schedule.id)
    schedule.deleted_at, schedule.active = clock(db), False


def get(db: Session, team_id: str, schedule_id: str) -> Schedule:
    """The team's schedule. Raises NotFound."""
    schedule = db.get(Schedule, schedule_id)
    if schedule is None or schedule.team_id != team_id or schedule.deleted_at:
        raise NotFound("schedule", schedule_id)
    return schedule


def all_for(db: Session, team_id: str) -> Sequence[Schedule]:
    """The team's schedules, newest first."""
    own = select(Schedule).where(Schedule.team_id == team_id, col(Schedule.deleted_at).is_(None))
    return db.exec(own.order_by(col(Schedule.id).desc())).all()


def runs(db: Session, schedule_id: str, limit: int = 50) -> Sequence[ScheduleRun]:
    """What became of its nominal times, newest first."""
    past = select(ScheduleRun).where(ScheduleRun.schedule_id == schedule_id)
    return db.exec(past.order_by(col(ScheduleRun.due_at).desc()).limit(limit)).all()


def next_times(schedule: Schedule, count: int = 3, after: datetime | None = None) -> list[datetime]:
    """Its next nominal times after that moment (now), aware, in its zone; none while it is off."""
    if not schedule.active:
        return []
    times = nominal_times(schedule.cron, schedule.zone, after or datetime.now(UTC))
    return [moment for moment, _ in zip(times, range(count), strict=False)]


# --- what is checked --------------------------------------------------------------------------------


def checked_name(name: str) -> str:
    """A name that a person can find again."""
    if not 1 <= len(name.strip()) <= 200:
        raise Refused("Give the schedule a name of at most 200 characters.", param="name")
    return name.strip()


def checked_cron(cron: str, zone: str) -> str:
    """A line of five fields that has a next time, in a zone that exists."""
    if zone not in available_timezones():
        raise Refused(
            f"«{zone}» is no time zone. Examples: Europe/Berlin, America/New_York, UTC.", param="zone"
        )
    cron = " ".join(cron.split())
    if len(cron.split()) != 5:
        raise Refused(
            "A cron line has five fields: minute, hour, day, month, weekday. «30 2 * * *» is every night at 02:30.",
            param="cron",
        )
    try:
        first = next(nominal_times(cron, zone, datetime.now(UTC)), None)
    except CronSimError as wrong:
        raise Refused(f"«{cron}» is no cron line: {str(wrong).lower()}.", param="cron") from None
    if first is None or first - datetime.now(UTC) > NEVER_WITHIN:
        raise Refused(f"«{cron}» never comes.", param="cron")
    return cron


def checked_order(db: Session, team_id: str, dataset_id: str, order: dict[str, Any]) -> dict[str, Any]:
    """The order with its known fields alone, such that a submission has a chance."""
    dataset = db.get(Dataset, dataset_id)
    if dataset is None or dataset.team_id != team_id or dataset.deleted_at:
        raise Refused("Choose a dataset of this team.", param="dataset_id", code="not_found", status=404)
    if unknown := set(order) - set(ORDER_FIELDS):
        raise Refused(f"Unrecognized field «{min(unknown)}».", param=min(unknown), code="unknown_parameter")
    recipe = recipes.get(order.get("recipe") or "")
    resolve(recipe, order.get("hyperparameters") or {})
    resources.checked((order.get("needs") or {}) | {"processes": order.get("processes", 1)})
    orders.require_run_time(order.get("max_run_seconds"))
    name = order.get("base_model") or recipe.default_base_model
    weights = base_models.find(db, team_id, name)
    if weights.checkpoint and not checkpoints.hold(db, weights.checkpoint.id):
        raise base_models.unknown(name)
    return order


# --- the tick ---------------------------------------------------------------------------------------


def tick(db: Session, at: datetime | None = None) -> list[Job]:
    """Runs what is due at that moment (now, by the database's clock). Returns the submitted jobs.

    Commit, then wake their slots. A schedule that another tick has in hand is passed over; one that
    fails unexpectedly is tried again at the next tick and holds up no other.
    """
    at = at or clock(db)
    active = select(Schedule).where(col(Schedule.active), col(Schedule.deleted_at).is_(None))
    submitted = []
    for schedule in db.exec(active.order_by(col(Schedule.id)).with_for_update(skip_locked=True)).all():
        try:
            with db.begin_nested():
                submitted += run_due(db, schedule, at)
        except Exception:
            log.exception("The schedule %s could not be run; the next tick tries again", schedule.id)
    return submitted


def run_due(db: Session, schedule: Schedule, at: datetime) -> list[Job]:
    """Runs the newest nominal time that is due, notes the others as missed."""
    times = due(db, schedule, at)
    for late in times[-MOST_MISSED - 1 : -1]:
        mark(db, schedule, late, RunOutcome.MISSED, "Burnish was not running; a later time has run instead.")
    if not times:
        return []
    newest = times[-1]
    if at - newest > CATCH_UP:
        mark(
            db,
            schedule,
            newest,
            RunOutcome.MISSED,
            "Burnish was not running until more than six hours later.",
        )
        return []
    job = run(db, schedule, newest)
    return [job] if job else []


def due(db: Session, schedule: Schedule, at: datetime) -> list[datetime]:
    """The nominal times up to that moment that nobody has dealt with, oldest first, aware."""
    last = select(ScheduleRun.due_at).where(ScheduleRun.schedule_id == schedule.id)
    newest = db.exec(last.order_by(col(ScheduleRun.due_at).desc()).limit(1)).first()
    since = max(schedule.since, newest or schedule.since)
    times = []
    for moment in nominal_times(schedule.cron, schedule.zone, since):
        if moment > at:
            break
        times.append(moment)
    return times


def run(db: Session, schedule: Schedule, moment: datetime) -> Job | None:
    """Submits the job of one nominal time, unless another tick has done so. The reason is noted."""
    if not mark(db, schedule, moment, RunOutcome.SUBMITTED, ""):
        return None
    row = db.get_one(ScheduleRun, (schedule.id, nominal(moment)))
    if still := unfinished(db, schedule):
        row.outcome, row.reason = RunOutcome.SKIPPED, f"{still} of this schedule had not ended yet."
        return None
    try:
        with db.begin_nested():
            job = jobs.submit(db, order_of(db, schedule))
    except Refused as no:
        row.outcome, row.reason = RunOutcome.REFUSED, no.message
        return None
    row.job_id = job.id
    return job


def order_of(db: Session, schedule: Schedule) -> jobs.Order:
    """The order that the schedule stands for today."""
    version = datasets.newest(db, schedule.dataset_id)
    if version is None:
        raise Refused("The dataset has no version to train on.", param="dataset_id")
    asked = schedule.order
    return jobs.Order(
        team_id=schedule.team_id,
        recipe=asked.get("recipe"),
        model=asked.get("base_model"),
        dataset_version_id=version.id,
        hyperparameters=asked.get("hyperparameters") or {},
        columns=asked.get("columns") or None,
        name=asked.get("name") or schedule.name,
        seed=asked.get("seed"),
        labels=asked.get("labels") or {},
        priority=asked.get("priority") or 0,
        processes=asked.get("processes") or 1,
        needs=asked.get("needs") or {},
        max_run_seconds=asked.get("max_run_seconds"),
        created_by=schedule.created_by,
        actor=ACTOR,
        schedule_id=schedule.id,
        asked=asked,
    )


def unfinished(db: Session, schedule: Schedule) -> str | None:
    """The id of a job of this schedule that has not ended, if any."""
    going = select(Job.id).where(Job.schedule_id == schedule.id, col(Job.state).not_in(FINAL))
    return db.exec(going.limit(1)).first()


def mark(db: Session, schedule: Schedule, moment: datetime, outcome: RunOutcome, reason: str) -> bool:
    """Claims a nominal time; False: it was claimed already."""
    row = {
        "schedule_id": schedule.id,
        "nominal": nominal(moment),
        "due_at": moment,
        "outcome": outcome,
        "reason": reason,
        "created_at": clock(db),
    }
    claimed = insert(ScheduleRun).values(**row).on_conflict_do_nothing().returning(col(ScheduleRun.nominal))
    return db.exec(claimed).first() is not None


def nominal(moment: datetime) -> str:
    """Its local time, as the key has it."""
    return moment.strftime("%Y-%m-%dT%H:%M")


def nominal_times(cron: str, zone: str, after: datetime) -> Iterator[datetime]:
    """The times of a cron line after a moment, aware, in its zone; a local time comes once."""
    seen = ""
    for moment in CronSim(cron, after.astimezone(ZoneInfo(zone))):
        if nominal(moment) > seen:
            seen = nominal(moment)
            yield moment


def locked(db: Session, schedule_id: str) -> Schedule:
    """The schedule as it is now, locked until the commit."""
    fresh = select(Schedule).where(Schedule.id == schedule_id).with_for_update()
    return db.exec(fresh.execution_options(populate_existing=True)).one()
