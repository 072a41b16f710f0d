"""The form for a training job: goal, data, base model, knobs; and what it would take, beside it."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from flask import Blueprint, g, redirect, render_template, request
from sqlmodel import Session, col, select
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

from shared import jobs, queue
from shared.base_models import is_scratch
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.jobs import Order
from shared.recipe import Recipe, recipes
from shared.spec import resolve
from shared.tables import BaseModel, Checkpoint, Dataset, DatasetVersion, Job, Kind, Ready, State
from web import forms
from web.quote import quote

pages = Blueprint("new_job", __name__)


@dataclass
class Draft:
    """What is on the form: ids, text as typed, and the nonce that makes a second click harmless."""

    recipe: Recipe
    dataset: str = ""  # a version's id
    valid: str = ""
    model: str = ""
    name: str = ""
    seed: str = ""
    machine: dict[str, Any] = field(default_factory=dict)  # see forms.MACHINE
    columns: dict[str, str] = field(default_factory=dict)
    knobs: dict[str, Any] = field(default_factory=dict)
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def needs(self) -> dict[str, Any]:
        """What it needs of a worker."""
        return {"processes": 1} | {k: v for k, v in self.machine.items() if k != "max_run_hours"}


@pages.get("/jobs/new")
def form() -> str:
    """An empty form, or one filled from a job (`from`), a dataset (`dataset`) or a model (`model`).

    With `mend` why the job failed stands beside the field that it names.
    """
    with transaction() as db:
        if not request.args.get("from"):
            return drawn(db, blank(db, request.args), {})
        draft = cloned(db, request.args["from"])
        wrong = to_mend(db, request.args["from"], draft.recipe) if request.args.get("mend") else {}
        return drawn(db, draft, wrong)


@pages.post("/jobs/new")
def submit() -> Response | tuple[str, int] | str:
    """Make the job and show it; with `redraw` only show the form again, brought up to date."""
    draft = read(request.form)
    if "redraw" in request.form:
        with transaction() as db:
            return drawn(db, draft, {})
    wrong = forms.problems(draft.recipe, draft.knobs)
    if draft.seed and not draft.seed.isdigit():
        wrong["seed"] = f"The seed is a whole number; «{draft.seed}» is not."
    if not wrong:
        try:
            with transaction() as db:
                job = jobs.submit(db, order_of(draft), idempotency_key=f"form-{draft.nonce}")
            queue.wake(job.slot)
            return redirect(f"/jobs/{job.id}", 303)
        except Refused as refusal:
            wrong[forms.field_of(refusal)] = refusal.message
            if refusal.code == "idempotency_key_reused":
                draft.nonce = secrets.token_urlsafe(16)
                wrong = {"": "This form has already started a job. Send it again to start another one."}
    with transaction() as db:
        return drawn(db, draft, wrong), 422


def order_of(draft: Draft) -> Order:
    """The order that the form stands for."""
    asked = {
        "recipe": draft.recipe.name,
        "model": draft.model,
        "hyperparameters": draft.knobs,
        "suffix": draft.name.strip(),
        "resources": draft.needs,
    }
    return Order(
        team_id=g.caller.team_id,
        kind=Kind.TRAIN,
        recipe=draft.recipe.name,
        model=draft.model or None,
        dataset_version_id=draft.dataset or None,
        valid_version_id=draft.valid or None,
        hyperparameters=draft.knobs,
        columns=draft.columns or None,
        name=draft.name.strip(),
        seed=int(draft.seed) if draft.seed else None,
        processes=draft.machine.get("processes", 1),
        needs=forms.needs_of(draft.machine),
        max_run_seconds=forms.run_seconds(draft.machine.get("max_run_hours")),
        created_by=g.caller.user_id,
        actor=g.caller.actor,
        asked=asked,
    )


def blank(db: Session, args: MultiDict[str, str]) -> Draft:
    """A form with sensible defaults: the recipe that fits the dataset, the recipe's base model."""
    version = version_of(db, args["dataset"]) if args.get("dataset") else None
    known, fits = recipes(), version.report.get("fits", {}) if version else {}
    fitting = sorted((one for one in known if one in fits), key=lambda one: bool(fits[one].get("fatal")))
    recipe = known.get(args.get("recipe", "")) or known[next(iter(fitting or known))]
    model = args.get("model") or recipe.default_base_model
    return Draft(recipe=recipe, dataset=version.id if version else "", model=model)


