"""/v1/evaluations: models judged on the rows of a dataset, alone or to be compared."""

from collections.abc import Sequence
from typing import cast

from flask import Blueprint, Response, g
from sqlmodel import Session, col, select

from shared import base_models, evaluations, jobs, positions
from shared.db import transaction
from shared.errors import Refused
from shared.evaluations import COMPARISON
from shared.jobs import Order
from shared.settings import settings
from shared.tables import Artifact, Checkpoint, DatasetVersion, File, Job, Kind, Ready, State, Team
from web import api_jobs, shapes, wire

api = Blueprint("api_evaluations", __name__, url_prefix="/v1")
FILES = ("results", "report")  # the forms of what an evaluation leaves, in the order of `result_files`


@api.post("/evaluations")
@wire.operation(shapes.Evaluation, body=shapes.CreateEvaluation, idempotent=True)
def create() -> Response:
    """Judge a model, or several that are then compared.

    Give `model` or `models`. Of several the answer is the first model's evaluation; its `comparison` names all.
    """
    asked = wire.body(shapes.CreateEvaluation)
    key = wire.idempotency_key()
    if (asked.model is None) == (asked.models is None):
        raise Refused("Give either «model» or «models».", param="model", code="missing_required_parameter")
    version = api_jobs.imported(asked.dataset, "dataset")
    order = Order(
        team_id=g.caller.team_id,
        kind=Kind.EVALUATE,
        recipe=asked.recipe,
        dataset_version_id=version.id,
        columns=asked.columns,
        name=asked.name or "",
        seed=asked.seed,
        labels=dict(asked.metadata or {}),
        needs=asked.resources.needs if asked.resources else {},
        max_run_seconds=asked.x_max_run_seconds,
        created_by=g.caller.user_id,
        actor=g.caller.actor,
        asked=asked.model_dump(exclude_unset=True),
    )
    with transaction() as db:
        again = api_jobs.lost(db, order) if key is None and wire.is_retry() else None
        job = again or evaluations.submit(db, order, asked.models or [asked.model or ""], key)[0]
    api_jobs.wake()
    with transaction() as db:
        return one(db, job)


@api.get("/evaluations")
@wire.operation(shapes.Page[shapes.Evaluation], query=shapes.JobsAsked)
def index() -> Response:
    """List the team's evaluations, newest first."""
    asked = wire.query(shapes.JobsAsked)
    wanted = api_jobs.mine(Kind.EVALUATE)
    if (labels := wire.labels_asked()) is not None:
        wanted = wanted.where(col(Job.labels).contains(labels) if labels else col(Job.labels) == {})
    with transaction() as db:
        rows, more = wire.cut(db, wanted, Job.id, asked)
        return wire.listed(shaped(db, rows), more)


@api.get("/evaluations/<evaluation_id>")
@wire.operation(shapes.Evaluation)
def retrieve(evaluation_id: str) -> Response:
    """One evaluation, with its metrics and result files once it has succeeded."""
    with transaction() as db:
        return one(db, api_jobs.find(db, evaluation_id, Kind.EVALUATE))


@api.post("/evaluations/<evaluation_id>/cancel")
@wire.operation(shapes.Evaluation)
def cancel(evaluation_id: str) -> Response:
    """Cancel an evaluation. Cancelling it again changes nothing."""
    with transaction() as db:
        job = api_jobs.find(db, evaluation_id, Kind.EVALUATE)
        if job.state != State.CANCELLED:
            job = jobs.cancel(db, job, g.caller.actor)
        return one(db, job)


def one(db: Session, job: Job) -> Response:
    """One evaluation, with its place in the queue."""
    return wire.answer(shaped(db, [job])[0].model_copy(update={"x_queue_position": positions.place(db, job)}))


def shaped(db: Session, rows: Sequence[Job]) -> list[shapes.Evaluation]:
    """Evaluations on the wire, in a number of queries that does not grow with the list."""
    wanted = select(DatasetVersion).where(col(DatasetVersion.id).in_([j.dataset_version_id for j in rows]))
    versions = {version.id: version for version in db.exec(wanted)}
    models, files, together = names(db, rows), results(db, rows), comparisons(db, rows)
    return [
        shape(job, versions[job.dataset_version_id or ""], models.get(job.checkpoint_id or ""))
        .model_copy(update={"result_files": [files[k] for f in FILES if (k := (job.id, f)) in files]})
        .model_copy(update={"comparison": together.get(job.labels.get(COMPARISON, ""))})
        for job in rows
    ]


def names(db: Session, rows: Sequence[Job]) -> dict[str, str]:
    """{checkpoint id: the name of that fine-tuned model}."""
    team = db.get_one(Team, g.caller.team_id)
    found = select(Checkpoint, Job).join(Job, col(Job.id) == Checkpoint.job_id)
    named = found.where(col(Checkpoint.id).in_([j.checkpoint_id for j in rows if j.checkpoint_id]))
    return {c.id: base_models.name_of(c, job, team) for c, job in db.exec(named)}


def results(db: Session, rows: Sequence[Job]) -> dict[tuple[str, str], str]:
    """{(job id, form): file id} of what they have left and nobody has deleted."""
    made = (
        select(Artifact)
        .join(File, col(File.id) == Artifact.file_id)
        .where(
            col(Artifact.job_id).in_([job.id for job in rows]),
            Artifact.state == Ready.READY,
            col(File.deleted_at).is_(None),
        )
    )
    return {(artifact.job_id, artifact.form): artifact.file_id or "" for artifact in db.exec(made)}


def comparisons(db: Session, rows: Sequence[Job]) -> dict[str, shapes.Comparison]:
    """{comparison id: the comparison} of those that are in one."""
    ids = {str(job.labels[COMPARISON]) for job in rows if job.labels.get(COMPARISON)}
    mine = select(Job.id, col(Job.labels)[COMPARISON].astext).where(
        Job.team_id == g.caller.team_id,
        Job.kind == Kind.EVALUATE,
        col(Job.labels)[COMPARISON].astext.in_(ids),
        col(Job.deleted_at).is_(None),
    )
    members: dict[str, list[str]] = {}
    for job_id, comparison in db.exec(mine.order_by(col(Job.id))) if ids else ():
        members.setdefault(comparison, []).append(job_id)
    page = f"{settings().public_url}/evaluations/compare?comparison="
    return {
        comparison: shapes.Comparison(id=comparison, evaluations=found, x_page=page + comparison)
        for comparison, found in members.items()
    }


def shape(job: Job, version: DatasetVersion, model: str | None) -> shapes.Evaluation:
    """An evaluation job on the wire."""
    known = job.scores
    return shapes.Evaluation(
        id=job.id,
        created_at=cast(int, wire.seconds(job.created_at)),
        finished_at=wire.seconds(job.finished_at),
        status=api_jobs.status(job, version),
        name=job.name or None,
        model=model or job.base_model_id or "",
        recipe=job.recipe or "",
        dataset=version.file_id,
        columns=job.columns,
        seed=job.seed,
        metrics=known.get("tuned"),
        intervals=known.get("intervals"),
        resamples=known.get("resamples"),
        rows=known.get("rows"),
        left_out=known.get("left_out"),
        result_files=[],
        comparison=None,
        error=api_jobs.failure(job),
        metadata=job.labels or None,
        x_state=api_jobs.state(job),
        x_progress=job.progress,
        x_queue_position=None,
        x_resources=job.resources,
        x_max_run_seconds=job.max_run_seconds,
        x_page=api_jobs.page(job),
    )
