"""Schedules: jobs that come again by themselves, with the newest rows of their dataset."""

from datetime import datetime
from typing import Any
from zoneinfo import available_timezones

from flask import Blueprint, flash, g, redirect, render_template, request
from sqlmodel import Session, col, select
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

from shared import schedules
from shared.columns import now
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.recipe import recipes
from shared.tables import Dataset, DatasetVersion, Job, Schedule
from web import forms
from web.new_job import models_for

pages = Blueprint("schedules", __name__)

PRESETS = (  # cron line, in words
    ("30 2 * * *", "Every night at 02:30"),
    ("0 6 * * 1-5", "Weekdays at 06:00"),
    ("0 3 * * 6", "Saturdays at 03:00"),
    ("0 4 1 * *", "The first of each month at 04:00"),
    ("0 * * * *", "Every hour"),
)
SHOWN_TIMES = 5


@pages.get("/schedules")
def index() -> str:
    """The team's schedules with their next time and what became of the last one."""
    with transaction() as db:
        lines = [
            {
                "schedule": schedule,
                "words": words(schedule.cron),
                "dataset": db.get(Dataset, schedule.dataset_id),
                "next": next(iter(schedules.next_times(schedule, 1)), None),
                "last": last_run(db, schedule),
            }
            for schedule in schedules.all_for(db, g.caller.team_id)
        ]
    return render_template("schedules/index.html", lines=lines)


def last_run(db: Session, schedule: Schedule) -> dict[str, Any] | None:
    """The newest run with its job."""
    found = schedules.runs(db, schedule.id, limit=1)
    return (
        {"run": found[0], "job": db.get(Job, found[0].job_id) if found[0].job_id else None} if found else None
    )


def words(cron: str) -> str:
    """A cron line in words, where it is one of the presets."""
    return dict(PRESETS).get(cron, "")


@pages.get("/schedules/new")
def form() -> str:
    """An empty form, or one filled from a job (`from`)."""
    with transaction() as db:
        typed = from_job(db, request.args["from"]) if request.args.get("from") else blank()
        return drawn(db, typed, {})


@pages.post("/schedules/new")
def create() -> Response | tuple[str, int] | str:
    """Make the schedule; with `redraw` only show the form again, brought up to date."""
    typed = read(request.form)
    with transaction() as db:
        if "redraw" in request.form:
            return drawn(db, typed, {})
    recipe = recipes()[typed["recipe"]]
    wrong = forms.problems(recipe, typed["knobs"])
    if not wrong:
        try:
            with transaction() as db:
                schedule = schedules.create(db, **order(typed))
            return redirect(f"/schedules/{schedule.id}", 303)
        except Refused as refusal:
            wrong[field_of(refusal)] = refusal.message
    with transaction() as db:
        return drawn(db, typed, wrong), 422


def field_of(refusal: Refused) -> str:
    """The form's field that a refusal is about."""
    return "dataset" if refusal.param == "dataset_id" else forms.field_of(refusal)


def order(typed: dict[str, Any]) -> dict[str, Any]:
    """What `schedules.create` takes."""
    asked = {
        "recipe": typed["recipe"],
        "base_model": typed["model"],
        "hyperparameters": typed["knobs"],
        "name": typed["name"],
    }
    if typed["columns"]:
        asked["columns"] = typed["columns"]
    machine = dict(typed["machine"])
    hours, processes = machine.pop("max_run_hours", None), machine.pop("processes", 1)
    known = {"processes": processes, "needs": machine, "max_run_seconds": forms.run_seconds(hours)}
    asked |= {name: value for name, value in known.items() if value not in (1, {}, None)}
    return {
        "team_id": g.caller.team_id,
        "name": typed["name"],
        "cron": typed["cron"],
        "zone": typed["zone"],
        "dataset_id": typed["dataset"],
        "order": asked,
        "created_by": g.caller.user_id,
    }


def blank() -> dict[str, Any]:
    """A schedule for every night."""
    recipe = next(iter(recipes().values()))
    return {
        "name": "",
        "recipe": recipe.name,
        "dataset": request.args.get("dataset", ""),
        "model": recipe.default_base_model,
        "cron": PRESETS[0][0],
        "zone": "UTC",
        "knobs": {},
        "columns": {},
        "machine": {},
    }