def cloned(db: Session, job_id: str) -> Draft:
    """The form as it stood when that job was made; its dataset version is kept."""
    job = db.get(Job, job_id)
    if job is None or job.team_id != g.caller.team_id or job.recipe not in recipes():
        raise NotFound("job", job_id)
    recipe = recipes()[job.recipe]
    defaults = {knob.name: knob.default for knob in forms.knobs(recipe.spec)}
    return Draft(
        recipe=recipe,
        dataset=job.dataset_version_id or "",
        valid=job.valid_version_id or "",
        model=job.checkpoint_id or job.base_model_id or "",
        name=job.name,
        seed=str(job.asked.get("seed", "")),
        machine=forms.machine_of(job.resources, job.max_run_seconds),
        columns=dict(job.columns),
        knobs={k: v for k, v in job.spec.items() if k in defaults and v != defaults[k]},
    )


def to_mend(db: Session, job_id: str, recipe: Recipe) -> dict[str, str]:
    """{field: why that job failed}; a column of the recipe is a field by its name."""
    job = db.get_one(Job, job_id)
    if not job.reason:
        return {}
    field = forms.field_of(Refused(job.reason, param=job.reason_param))
    if any(field == column.name for column in recipe.columns):
        field = f"column-{field}"
    return {field: job.reason}


def read(sent: MultiDict[str, str]) -> Draft:
    """The form as it was sent. Raises Refused for a recipe that does not exist."""
    known = recipes()
    recipe = known.get(sent.get("recipe", ""))
    if recipe is None:
        raise Refused("Choose what the model should learn.", param="recipe", status=422)
    columns = {c.name: sent.get(f"column-{c.name}", "") for c in recipe.columns}
    switched = sent.get("drawn-for") not in (None, recipe.name)
    return Draft(
        recipe=recipe,
        dataset=sent.get("dataset", ""),
        valid=sent.get("valid", ""),
        model=sent.get("model", "") if not switched else "",
        name=sent.get("name", ""),
        seed=sent.get("seed", "").strip(),
        machine=forms.machine(sent),
        columns={mine: theirs for mine, theirs in columns.items() if theirs},
        knobs={} if switched else forms.read(recipe.spec, sent),
        nonce=sent.get("nonce") or secrets.token_urlsafe(16),
    )


def drawn(db: Session, draft: Draft, wrong: dict[str, str]) -> str:
    """The page for a draft, with a sentence beside each field that is wrong."""
    version = version_of(db, draft.dataset) if draft.dataset else None
    columns = mapping(draft, version)
    versions = versions_for(db)
    models = models_for(db, draft.recipe)
    if not draft.model:
        draft.model = draft.recipe.default_base_model
    told = quote(
        db,
        g.caller.team_id,
        draft.recipe,
        spec_of(draft),
        version,
        columns,
        base_of(models, draft.model),
        separate_valid=bool(draft.valid),
    )
    told.missing += missing(draft, version, columns)
    return render_template(
        "jobs/new.html",
        draft=draft,
        wrong=wrong,
        recipes=recipes(),
        versions=versions,
        version=version,
        version_options=[(v.id, f"{d.name} v{v.number}") for v, d in versions],
        names=[column["name"] for column in version.report.get("columns", [])] if version else [],
        columns=columns,
        wrong_columns=any(field.startswith("column") for field in wrong),
        mapped=bool(columns) and not draft.recipe.lacks(columns),
        models=models,
        knobs=[*forms.knobs(draft.recipe.spec), *forms.MACHINE],
        asked=draft.knobs | draft.machine,
        quote=told,
    )


def spec_of(draft: Draft) -> Any:
    """The Spec that the knobs make, or None while one of them is wrong."""
    try:
        return resolve(draft.recipe, draft.knobs)
    except Refused:
        return None


