"""/v1/fine_tuning/jobs: training jobs, asked for and seen as OpenAI's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from flask import Blueprint, Response, g, request
from sqlmodel import Session, col, select

from shared import base_models, checkpoints, datasets, jobs, queue
from shared import recipe as recipes
from shared.columns import now
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.jobs import Order
from shared.settings import settings
from shared.tables import (
    FINAL,
    Artifact,
    Checkpoint,
    DatasetVersion,
    File,
    Job,
    Kind,
    Ready,
    Slot,
    State,
    Team,
)
from web import methods, shapes, waiting, wire

api = Blueprint("api_jobs", __name__, url_prefix="/v1")
IMPORT_SECONDS = 5.0  # a small file is read in that time, so that bad rows are a 400 at once
LOST_ANSWER = timedelta(minutes=10)
RESULTS = ("metrics",)


@api.post("/fine_tuning/jobs")
@wire.operation(shapes.FineTuningJob, body=shapes.CreateJob, idempotent=True)
def create() -> Response:
    """Start a fine-tuning job.

    It is queued at once and waits for the import of its data and base model by itself.
    """
    asked = wire.body(shapes.CreateJob)
    key = wire.idempotency_key()
    given = asked.model_dump(exclude_unset=True)
    train = imported(asked.training_file, "training_file")
    valid = imported(asked.validation_file, "validation_file") if asked.validation_file else None
    method = methods.read(asked.method, asked.hyperparameters)
    order = Order(
        team_id=g.caller.team_id,
        kind=Kind.TRAIN,
        recipe=method.recipe.name,
        model=asked.model,
        dataset_version_id=train.id,
        valid_version_id=valid.id if valid else None,
        hyperparameters=method.hyperparameters,
        param=method.param,
        columns=asked.x_columns,
        name=asked.suffix or "",
        seed=asked.seed,
        labels=dict(asked.metadata or {}),
        priority=asked.x_priority,
        processes=asked.resources.processes if asked.resources else 1,
        needs=asked.resources.needs if asked.resources else {},
        max_run_seconds=asked.x_max_run_seconds,
        created_by=g.caller.user_id,
        actor=g.caller.actor,
        asked=given,
    )
    return submitted(order, key, one)


@api.get("/fine_tuning/jobs")
@wire.operation(shapes.Page[shapes.FineTuningJob], query=shapes.JobsAsked)
def index() -> Response:
    """List the team's training jobs, newest first."""
    asked = wire.query(shapes.JobsAsked)
    wanted = mine(Kind.TRAIN)
    if (labels := wire.labels_asked()) is not None:
        wanted = wanted.where(col(Job.labels).contains(labels) if labels else col(Job.labels) == {})
    with transaction() as db:
        rows, more = wire.cut(db, wanted, Job.id, asked)
        return wire.listed(shaped(db, rows), more)


@api.get("/fine_tuning/jobs/<job_id>")
@wire.operation(shapes.FineTuningJob)
def retrieve(job_id: str) -> Response:
    """One job, with its progress and its place in the queue."""
    with transaction() as db:
        return one(db, find(db, job_id, Kind.TRAIN))


@api.post("/fine_tuning/jobs/<job_id>/cancel")
@wire.operation(shapes.FineTuningJob)
def cancel(job_id: str) -> Response:
    """Cancel a job; a running one keeps its checkpoints. Cancelling it again changes nothing."""
    return told(job_id, lambda db, job: job if job.state == State.CANCELLED else stop(db, job))


@api.post("/fine_tuning/jobs/<job_id>/pause")
@wire.operation(shapes.FineTuningJob)
def pause(job_id: str) -> Response:
    """Pause a job; a running one writes a checkpoint first."""
    return told(job_id, lambda db, job: jobs.pause(db, job, g.caller.actor))


@api.post("/fine_tuning/jobs/<job_id>/resume")
@wire.operation(shapes.FineTuningJob)
def resume(job_id: str) -> Response:
    """Go on with a paused job from its newest checkpoint. One that is under way just goes on."""

    def go_on(db: Session, job: Job) -> Job:
        under_way = job.state in (State.QUEUED, State.RUNNING) and job.pause_requested_at is None
        return job if under_way else jobs.resume(db, job, g.caller.actor)

    return told(job_id, go_on)


@api.post("/fine_tuning/jobs/<job_id>/stop")
@wire.operation(shapes.FineTuningJob)
def stop_early(job_id: str) -> Response:
    """End a running training here: it is scored and saved, and has succeeded. One that waits is cancelled."""
    return told(job_id, lambda db, job: jobs.stop(db, job, g.caller.actor))


