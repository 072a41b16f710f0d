"""The form for an evaluation, and what its page shows: one model or several on the rows of a dataset."""

import secrets
from typing import Any

from flask import Blueprint, g, redirect, render_template, request
from sqlmodel import Session, col, select
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

from shared import evaluations, queue
from shared.base_models import is_scratch
from shared.db import transaction
from shared.errors import Refused
from shared.evaluations import COMPARISON
from shared.jobs import Order
from shared.recipe import Recipe, recipes
from shared.tables import BaseModel, Checkpoint, DatasetVersion, Job, Kind, Ready, Slot, State
from web import comparison, forms
from web.new_job import version_of, versions_for

pages = Blueprint("evaluations", __name__)

CHECKPOINTS = 200  # that can be chosen
OTHERS = 20  # evaluations that a page offers to compare with


@pages.get("/evaluations/new")
def form() -> str:
    """An empty form, or one with models (`model`, any number of times) and a dataset chosen."""
    with transaction() as db:
        asked = request.args.get("dataset")
        typed = {
            "models": request.args.getlist("model"),
            "dataset": version_of(db, asked).id if asked else "",
            "recipe": "",
            "name": "",
            "columns": {},
            "machine": {},
            "nonce": secrets.token_urlsafe(16),
        }
        return drawn(db, typed, {})


@pages.post("/evaluations/new")
def submit() -> Response | tuple[str, int] | str:
    """Make the jobs and show them: one by its page, several by their comparison."""
    typed = read(request.form)
    if "redraw" in request.form:
        with transaction() as db:
            return drawn(db, typed, {})
    try:
        if not typed["dataset"]:
            raise Refused("Choose the dataset whose rows are judged.", param="dataset")
        with transaction() as db:
            made = evaluations.submit(db, order(typed), typed["models"], f"form-{typed['nonce']}")
        for slot in Slot:  # the import of a base model may have come with it
            queue.wake(slot)
        together = made[0].labels.get(COMPARISON)
        return redirect(
            f"/evaluations/compare?comparison={together}" if together else f"/jobs/{made[0].id}", 303
        )
    except Refused as refusal:
        wrong = {forms.field_of(refusal): refusal.message}
        if refusal.code == "idempotency_key_reused":
            typed["nonce"] = secrets.token_urlsafe(16)
            wrong = {"": "This form has already started an evaluation. Send it again to start another one."}
    with transaction() as db:
        return drawn(db, typed, wrong), 422


def order(typed: dict[str, Any]) -> Order:
    """The order that the form stands for, for each of its models."""
    return Order(
        team_id=g.caller.team_id,
        kind=Kind.EVALUATE,
        recipe=typed["recipe"] or None,
        dataset_version_id=typed["dataset"],
        columns=typed["columns"] or None,
        name=typed["name"],
        needs=forms.needs_of(typed["machine"]),
        max_run_seconds=forms.run_seconds(typed["machine"].get("max_run_hours")),
        created_by=g.caller.user_id,
        actor=g.caller.actor,
        asked={"models": typed["models"]},
    )


def read(sent: MultiDict[str, str]) -> dict[str, Any]:
    """The form as it was sent."""
    columns = {
        name.removeprefix("column-"): value for name, value in sent.items() if name.startswith("column-")
    }
    return {
        "models": list(dict.fromkeys(sent.getlist("model"))),
        "dataset": sent.get("dataset", ""),
        "recipe": sent.get("recipe", ""),
        "name": sent.get("name", "").strip(),
        "nonce": sent.get("nonce") or secrets.token_urlsafe(16),
        "machine": forms.machine(sent, forms.NEEDS),
        "columns": {mine: theirs for mine, theirs in columns.items() if theirs},
    }


def drawn(db: Session, typed: dict[str, Any], wrong: dict[str, str]) -> str:
    """The form, with the columns that the recipe of the chosen models reads."""
    choices = models(db, typed["models"])
    base_only = judges(choices, typed)
    if typed["recipe"] not in [one.name for one in base_only]:
        typed["recipe"] = base_only[0].name if base_only else ""
    chosen = recipes_of(choices, typed)
    recipe = chosen[0] if len(chosen) == 1 else None
    version = version_of(db, typed["dataset"]) if typed["dataset"] else None
    names = [column["name"] for column in version.report.get("columns", [])] if version else []
    columns = mapping(recipe, version, names, typed["columns"])
    return render_template(
        "evaluations/new.html",
        typed=typed,
        wrong=wrong,
        machine=forms.NEEDS,
        choices=choices,
        recipe=recipe,
        judges=base_only,
        columns=columns,
        names=names,
        version=version,
        version_options=[(v.id, f"{d.name} v{v.number}, {v.rows:,} rows") for v, d in versions_for(db)],
        missing=missing(typed, chosen, version, columns),
        most=evaluations.MOST_MODELS,
    )


