"""/v1/fine_tuning/jobs/{id}/checkpoints: what a job has stored, and its files."""

from typing import Any, cast

from flask import Blueprint, Response, g
from sqlmodel import Session, col, select

from shared import base_models, downloads, jobs, queue
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.tables import Artifact, Checkpoint, Job, Kind, Ready, Role, Team
from web import checkpoints, policy, shapes, wire
from web.api_jobs import find as find_job
from web.words import servable

api = Blueprint("api_checkpoints", __name__, url_prefix="/v1")


@api.get("/fine_tuning/jobs/<job_id>/checkpoints")
@wire.operation(shapes.Page[shapes.JobCheckpoint], query=shapes.CheckpointsAsked)
def index(job_id: str) -> Response:
    """List a job's checkpoints, the last step first."""
    asked = wire.query(shapes.CheckpointsAsked)
    with transaction() as db:
        job = find_job(db, job_id, Kind.TRAIN)
        team = db.get_one(Team, g.caller.team_id)
        wanted = stored(job)
        if asked.after is not None:
            wanted = wanted.where(Checkpoint.step < find(db, job, asked.after, param="after").step)
        rows = db.exec(wanted.order_by(col(Checkpoint.step).desc()).limit(asked.limit + 1)).all()
    return wire.listed([shape(row, job, team) for row in rows[: asked.limit]], len(rows) > asked.limit)


@api.get("/fine_tuning/jobs/<job_id>/checkpoints/<path:checkpoint_id>/files")
@wire.operation(shapes.CheckpointFiles, query=shapes.FormAsked)
def files(job_id: str, checkpoint_id: str) -> Response:
    """List a checkpoint's files with links to download them.

    As trained: an adapter, or the full model. `form=merged` gives the full model for every job, `form=gguf`
    one file for llama.cpp of a Llama-type model; both are queued when first asked for and built then, and
    compared with the trained model, so ask again until `x_status` is `ready`.
    """
    asked = wire.query(shapes.FormAsked)
    with transaction() as db:
        job = find_job(db, job_id, Kind.TRAIN)
        checkpoint = find(db, job, checkpoint_id)
        if asked.form is None or (asked.form == "merged" and not checkpoint.adapter):
            return wire.answer(as_trained(checkpoint))
        artifact = made(db, checkpoint, asked.form)
        if artifact is None:
            policy.require(Role.MEMBER)
            jobs.submit_export(db, checkpoint=checkpoint, form=asked.form, created_by=g.caller.user_id)
        answer = as_exported(db, artifact)
    if artifact is None:
        queue.wake("light")
    return wire.answer(answer)


@api.post("/fine_tuning/jobs/<job_id>/checkpoints/<path:checkpoint_id>/pin")
@wire.operation(shapes.JobCheckpoint)
def pin(job_id: str, checkpoint_id: str) -> Response:
    """Keep a checkpoint, whatever the team's rule says, until it is unpinned."""
    return told(job_id, checkpoint_id, on=True)


@api.post("/fine_tuning/jobs/<job_id>/checkpoints/<path:checkpoint_id>/unpin")
@wire.operation(shapes.JobCheckpoint)
def unpin(job_id: str, checkpoint_id: str) -> Response:
    """Leave a checkpoint to the team's rule again."""
    return told(job_id, checkpoint_id, on=False)


def told(job_id: str, name: str, *, on: bool) -> Response:
    """Pin it or not; answer with what it is now."""
    with transaction() as db:
        job = find_job(db, job_id, Kind.TRAIN)
        point = checkpoints.pinned(db, find(db, job, name).id, on=on)
        return wire.answer(shape(point, job, db.get_one(Team, g.caller.team_id)))


def stored(job: Job) -> Any:
    """The job's checkpoints that can be downloaded."""
    return select(Checkpoint).where(Checkpoint.job_id == job.id, col(Checkpoint.deleted_at).is_(None))


def find(db: Session, job: Job, name: str, param: str = "id") -> Checkpoint:
    """The job's checkpoint by its id or its model name. Raises NotFound, Refused where it is a parameter."""
    found = db.exec(stored(job).where(Checkpoint.id == name)).first()
    if found is None and name.startswith("ft:"):
        named = base_models.named_checkpoint(db, job.team_id, name)
        found = named if named and named.job_id == job.id else None
    if found is None and param != "id":
        raise Refused(f"There is no object «{name}» in this list.", param=param)
    if found is None:
        raise NotFound("checkpoint", name)
    return found


def made(db: Session, checkpoint: Checkpoint, form: str) -> Artifact | None:
    """The newest try to make that form, if there was one."""
    tries = select(Artifact).where(Artifact.checkpoint_id == checkpoint.id, Artifact.form == form)
    return db.exec(tries.order_by(col(Artifact.id).desc())).first()


def as_trained(checkpoint: Checkpoint) -> shapes.CheckpointFiles:
    """The servable part as the trainer wrote it."""
    return linked(f"{checkpoint.prefix}servable/", servable(checkpoint.manifest), checkpoint)


def as_exported(db: Session, artifact: Artifact | None) -> shapes.CheckpointFiles:
    """The other form, or how far it is."""
    if artifact is None or artifact.state in (Ready.WAITING, Ready.BUILDING):
        return shapes.CheckpointFiles(data=[], x_status="building")
    if artifact.state == Ready.FAILED:
        return shapes.CheckpointFiles(data=[], x_status="failed", x_error=artifact.error)
    found = linked(artifact.prefix or "", artifact.manifest, artifact)
    scores = db.exec(select(Job.scores).where(Job.id == artifact.job_id)).one()
    return found.model_copy(update={"x_agreement": (scores or {}).get("agreement", {}).get("said")})


def linked(prefix: str, manifest: list[dict[str, Any]], of: Checkpoint | Artifact) -> shapes.CheckpointFiles:
    """Files with a link each, and one link to all of them as a zip."""
    found = [
        shapes.CheckpointFile(
            name=entry["name"],
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            url=downloads.link(prefix + entry["name"], entry["name"].rsplit("/", 1)[-1], of.team_id),
        )
        for entry in manifest
    ]
    entries = [(entry["name"], prefix + entry["name"]) for entry in manifest]
    whole = downloads.zip_link(entries, f"{of.id}.zip", of.team_id) if entries else None
    return shapes.CheckpointFiles(data=found, x_status="ready", x_zip=whole)


def shape(row: Checkpoint, job: Job, team: Team) -> shapes.JobCheckpoint:
    """A checkpoint on the wire."""
    return shapes.JobCheckpoint(
        id=row.id,
        created_at=cast(int, wire.seconds(row.created_at)),
        fine_tuned_model_checkpoint=base_models.name_of(row, job, team),
        fine_tuning_job_id=job.id,
        metrics={"step": row.step} | row.metrics,
        step_number=row.step,
        x_best=row.id == job.best_checkpoint_id,
        x_bytes=row.bytes,
        x_pinned=row.pinned_at is not None,
    )