@api.post("/fine_tuning/jobs/<job_id>/priority")
@wire.operation(shapes.FineTuningJob, body=shapes.Prioritise)
def prioritise(job_id: str) -> Response:
    """Move a waiting job within the team's queue."""

    def move(db: Session, job: Job) -> Job:
        return jobs.prioritise(db, job, wire.body(shapes.Prioritise).priority, g.caller.actor)

    return told(job_id, move)


@api.post("/fine_tuning/jobs/<job_id>/retry")
@wire.operation(shapes.FineTuningJob, body=shapes.Retry, idempotent=True)
def retry(job_id: str) -> Response:
    """A new job for the same order, from the start or going on from a checkpoint of the ended one."""
    key = wire.idempotency_key()

    def again(db: Session, job: Job) -> Job:
        asked = wire.body(shapes.Retry) if request.get_data() else shapes.Retry()
        wanted = checkpoints.last(db, job) if asked.checkpoint == "last" else asked.checkpoint
        return jobs.retry(db, job, g.caller.actor, wanted, created_by=g.caller.user_id, key=key)

    return told(job_id, again)


def submitted(order: Order, key: str | None, answer: Callable[[Session, Job], Response]) -> Response:
    """Submit an order once, however often the request comes, and wake the workers after the commit."""
    with transaction() as db:
        job = lost(db, order) if key is None and wire.is_retry() else None
        job = job or jobs.submit(db, order, key)
    wake()
    with transaction() as db:
        return answer(db, job)


def lost(db: Session, order: Order) -> Job | None:
    """The job that the same request made a moment ago, where its answer got lost on the way."""
    wanted = select(Job).where(
        Job.team_id == order.team_id,
        Job.kind == order.kind,
        Job.created_at > now() - LOST_ANSWER,
        col(Job.asked) == order.asked,
    )
    return db.exec(wanted.order_by(col(Job.id).desc())).first()


def wake() -> None:
    """A job may have brought the import of its base model with it: both classes of slot look."""
    for slot in Slot:
        queue.wake(slot)


def stop(db: Session, job: Job) -> Job:
    """Cancel it. Raises Refused after its end."""
    return jobs.cancel(db, job, g.caller.actor)


def told(job_id: str, verb: Callable[[Session, Job], Job]) -> Response:
    """Find the job, do the verb, answer with what the job is now."""
    with transaction() as db:
        job = verb(db, find(db, job_id, Kind.TRAIN))
    wake()
    with transaction() as db:
        return one(db, job)


def imported(name: str, param: str) -> DatasetVersion:
    """The dataset version of that name, after a short wait for its import. Raises Refused (404)."""
    try:
        with transaction() as db:
            version = datasets.version_of(db, g.caller.team_id, name)
    except NotFound as missing:
        raise Refused(missing.message, param=param, code="not_found", status=404) from None
    return datasets.await_import(version.id, IMPORT_SECONDS) if version.state == Ready.BUILDING else version


def mine(kind: Kind) -> Any:
    """The team's jobs of that kind."""
    return select(Job).where(Job.team_id == g.caller.team_id, Job.kind == kind, col(Job.deleted_at).is_(None))


def find(db: Session, job_id: str, kind: Kind) -> Job:
    """The team's job of that kind. Raises NotFound."""
    job = db.exec(mine(kind).where(Job.id == job_id)).first()
    if job is None:
        raise NotFound(
            {Kind.INFER: "batch", Kind.EVALUATE: "evaluation"}.get(kind, "fine-tuning job"), job_id
        )
    return job


def one(db: Session, job: Job) -> Response:
    """One job, with its place in the queue."""
    facts: dict[str, Any] = {"x_queue_position": None}
    if job.state == State.QUEUED:
        outlook = waiting.outlook(db, job)
        starts = now() + timedelta(seconds=outlook.seconds) if outlook.seconds is not None else None
        facts = {
            "x_queue_position": outlook.position,
            "x_queue": shapes.QueueFacts(
                reason=outlook.reason,
                ahead=[line.said for line in outlook.ahead],
                expected_start=wire.seconds(starts),
            ),
        }
    return wire.answer(shaped(db, [job])[0].model_copy(update=facts))


@dataclass
class Around:
    """The rows that jobs name, read at once for all of them."""

    versions: dict[str, DatasetVersion] = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    results: dict[str, list[str]] = field(default_factory=dict)
    team: Team = field(default_factory=lambda: Team(name=""))


