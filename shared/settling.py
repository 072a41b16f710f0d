"""What hangs on the end of a job: what it was to make, and the jobs that wait for it."""

from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import shards
from shared.tables import (
    Artifact,
    BaseModel,
    Checkpoint,
    DatasetVersion,
    File,
    Job,
    JobDependency,
    Kind,
    Ready,
    Slot,
    State,
)

LOST = "The worker went silent: it was killed, cut off or frozen."


def stopped(step: int) -> str:
    """The sentence for a job that was to stop and could not end properly."""
    kept = f"The checkpoint of step {step:,} is kept." if step else "There was no checkpoint yet."
    return f"It was stopped. {kept}"


def why(job: Job) -> str:
    """The sentence for a job that waited for this one, which has not succeeded."""
    what = "The import of its base model" if job.base_model_id else "The import of its dataset"
    if job.kind != Kind.IMPORT:
        what = f"{job.id}, which it waited for,"
    if job.state == State.CANCELLED or job.cancel_requested_at is not None:
        return f"{what} was cancelled."
    return f"{what} failed: {job.reason or 'no reason was given'}"


def param(job: Job) -> str | None:
    """The field that a failed dependency stands for."""
    if job.kind != Kind.IMPORT:
        return None
    return "model" if job.base_model_id else "training_file"


def fail_what_it_makes(db: Session, job: Job) -> None:
    """The dataset version, base model or artifact that will not come from this job."""
    told = job.reason or "It was cancelled."
    failed = {"state": Ready.FAILED, "error": told}
    for made in (DatasetVersion, BaseModel):
        building = (col(made.import_job_id) == job.id, col(made.state) == Ready.BUILDING)
        if job.kind == Kind.IMPORT:
            db.connection().execute(update(made).where(*building).values(**failed))
    if job.file_id and job.kind == Kind.IMPORT:
        unread = update(File).where(col(File.id) == job.file_id)
        db.exec(unread.values(status="error", status_details=told))
    unmade = (col(Artifact.job_id) == job.id, col(Artifact.state) == Ready.BUILDING)
    db.connection().execute(update(Artifact).where(*unmade).values(**failed))


def has_answers(db: Session, job: Job) -> bool:
    """Whether an inference job has answers that stand in no file yet."""
    return job.kind == Kind.INFER and shards.any_of(db, job.id)


def give_up(db: Session, job: Job) -> None:
    """The checkpoints and files of a deleted job are no longer there for anybody; their bytes go later."""
    below = (
        col(File.team_id) == job.team_id,
        col(File.key).startswith(f"teams/{job.team_id}/jobs/{job.id}/", autoescape=True),
    )
    own = (col(Checkpoint.job_id) == job.id, col(Checkpoint.deleted_at).is_(None))
    db.exec(update(Checkpoint).where(*own).values(deleted_at=job.deleted_at))
    db.exec(update(File).where(*below).values(deleted_at=job.deleted_at))


def waiting_for(db: Session, job: Job) -> Sequence[Job]:
    """The jobs that wait for this one, locked."""
    waiting = (
        select(Job)
        .join(JobDependency, col(JobDependency.job_id) == Job.id)
        .where(JobDependency.waits_for_id == job.id, col(Job.state).in_((State.QUEUED, State.PAUSED)))
        .order_by(col(Job.id))
    )
    return db.exec(waiting.with_for_update(of=Job).execution_options(populate_existing=True)).all()


def release_waiting(db: Session, job: Job) -> None:
    """The jobs for which this was the last to wait for may be claimed now."""
    for waiting in waiting_for(db, job):
        if not unfinished(db, waiting.id):
            waiting.stage, waiting.ready = "", True


def unfinished(db: Session, job_id: str) -> Sequence[str]:
    """The ids of the jobs that this one waits for."""
    others = (
        select(Job.id)
        .join(JobDependency, col(JobDependency.waits_for_id) == Job.id)
        .where(JobDependency.job_id == job_id, Job.state != State.SUCCEEDED)
    )
    return db.exec(others).all()


def woken_by(db: Session, job_id: str) -> set[Slot]:
    """The slot classes to wake once that job has ended."""
    slots = (
        select(Job.slot)
        .join(JobDependency, col(JobDependency.job_id) == Job.id)
        .where(JobDependency.waits_for_id == job_id, Job.state == State.QUEUED)
        .distinct()
    )
    return {Slot(slot) for slot in db.exec(slots).all()}