def mapping(draft: Draft, version: DatasetVersion | None) -> dict[str, str]:
    """{recipe's column: dataset's column}: as chosen, else as the importer or the recipe recognised it."""
    if version is None:
        return {}
    names = {column["name"] for column in version.report.get("columns", [])}
    chosen = {mine: theirs for mine, theirs in draft.columns.items() if theirs in names}
    if chosen:
        return chosen
    fit = version.report.get("fits", {}).get(draft.recipe.name, {})
    return fit.get("columns") or draft.recipe.recognise(names) or {}


def missing(draft: Draft, version: DatasetVersion | None, columns: dict[str, str]) -> list[str]:
    """What keeps the job from starting, in sentences."""
    if version is None:
        return ["Choose a dataset."]
    if version.state is Ready.FAILED:
        return ["This dataset could not be read. Choose another version."]
    if version.state is not Ready.READY:
        return []
    said = []
    if not columns:
        needed = [c.name for c in draft.recipe.columns if c.required] or [
            c.name for c in draft.recipe.columns
        ]
        said.append(f"Say which columns hold {' and '.join(f'«{name}»' for name in needed)}.")
    fit = version.report.get("fits", {}).get(draft.recipe.name, {})
    said += [finding["message"] for finding in fit.get("findings", []) if finding.get("fatal")][:3]
    return said


def version_of(db: Session, name: str) -> DatasetVersion:
    """The team's dataset version, or the newest one of a dataset's id. Raises NotFound."""
    version = db.get(DatasetVersion, name)
    if version is None and name.startswith("ds-"):
        newest = select(DatasetVersion).where(DatasetVersion.dataset_id == name)
        version = db.exec(newest.order_by(col(DatasetVersion.number).desc())).first()
    if version is None or version.team_id != g.caller.team_id:
        raise NotFound("dataset", name)
    return version


def versions_for(db: Session) -> list[tuple[DatasetVersion, Dataset]]:
    """What can be chosen: every dataset's versions, newest first, at most 200."""
    found = (
        select(DatasetVersion, Dataset)
        .join(Dataset)
        .where(Dataset.team_id == g.caller.team_id, col(Dataset.deleted_at).is_(None))
        .where(col(DatasetVersion.state) != Ready.FAILED)
        .order_by(Dataset.name, col(DatasetVersion.number).desc())
        .limit(200)
    )
    return list(db.exec(found).all())


def models_for(db: Session, recipe: Recipe) -> dict[str, list]:
    """`base`: base models with the recipe's head (or not imported yet); `scratch`: presets likewise;
    `tuned`: [(checkpoint, job)], also of what another recipe has pretrained.
    """
    mine = (col(BaseModel.team_id).is_(None)) | (BaseModel.team_id == g.caller.team_id)
    every = select(BaseModel).where(mine, col(BaseModel.deleted_at).is_(None)).order_by(BaseModel.title)
    known = [m for m in db.exec(every) if m.state is not Ready.FAILED]
    base = [m for m in known if fits(m, recipe)]
    trained_on = [m.id for m in known if recipe.head in (m.facts.get("heads") or [recipe.head])]
    best = (
        select(Checkpoint, Job)
        .join(Job, col(Job.best_checkpoint_id) == Checkpoint.id)
        .where(Job.team_id == g.caller.team_id, Job.state == State.SUCCEEDED, col(Job.deleted_at).is_(None))
        .where(col(Job.base_model_id).in_(trained_on), col(Checkpoint.deleted_at).is_(None))
        .order_by(col(Job.id).desc())
        .limit(50)
    )
    return {
        "base": [m for m in base if not is_scratch(m)],
        "scratch": [m for m in base if is_scratch(m)],
        "tuned": list(db.exec(best).all()),
    }


def fits(model: BaseModel, recipe: Recipe) -> bool:
    """Whether it offers the recipe's head; what was never imported is judged by the recipes' defaults."""
    heads = model.facts.get("heads")
    if is_scratch(model) and not recipe.from_scratch:
        return False
    if heads:
        return recipe.head in heads
    defaults = {r.default_base_model: r.head for r in recipes().values()}
    return defaults.get(model.id, recipe.head) == recipe.head


def base_of(models: dict[str, list], name: str) -> str | None:
    """The base model's id behind a model's name on the form."""
    return next(
        (job.base_model_id for checkpoint, job in models["tuned"] if checkpoint.id == name), name or None
    )
