"""/v1/models: base models and what the team has trained, by the names that jobs and batches take."""

from typing import cast

from flask import Blueprint, Response, g
from sqlmodel import Session, col, select

from shared import base_models
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.tables import BaseModel, Checkpoint, File, Job, State, Team
from web import shapes, wire

api = Blueprint("api_models", __name__, url_prefix="/v1")
MOST = 1000  # checkpoints in the list, which has no pages


@api.get("/models")
@wire.operation(shapes.ModelList)
def index() -> Response:
    """List base models and the checkpoints of the team's jobs."""
    trained = (
        select(Checkpoint, Job)
        .join(Job, col(Job.id) == Checkpoint.job_id)
        .where(
            Checkpoint.team_id == g.caller.team_id,
            col(Checkpoint.deleted_at).is_(None),
            col(Job.deleted_at).is_(None),
            Job.state == State.SUCCEEDED,
        )
        .order_by(col(Job.id).desc(), col(Checkpoint.step).desc())
        .limit(MOST)
    )
    with transaction() as db:
        team = db.get_one(Team, g.caller.team_id)
        found = [of_base(base, team) for base in base_models.all_for(db, g.caller.team_id)]
        found += [of_checkpoint(checkpoint, job, team) for checkpoint, job in db.exec(trained)]
    return wire.answer(shapes.ModelList(data=found))


@api.post("/models")
@wire.operation(shapes.Model, body=shapes.CreateModel)
def create() -> Response:
    """Import a base model of the team's own. Ours, not OpenAI's; it can be named in jobs at once."""
    asked = wire.body(shapes.CreateModel)
    if (asked.file is None) == (asked.hub is None):
        raise Refused("Give either 'file' or 'hub'.", param="file", code="missing_required_parameter")
    if asked.hub is not None:
        base = base_models.from_hub(
            team_id=g.caller.team_id, hub_id=asked.hub, revision=asked.revision, created_by=g.caller.user_id
        )
    else:
        base = base_models.from_file(
            zip_of(asked.file or ""), title=asked.title or "model", created_by=g.caller.user_id
        )
    with transaction() as db:
        return wire.answer(of_base(base, db.get_one(Team, g.caller.team_id)))


def zip_of(file_id: str) -> File:
    """The team's uploaded model. Raises Refused."""
    with transaction() as db:
        file = db.get(File, file_id)
    if file is None or file.team_id != g.caller.team_id or file.deleted_at:
        raise Refused(f"No such File object: {file_id}", param="file", code="not_found", status=404)
    if file.purpose != "base-model":
        raise Refused(f"{file_id} was uploaded for '{file.purpose}', not as a 'base-model'.", param="file")
    return file


@api.get("/models/<path:model>")
@wire.operation(shapes.Model)
def retrieve(model: str) -> Response:
    """One model by its name, which may have slashes."""
    with transaction() as db:
        return wire.answer(shape(db, base_models.find(db, g.caller.team_id, model)))


@api.delete("/models/<path:model>")
@wire.operation(shapes.Deleted)
def delete(model: str) -> Response:
    """Delete a fine-tuned model or a base model of the team's own. The job stays."""
    with transaction() as db:
        weights = base_models.find(db, g.caller.team_id, model)
        if weights.checkpoint is None:
            base_models.delete(db, weights.base_model)
        else:
            require_unused(db, weights.checkpoint)
            weights.checkpoint.deleted_at = now()
    return wire.answer(shapes.Deleted(id=model, object="model"))


def require_unused(db: Session, checkpoint: Checkpoint) -> None:
    """Raises Refused while a job that has not ended writes or reads the checkpoint."""
    ended = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    using = select(Job.id).where(
        (Job.checkpoint_id == checkpoint.id) | (Job.id == checkpoint.job_id), col(Job.state).not_in(ended)
    )
    if job_id := db.exec(using.limit(1)).first():
        raise Refused(f"{job_id} still needs this model.", param="id", code="in_use", status=409)


def shape(db: Session, weights: base_models.Weights) -> shapes.Model:
    """A model on the wire."""
    team = db.get_one(Team, g.caller.team_id)
    if weights.checkpoint is None:
        return of_base(weights.base_model, team)
    return of_checkpoint(weights.checkpoint, db.get_one(Job, weights.checkpoint.job_id), team)


def of_base(base: BaseModel, team: Team) -> shapes.Model:
    """A base model; everybody's belong to Burnish."""
    return shapes.Model(
        id=base.id,
        created=cast(int, wire.seconds(base.created_at)),
        owned_by=base_models.slug(team.name) if base.team_id else "burnish",
        x_title=base.title,
        x_state=base.state.value,
        x_licence=base.licence,
        x_facts=base.facts,
    )


def of_checkpoint(checkpoint: Checkpoint, job: Job, team: Team) -> shapes.Model:
    """A trained model."""
    return shapes.Model(
        id=base_models.name_of(checkpoint, job, team),
        created=cast(int, wire.seconds(checkpoint.created_at)),
        owned_by=base_models.slug(team.name),
        x_title=job.name or job.id,
        x_state="ready",
        x_facts={"step": checkpoint.step, "metrics": checkpoint.metrics, "adapter": checkpoint.adapter},
        x_job=job.id,
    )
