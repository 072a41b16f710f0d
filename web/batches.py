"""The form for a batch: a model answers every row of a dataset."""

import secrets
from dataclasses import fields
from typing import Any

from flask import Blueprint, g, redirect, render_template, request
from sqlmodel import Session, col, select
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

from shared import jobs, queue
from shared.db import transaction
from shared.errors import Refused
from shared.jobs import Order
from shared.recipe import Recipe, recipes
from shared.sampling import KNOBS, Sampling, parsed
from shared.tables import BaseModel, Checkpoint, DatasetVersion, Job, Kind, Ready, State
from web import forms
from web.new_job import version_of, versions_for

pages = Blueprint("batches", __name__)

CHAT = "/v1/chat/completions"


@pages.get("/batches/new")
def form() -> str:
    """An empty form, or one with a model and a dataset chosen."""
    with transaction() as db:
        dataset = version_of(db, request.args["dataset"]).id if request.args.get("dataset") else ""
        typed = {
            "model": request.args.get("model", ""),
            "dataset": dataset,
            "name": "",
            "columns": {},
            "machine": {},
            "sampling": {},
        }
        return drawn(db, typed | {"nonce": secrets.token_urlsafe(16)}, {})


@pages.post("/batches/new")
def submit() -> Response | tuple[str, int] | str:
    """Make the job and show it; with `redraw` only show the form again."""
    typed = read(request.form)
    if "redraw" in request.form:
        with transaction() as db:
            return drawn(db, typed, {})
    try:
        if not typed["dataset"]:
            raise Refused("Choose the dataset whose rows are answered.", param="dataset")
        with transaction() as db:
            job = jobs.submit(db, order(db, typed), idempotency_key=f"form-{typed['nonce']}")
        queue.wake(job.slot)
        return redirect(f"/jobs/{job.id}", 303)
    except Refused as refusal:
        wrong = {forms.field_of(refusal): refusal.message}
        if refusal.code == "idempotency_key_reused":
            typed["nonce"] = secrets.token_urlsafe(16)
            wrong = {"": "This form has already started a job. Send it again to start another one."}
    with transaction() as db:
        return drawn(db, typed, wrong), 422


def order(db: Session, typed: dict[str, Any]) -> Order:
    """The order that the form stands for. Knobs of a model that was chosen before are left out."""
    recipe = recipe_of(models(db), typed["model"])
    reads = recipe.samples_with if recipe else KNOBS
    turned = {name: text for name, text in typed["sampling"].items() if text and name in reads}
    return Order(
        team_id=g.caller.team_id,
        kind=Kind.INFER,
        model=typed["model"] or None,
        dataset_version_id=typed["dataset"],
        hyperparameters={name: parsed(name, text) for name, text in turned.items()},
        columns=typed["columns"] or None,
        name=typed["name"],
        needs=forms.needs_of(typed["machine"]),
        max_run_seconds=forms.run_seconds(typed["machine"].get("max_run_hours")),
        created_by=g.caller.user_id,
        actor=g.caller.actor,
        asked={"model": typed["model"]},
    )


def read(sent: MultiDict[str, str]) -> dict[str, Any]:
    """The form as it was sent."""
    columns = {
        name.removeprefix("column-"): value for name, value in sent.items() if name.startswith("column-")
    }
    return {
        "model": sent.get("model", ""),
        "dataset": sent.get("dataset", ""),
        "name": sent.get("name", "").strip(),
        "nonce": sent.get("nonce") or secrets.token_urlsafe(16),
        "machine": forms.machine(sent, forms.NEEDS),
        "columns": {mine: theirs for mine, theirs in columns.items() if theirs},
        "sampling": {name: sent[name].strip() for name in KNOBS if name in sent},
    }


def drawn(db: Session, typed: dict[str, Any], wrong: dict[str, str]) -> str:
    """The form, with the columns that the chosen model's recipe reads."""
    choices = models(db)
    recipe = recipe_of(choices, typed["model"])
    version = version_of(db, typed["dataset"]) if typed["dataset"] else None
    names = [column["name"] for column in version.report.get("columns", [])] if version else []
    defaults = {f.name: f.default for f in fields(Sampling)}
    return render_template(
        "batches/new.html",
        typed=typed,
        wrong=wrong,
        machine=forms.NEEDS,
        choices=choices,
        recipe=recipe,
        inputs=[column for column in recipe.columns if not column.output] if recipe else [],
        columns=mapping(recipe, version, names, typed["columns"]),
        names=names,
        version=version,
        version_options=[(v.id, f"{d.name} v{v.number}, {v.rows:,} rows") for v, d in versions_for(db)],
        sampling={
            name: (knob.title, knob.help, defaults[name])
            for name, knob in KNOBS.items()
            if recipe and name in recipe.samples_with
        },
    )


def models(db: Session) -> dict[str, list]:
    """`tuned`: [(checkpoint, job)], newest job first, each job's best first; `base`: those that chat."""
    found = (
        select(Checkpoint, Job)
        .join(Job, col(Checkpoint.job_id) == Job.id)
        .where(Checkpoint.team_id == g.caller.team_id, col(Checkpoint.deleted_at).is_(None))
        .where(col(Job.deleted_at).is_(None), Job.state != State.RUNNING)
        .order_by(
            col(Job.id).desc(),
            (col(Job.best_checkpoint_id) == Checkpoint.id).desc(),
            col(Checkpoint.step).desc(),
        )
    )
    seen = (col(BaseModel.team_id).is_(None)) | (BaseModel.team_id == g.caller.team_id)
    base = db.exec(
        select(BaseModel).where(seen, col(BaseModel.deleted_at).is_(None)).order_by(BaseModel.title)
    )
    chat = [m for m in base if m.facts.get("chat") and m.state is not Ready.FAILED]
    return {"tuned": list(db.exec(found.limit(100)).all()), "base": chat}


def recipe_of(choices: dict[str, list], name: str) -> Recipe | None:
    """The recipe by which that model answers."""
    known = recipes()
    for checkpoint, job in choices["tuned"]:
        if checkpoint.id == name:
            return known.get(job.recipe or "")
    if name in [model.id for model in choices["base"]]:
        return next((recipe for recipe in known.values() if recipe.endpoint == CHAT), None)
    return None


def mapping(
    recipe: Recipe | None, version: DatasetVersion | None, names: list[str], chosen: dict[str, str]
) -> dict[str, str]:
    """{the recipe's input column: the dataset's}: as chosen, else as recognised, else by equal names."""
    if recipe is None or version is None:
        return {}
    kept = {mine: theirs for mine, theirs in chosen.items() if theirs in names}
    known = (
        version.report.get("fits", {}).get(recipe.name, {}).get("columns") or recipe.recognise(names) or {}
    )
    inputs = {column.name for column in recipe.columns if not column.output}
    return kept or {m: t for m, t in known.items() if m in inputs} or {n: n for n in names if n in inputs}
