"""Models: what training starts from, and what it has made."""

from typing import Any

from flask import Blueprint, flash, g, jsonify, redirect, render_template, request
from sqlmodel import Session, col, select
from werkzeug.wrappers import Response

from shared import base_models, jobs, queue
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.presets import every as every_preset
from shared.recipe import recipes
from shared.settings import settings
from shared.tables import BaseModel, Checkpoint, Job, Ready, State, Team

pages = Blueprint("models", __name__)


@pages.get("/models")
def index() -> str:
    """Base models, and the team's tuned models."""
    return listed({}, "")


def listed(wrong: dict[str, str], typed: str, hub_id: str = "") -> str:
    """The list, with what was wrong with an upload or a hub id beside its field."""
    with transaction() as db:
        every = base_models.all_for(db, g.caller.team_id)
        return render_template(
            "models/index.html",
            models=[base for base in every if not base_models.is_scratch(base)],
            presets=by_architecture([base for base in every if base_models.is_scratch(base)]),
            tuned=tuned(db),
            good_for=good_for,
            wrong=wrong,
            typed=typed,
            hub_id=hub_id,
            hub=settings().allow_hub,
            most=settings().max_upload_bytes,
        )


@pages.post("/models")
def upload() -> Response | tuple[str, int] | tuple[Response, int]:
    """Take a zip of a safetensors folder."""
    title = request.form.get("name", "").strip()
    scripted = request.accept_mimetypes.best == "application/json"
    sent = request.files.get("file")
    try:
        if sent is None or not sent.filename:
            raise Refused("Choose a zip of the model's folder first.", param="file", status=422)
        model = base_models.upload(
            team_id=g.caller.team_id,
            stream=sent.stream,  # ty: ignore[invalid-argument-type] - a binary stream by another name
            filename=sent.filename,
            created_by=g.caller.user_id,
            title=title,
        )
    except Refused as refusal:
        field = refusal.param if refusal.param in ("name", "file") else "file"
        if scripted:
            return jsonify(message=refusal.message, field=field), refusal.status
        return listed({field: refusal.message}, title), refusal.status
    return jsonify(location=f"/models/{model.id}") if scripted else redirect(f"/models/{model.id}", 303)


@pages.post("/models/hub")
def from_hub() -> Response | tuple[str, int]:
    """Fetch a base model from a hub, where the operator allows it."""
    hub_id, revision = (request.form.get(name, "").strip() for name in ("hub", "revision"))
    try:
        model = base_models.from_hub(
            team_id=g.caller.team_id, hub_id=hub_id, revision=revision, created_by=g.caller.user_id
        )
    except Refused as refusal:
        field = "revision" if refusal.param == "revision" else "hub"
        return listed({field: refusal.message}, "", hub_id), refusal.status
    return redirect(f"/models/{model.id}", 303)


@pages.get("/models/<path:model_id>")
def show(model_id: str) -> str:
    """One base model: its facts, its files, and what was trained from it."""
    with transaction() as db:
        model = own(db, model_id)
        return render_template(
            "models/show.html",
            model=model,
            job=db.get(Job, model.import_job_id) if model.import_job_id else None,
            good_for=good_for(model),
            judged=[r for r in good_for(model) if not (r.needs_facts or base_models.is_scratch(model))],
            tuned=tuned(db, model.id),
        )


@pages.post("/models/<path:model_id>/import")
def fetch(model_id: str) -> Response:
    """Import it now, instead of when a job first needs it; or again, after a failure."""
    with transaction() as db:
        model = own(db, model_id)
        if model.state in (Ready.READY, Ready.BUILDING):
            return redirect(f"/models/{model_id}", 303)
        job = jobs.submit_import(
            db,
            team_id=g.caller.team_id,
            base_model_id=model.id,
            file_id=file_of(model),
            created_by=g.caller.user_id,
        )
    queue.wake(job.slot)
    return redirect(f"/models/{model_id}", 303)


@pages.post("/models/<path:model_id>/delete")
def delete(model_id: str) -> Response:
    """Take one of the team's own base models away."""
    with transaction() as db:
        model = own(db, model_id)
        base_models.delete(db, model)
    flash(f"«{model.title}» is deleted.", "good")
    return redirect("/models", 303)


def by_architecture(presets: list[BaseModel]) -> dict[str, list[BaseModel]]:
    """{architecture: its presets by size}, in the order of `shared.presets`."""
    known = {preset.id: preset for preset in presets}
    groups: dict[str, list[BaseModel]] = {}
    for one in every_preset():
        if one["id"] in known:
            groups.setdefault(one["facts"]["architecture"], []).append(known[one["id"]])
    return groups


def own(db: Session, model_id: str) -> BaseModel:
    """A base model that the team may see. Raises NotFound."""
    model = db.get(BaseModel, model_id)
    if model is None or model.deleted_at or model.team_id not in (None, g.caller.team_id):
        raise NotFound("model", model_id)
    return model


def file_of(model: BaseModel) -> str | None:
    """The uploaded file behind it, if that is where it comes from."""
    return model.source.removeprefix("file:") if model.source.startswith("file:") else None


def good_for(model: BaseModel) -> list[Any]:
    """The recipes that can start from it as it is."""
    heads, scratch = model.facts.get("heads", []), base_models.is_scratch(model)
    return [r for r in recipes().values() if r.head in heads and (r.from_scratch or not scratch)]


def tuned(db: Session, base_model_id: str | None = None) -> list[dict[str, Any]]:
    """The best checkpoint of each succeeded job, with the name by which the API calls it."""
    found = (
        select(Checkpoint, Job)
        .join(Job, col(Job.best_checkpoint_id) == Checkpoint.id)
        .where(Job.team_id == g.caller.team_id, Job.state == State.SUCCEEDED, col(Job.deleted_at).is_(None))
        .where(col(Checkpoint.deleted_at).is_(None))
    )
    if base_model_id:
        found = found.where(Job.base_model_id == base_model_id)
    team = db.get_one(Team, g.caller.team_id)
    known = recipes()
    return [
        {
            "checkpoint": checkpoint,
            "job": job,
            "name": base_models.name_of(checkpoint, job, team),
            "metric": known[job.recipe].metrics[0] if job.recipe in known else None,
        }
        for checkpoint, job in db.exec(found.order_by(col(Job.id).desc()).limit(100))
    ]