def from_job(db: Session, job_id: str) -> dict[str, Any]:
    """A schedule that repeats that job."""
    job = db.get(Job, job_id)
    if job is None or job.team_id != g.caller.team_id or job.recipe not in recipes():
        raise NotFound("job", job_id)
    version = db.get(DatasetVersion, job.dataset_version_id) if job.dataset_version_id else None
    defaults = {knob.name: knob.default for knob in forms.knobs(recipes()[job.recipe].spec)}
    return blank() | {
        "name": job.name,
        "recipe": job.recipe,
        "dataset": version.dataset_id if version else "",
        "model": job.checkpoint_id or job.base_model_id,
        "knobs": {k: v for k, v in job.spec.items() if k in defaults and v != defaults[k]},
        "columns": dict(job.columns),
        "machine": forms.machine_of(job.resources, job.max_run_seconds),
    }


def read(sent: MultiDict[str, str]) -> dict[str, Any]:
    """The form as it was sent. Raises Refused for a recipe that does not exist."""
    recipe = recipes().get(sent.get("recipe", ""))
    if recipe is None:
        raise Refused("Choose what the model should learn.", param="recipe", status=422)
    switched = sent.get("drawn-for") not in (None, recipe.name)
    kept = {c.name: sent.get(f"column-{c.name}", "") for c in recipe.columns}
    return {
        "name": sent.get("name", "").strip(),
        "recipe": recipe.name,
        "dataset": sent.get("dataset", ""),
        "model": recipe.default_base_model if switched else sent.get("model", ""),
        "cron": sent.get("cron", "").strip(),
        "zone": sent.get("zone", "").strip(),
        "knobs": {} if switched else forms.read(recipe.spec, sent),
        "columns": {} if switched else {mine: theirs for mine, theirs in kept.items() if theirs},
        "machine": forms.machine(sent),
    }


def drawn(db: Session, typed: dict[str, Any], wrong: dict[str, str]) -> str:
    """The form with its next times, or with what is wrong beside each field."""
    recipe = recipes()[typed["recipe"]]
    mine = select(Dataset).where(Dataset.team_id == g.caller.team_id, col(Dataset.deleted_at).is_(None))
    return render_template(
        "schedules/new.html",
        typed=typed,
        wrong=wrong,
        recipes=recipes(),
        recipe=recipe,
        datasets=list(db.exec(mine.order_by(Dataset.name)).all()),
        models=models_for(db, recipe),
        knobs=[*forms.knobs(recipe.spec), *forms.MACHINE],
        asked=typed["knobs"] | typed["machine"],
        presets=PRESETS,
        zones=sorted(available_timezones()),
        times=times(typed["cron"], typed["zone"]),
    )


def times(cron: str, zone: str) -> list[datetime]:
    """The next nominal times; none where the line or the zone is wrong."""
    try:
        schedules.checked_cron(cron, zone)
    except Refused:
        return []
    found = schedules.nominal_times(cron, zone, now())
    return [moment for moment, _ in zip(found, range(SHOWN_TIMES), strict=False)]


@pages.get("/schedules/<schedule_id>")
def show(schedule_id: str) -> str:
    """One schedule: when it comes next, and every time that it came with its job."""
    with transaction() as db:
        schedule = schedules.get(db, g.caller.team_id, schedule_id)
        runs = schedules.runs(db, schedule.id)
        made = select(Job).where(col(Job.id).in_([run.job_id for run in runs if run.job_id]))
        return render_template(
            "schedules/show.html",
            schedule=schedule,
            words=words(schedule.cron),
            dataset=db.get(Dataset, schedule.dataset_id),
            times=schedules.next_times(schedule, SHOWN_TIMES),
            runs=runs,
            made={job.id: job for job in db.exec(made)},
            recipe=recipes().get(schedule.order.get("recipe", "")),
            presets=PRESETS,
        )


@pages.post("/schedules/<schedule_id>/toggle")
def toggle(schedule_id: str) -> Response:
    """On or off."""
    with transaction() as db:
        schedule = schedules.toggle(db, schedules.get(db, g.caller.team_id, schedule_id))
    flash(
        "The schedule is on."
        if schedule.active
        else "The schedule is off; nothing is submitted until you turn it on.",
        "good",
    )
    return redirect(f"/schedules/{schedule_id}", 303)


@pages.post("/schedules/<schedule_id>/delete")
def delete(schedule_id: str) -> Response:
    """Take it away; its jobs stay."""
    with transaction() as db:
        schedule = schedules.get(db, g.caller.team_id, schedule_id)
        schedules.delete(db, schedule)
    flash(f"«{schedule.name}» is deleted; its jobs stay.", "good")
    return redirect("/schedules", 303)