def shaped(db: Session, rows: Sequence[Job]) -> list[shapes.FineTuningJob]:
    """Jobs on the wire, in a number of queries that does not grow with the list."""
    around = surroundings(db, rows)
    return [shape(job, around) for job in rows]


def surroundings(db: Session, rows: Sequence[Job]) -> Around:
    """What stands around these jobs: their data, best checkpoints, result files, their team."""
    version_ids = {v for job in rows for v in (job.dataset_version_id, job.valid_version_id) if v}
    checkpoint_ids = {c for job in rows for c in (job.best_checkpoint_id, job.checkpoint_id) if c}
    versions = db.exec(select(DatasetVersion).where(col(DatasetVersion.id).in_(version_ids)))
    found = (
        db.exec(select(Checkpoint).where(col(Checkpoint.id).in_(checkpoint_ids))) if checkpoint_ids else ()
    )
    made = (
        select(Artifact)
        .join(File, col(File.id) == Artifact.file_id)
        .where(
            col(Artifact.job_id).in_([job.id for job in rows]),
            col(Artifact.form).in_(RESULTS),
            col(File.deleted_at).is_(None),
        )
    )
    around = Around(
        {v.id: v for v in versions}, {c.id: c for c in found}, team=db.get_one(Team, g.caller.team_id)
    )
    for artifact in db.exec(made):
        around.results.setdefault(artifact.job_id, []).append(cast(str, artifact.file_id))
    return around


def shape(job: Job, around: Around) -> shapes.FineTuningJob:
    """A training job on the wire."""
    best = around.checkpoints.get(job.best_checkpoint_id or "")
    train = around.versions.get(job.dataset_version_id or "")
    valid = around.versions.get(job.valid_version_id or "")
    succeeded = job.state == State.SUCCEEDED and best is not None and best.deleted_at is None
    recipe = recipes.recipes().get(job.recipe or "")
    return shapes.FineTuningJob(
        id=job.id,
        created_at=cast(int, wire.seconds(job.created_at)),
        finished_at=wire.seconds(job.finished_at),
        estimated_finish=estimated_finish(job),
        status=status(job, train, valid),
        model=str(job.asked.get("model") or job.base_model_id),
        fine_tuned_model=base_models.name_of(best, job, around.team) if succeeded and best else None,
        organization_id=job.team_id,
        training_file=train.file_id if train else "",
        validation_file=valid.file_id if valid else None,
        result_files=around.results.get(job.id, []),
        trained_tokens=job.trained_tokens,
        hyperparameters=methods.openai_names(recipe, job.spec),
        method=methods.write(job.recipe, job.spec),
        seed=job.seed,
        error=failure(job),
        metadata=job.labels or None,
        user_provided_suffix=job.asked.get("suffix"),
        x_state=state(job),
        x_progress=job.progress,
        x_queue_position=None,
        x_priority=job.priority,
        x_max_run_seconds=job.max_run_seconds,
        x_retry_of=job.retry_of,
        x_scores=job.scores,
        x_columns=job.columns,
        x_resources=job.resources,
        x_page=page(job),
    )


def status(job: Job, *versions: DatasetVersion | None) -> Any:
    """OpenAI's word. An accepted cancel is final for whoever asks, though the trainer still stops."""
    if job.cancel_requested_at and job.state not in FINAL:
        return "cancelled"
    if job.state == State.QUEUED and any(v and v.state != Ready.READY for v in versions):
        return "validating_files"
    return job.state.value


def state(job: Job) -> str:
    """Finer than the status: the request under way, the stage, else the state."""
    if job.state in FINAL:
        return job.state.value
    if job.cancel_requested_at:
        return "cancelling"
    if job.stop_requested_at:
        return "stopping"
    if job.pause_requested_at:
        return "pausing"
    return job.stage or job.state.value


def estimated_finish(job: Job) -> int | None:
    """When a running job will have finished, by its own reckoning."""
    left = job.progress.get("eta_seconds")
    if job.state != State.RUNNING or left is None:
        return None
    return wire.seconds(now() + timedelta(seconds=float(left)))


def failure(job: Job) -> shapes.JobError | None:
    """Why it failed; nothing else has an error."""
    if job.state != State.FAILED:
        return None
    return shapes.JobError(
        code=job.reason_code or "internal_error",
        message=job.reason or "The job has failed.",
        param=job.reason_param,
    )


def page(job: Job) -> str:
    """Address of the job's page."""
    return f"{settings().public_url}/jobs/{job.id}"
