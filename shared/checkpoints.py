"""Stored checkpoints: what a job can go on from and what people download. The row is the commit point."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from shared import leases
from shared import recipe as recipes
from shared.columns import now
from shared.errors import Refused
from shared.ids import new_id
from shared.tables import Checkpoint, Job, Kind


def prefix(job: Job, number: int, lease_id: str, name: str) -> str:
    """Where an attempt stores a checkpoint: no two attempts share a key, so nothing is overwritten."""
    return f"teams/{job.team_id}/jobs/{job.id}/{number}-{lease_id[-8:]}/{name}/"


def record(
    db: Session,
    lease_id: str,
    *,
    step: int,
    epoch: float,
    metrics: dict[str, Any],
    adapter: bool,
    prefix: str,
    manifest: list[dict[str, Any]],
) -> Checkpoint | None:
    """Makes a checkpoint exist whose files are stored; None: the lease is lost and it does not.

    One of the same step by an attempt before is replaced: its bytes were the same, or unreadable.
    """
    attempt = leases.held(db, lease_id)
    if attempt is None:
        return None
    fresh = {
        "attempt_id": attempt.id,
        "epoch": epoch,
        "metrics": metrics,
        "adapter": adapter,
        "prefix": prefix,
        "manifest": manifest,
        "bytes": sum(entry["bytes"] for entry in manifest),
        "created_at": now(),
        "deleted_at": None,
    }
    known = {"id": new_id("ftckpt_"), "team_id": attempt.team_id, "job_id": attempt.job_id, "step": step}
    db.exec(
        insert(Checkpoint)
        .values(**known, **fresh)
        .on_conflict_do_update(index_elements=["job_id", "step"], set_=fresh)
    )
    stored = select(Checkpoint).where(Checkpoint.job_id == attempt.job_id, Checkpoint.step == step)
    return db.exec(stored.execution_options(populate_existing=True)).one()


def of(db: Session, job_id: str) -> Sequence[Checkpoint]:
    """A job's checkpoints, newest first."""
    stored = select(Checkpoint).where(Checkpoint.job_id == job_id, col(Checkpoint.deleted_at).is_(None))
    return db.exec(stored.order_by(col(Checkpoint.step).desc())).all()


def to_go_on_from(db: Session, job: Job) -> list[Checkpoint]:
    """What its next attempt may go on from, best first: its own, then the one that it was started from."""
    other = db.get(Checkpoint, job.resume_checkpoint_id) if job.resume_checkpoint_id else None
    return [*of(db, job.id), *([other] if other is not None and other.deleted_at is None else [])]


def newest_step(db: Session, job: Job) -> int:
    """The step that its next attempt goes on from; 0: the beginning."""
    mine = (Checkpoint.job_id == job.id) | (Checkpoint.id == job.resume_checkpoint_id)
    return (
        db.exec(select(func.max(Checkpoint.step)).where(mine, col(Checkpoint.deleted_at).is_(None))).one()
        or 0
    )


def to_resume(db: Session, job: Job, checkpoint_id: str) -> Checkpoint:
    """The job's stored checkpoint of that id, to be gone on from. Raises Refused."""
    found = db.get(Checkpoint, checkpoint_id)
    if job.kind != Kind.TRAIN or found is None or found.deleted_at is not None or found.job_id != job.id:
        raise Refused(
            f"{job.id} has no checkpoint «{checkpoint_id}».", param="checkpoint", code="not_found", status=404
        )
    if found.manifest and not is_whole(found):
        raise Refused(
            f"Of the checkpoint of step {found.step} only the model is kept, not the state of its training. Start"
            " a new job from it instead.",
            param="checkpoint",
        )
    return found


def is_whole(checkpoint: Checkpoint) -> bool:
    """Whether a training can go on from it, not only its model be used."""
    return any(entry["name"].startswith("state/") for entry in checkpoint.manifest)


def last(db: Session, job: Job) -> str:
    """The id of the job's newest checkpoint. Raises Refused where it has none."""
    if not (stored := of(db, job.id)):
        raise Refused(f"{job.id} has no checkpoint to go on from.", param="checkpoint", code="no_checkpoint")
    return stored[0].id


def best(found: Sequence[Checkpoint], recipe: recipes.Recipe) -> Checkpoint | None:
    """The one with the best first metric of the recipe where there was a validation set, else the last.

    Of equals the later one.
    """
    first = recipe.metrics[0]
    measured = [c for c in found if c.metrics.get(f"valid_{first.name}") is not None]
    if not measured:
        return max(found, key=lambda c: c.step, default=None)
    sign = 1 if first.better == "higher" else -1
    return max(measured, key=lambda c: (sign * c.metrics[f"valid_{first.name}"], c.step))