def models(db: Session, chosen: list[str]) -> dict[str, Any]:
    """`best`: {recipe: [(checkpoint, job)]} of each job's best, newest job first; `rest`: the other checkpoints,
    likewise; `base`: base models that have weights. Those that are chosen are there, however many there are.
    """
    found = (
        select(Checkpoint, Job)
        .join(Job, col(Checkpoint.job_id) == Job.id)
        .where(Checkpoint.team_id == g.caller.team_id, col(Checkpoint.deleted_at).is_(None))
        .where(col(Job.deleted_at).is_(None), Job.state != State.RUNNING, col(Job.recipe).in_(recipes()))
        .order_by(col(Checkpoint.id).in_(chosen).desc(), col(Job.id).desc(), col(Checkpoint.step).desc())
        .limit(CHECKPOINTS)
    )
    grouped: dict[str, dict[str, list[tuple[Checkpoint, Job]]]] = {"best": {}, "rest": {}}
    for checkpoint, job in db.exec(found):
        part = grouped["best" if checkpoint.id == job.best_checkpoint_id else "rest"]
        part.setdefault(job.recipe or "", []).append((checkpoint, job))
    seen = (col(BaseModel.team_id).is_(None)) | (BaseModel.team_id == g.caller.team_id)
    base = db.exec(
        select(BaseModel).where(seen, col(BaseModel.deleted_at).is_(None)).order_by(BaseModel.title)
    )
    return grouped | {"base": [m for m in base if not is_scratch(m) and m.state is not Ready.FAILED]}


def recipes_of(choices: dict[str, Any], typed: dict[str, Any]) -> list[Recipe]:
    """The recipes by which the chosen models are judged; base models alone by the one that is chosen for them."""
    trained = {
        checkpoint.id: name
        for part in ("best", "rest")
        for name, points in choices[part].items()
        for checkpoint, _ in points
    }
    names = list(dict.fromkeys(trained[model] for model in typed["models"] if model in trained))
    return [recipes()[name] for name in names or [typed["recipe"]] if name in recipes()]


def judges(choices: dict[str, Any], typed: dict[str, Any]) -> list[Recipe]:
    """Where base models alone are chosen: the recipes that can judge them as they are. Else none."""
    base = [model for model in choices["base"] if model.id in typed["models"]]
    if not base or len(base) < len(typed["models"]):
        return []
    heads = set.intersection(*(set(model.facts.get("heads") or []) for model in base))
    return [recipe for recipe in recipes().values() if recipe.head in heads and not recipe.needs_facts]


def mapping(
    recipe: Recipe | None, version: DatasetVersion | None, names: list[str], chosen: dict[str, str]
) -> dict[str, str]:
    """{the recipe's column: the dataset's}: as chosen, else as the importer or the recipe recognised it."""
    if recipe is None or version is None:
        return {}
    kept = {mine: theirs for mine, theirs in chosen.items() if theirs in names}
    fit = version.report.get("fits", {}).get(recipe.name, {})
    return kept or fit.get("columns") or recipe.recognise(names) or {}


def missing(
    typed: dict[str, Any], chosen: list[Recipe], version: DatasetVersion | None, columns: dict[str, str]
) -> list[str]:
    """What keeps the evaluation from starting, in sentences."""
    said = []
    if len(typed["models"]) > evaluations.MOST_MODELS:
        said.append(f"Choose at most {evaluations.MOST_MODELS} models.")
    if not typed["models"]:
        said.append("Choose a model.")
    elif not chosen:
        said.append("No recipe can judge these models as they are. Choose checkpoints.")
    elif len(chosen) > 1:
        said.append("Choose models that were trained by one recipe.")
    if version is None:
        said.append("Choose a dataset.")
    elif len(chosen) == 1 and version.state is Ready.READY:
        fit = version.report.get("fits", {}).get(chosen[0].name, {})
        said.append(chosen[0].lacks(columns) or "")
        said += [found["message"] for found in fit.get("findings", []) if found.get("fatal")][:3]
    return [sentence for sentence in said if sentence]


# --- the page of an evaluation ----------------------------------------------------------------------


def judged(db: Session, job: Job, recipe: Recipe | None) -> dict[str, Any]:
    """What the page of an evaluation shows beside what every job has; {} for other kinds."""
    if job.kind is not Kind.EVALUATE or recipe is None:
        return {}
    told, intervals = job.scores.get("tuned") or {}, job.scores.get("intervals") or {}
    lines = []
    for metric in recipe.metrics:
        value, interval = told.get(metric.name), intervals.get(metric.name)
        [mark] = comparison.marks([(value, interval)], whole=True)
        lines.append({"metric": metric, "value": value, "interval": interval, "mark": mark})
    return {"metrics": lines if told else [], "others": others(db, job)}


def others(db: Session, job: Job) -> list[tuple[Job, str]]:
    """[(evaluation, the words for its model)] of other models on the same rows, newest first."""
    found = select(Job).where(
        Job.team_id == job.team_id,
        Job.kind == Kind.EVALUATE,
        Job.state == State.SUCCEEDED,
        Job.dataset_version_id == job.dataset_version_id,
        Job.recipe == job.recipe,
        Job.id != job.id,
        col(Job.deleted_at).is_(None),
    )
    rows = db.exec(found.order_by(col(Job.id).desc()).limit(OTHERS)).all()
    words = words_for(db, rows)
    return [(row, words[row.id]) for row in rows]


def words_for(db: Session, rows: Any) -> dict[str, str]:
    """{evaluation's id: what people call its model}."""
    ids = {row.checkpoint_id for row in rows if row.checkpoint_id}
    points = select(Checkpoint, Job).join(Job, col(Checkpoint.job_id) == Job.id)
    tuned = {
        point.id: f"{trained.name or trained.id}, step {point.step:,}"
        for point, trained in db.exec(points.where(col(Checkpoint.id).in_(ids)))
    }
    bases = select(BaseModel).where(col(BaseModel.id).in_({row.base_model_id for row in rows}))
    titles = {base.id: base.title for base in db.exec(bases)}
    return {
        row.id: tuned.get(row.checkpoint_id or "") or titles.get(row.base_model_id or "", "") for row in rows
    }
