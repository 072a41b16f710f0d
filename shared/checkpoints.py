"""Stored checkpoints: what a job can go on from and what people download. The row is the commit point."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from shared import leases
from shared import recipe as recipes
from shared.columns import now
from shared.errors import Refused
from shared.ids import new_id
from shared.tables import Attempt, Checkpoint, Job, Kind


def prefix(job: Job, number: int, lease_id: str, name: str) -> str:
    """Where an attempt stores a checkpoint: no two attempts share a key, so nothing is overwritten."""
    return f"{folder(job, number, lease_id)}{name}/"


def folder(job: Job, number: int, lease_id: str) -> str:
    """Below which an attempt stores what it has finished."""
    return f"teams/{job.team_id}/jobs/{job.id}/{number}-{lease_id[-8:]}/"


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


def newest_step(db: Session, job: Job, last: Attempt | None = None) -> int:
    """The step that its next attempt goes on from; 0: the beginning. What its last attempt, where that is given,
    passed over because it was damaged does not count.
    """
    found = newest(job)
    if last is not None:
        found = found.where((Checkpoint.step <= last.start_step) | (Checkpoint.attempt_id == last.id))
    return db.exec(found).one() or 0


def newest(job: Job) -> SelectOfScalar[int]:
    """The select of its step, null without any."""
    mine = (Checkpoint.job_id == job.id) | (Checkpoint.id == job.resume_checkpoint_id)
    return select(func.max(Checkpoint.step)).where(mine, col(Checkpoint.deleted_at).is_(None))


def to_resume(db: Session, job: Job, checkpoint_id: str) -> Checkpoint:
    """The job's stored checkpoint of that id, to be gone on from. Raises Refused."""
    found = hold(db, checkpoint_id)
    if job.kind != Kind.TRAIN or found is None or found.job_id != job.id:
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
    return next(iter(ranked(found, recipe)), None)


def ranked(found: Sequence[Checkpoint], recipe: recipes.Recipe) -> list[Checkpoint]:
    """The best first, by the recipe's first metric; after them the newest of those that were not measured."""
    first = recipe.metrics[0]
    sign = 1 if first.better == "higher" else -1

    def worth(point: Checkpoint) -> tuple[bool, float, int]:
        value = point.metrics.get(f"valid_{first.name}")
        return value is not None, 0.0 if value is None else sign * value, point.step

    return sorted(found, key=worth, reverse=True)


def hold(db: Session, checkpoint_id: str) -> Checkpoint | None:
    """The checkpoint, kept from being given up until the commit, so that whatever begins to use it counts as a
    user; None: it is gone.
    """
    row = select(Checkpoint).where(Checkpoint.id == checkpoint_id, col(Checkpoint.deleted_at).is_(None))
    shared = row.with_for_update(read=True).execution_options(populate_existing=True)
    return db.exec(shared).first()


def lock(db: Session, job_id: str, *, wait: bool = True) -> set[str]:
    """The ids of a job's checkpoints, whose rows are locked from now on: who begins to use one is seen by whoever
    asks after this, or finds it gone. Without `wait` those that somebody holds just now are left out.
    """
    alive = select(Checkpoint.id).where(Checkpoint.job_id == job_id, col(Checkpoint.deleted_at).is_(None))
    return set(db.exec(alive.with_for_update(skip_locked=not wait)).all())


def given_up(db: Session, limit: int) -> Sequence[Checkpoint]:
    """Some checkpoints that exist no more and whose bytes are still stored."""
    found = select(Checkpoint).where(col(Checkpoint.deleted_at).is_not(None), Checkpoint.bytes > 0)
    return db.exec(found.order_by(col(Checkpoint.id)).limit(limit)).all()


def emptied(db: Session, checkpoint_id: str) -> None:
    """The bytes of a given-up checkpoint are gone."""
    gone = (col(Checkpoint.id) == checkpoint_id, col(Checkpoint.deleted_at).is_not(None))
    db.exec(update(Checkpoint).where(*gone).values(manifest=[], bytes=0))


def stored_by(db: Session, team_id: str) -> dict[str, int]:
    """How many checkpoints a team has and their bytes: {count, bytes}."""
    own = select(func.count(), func.coalesce(func.sum(Checkpoint.bytes), 0)).where(
        Checkpoint.team_id == team_id, col(Checkpoint.deleted_at).is_(None)
    )
    count, size = db.exec(own).one()
    return {"count": count, "bytes": int(size)}


def removed(db: Session, job_id: str) -> Sequence[int]:
    """The steps of a job's checkpoints that were given up."""
    gone = select(Checkpoint.step).where(Checkpoint.job_id == job_id, col(Checkpoint.deleted_at).is_not(None))
    return db.exec(gone.order_by(col(Checkpoint.step))).all()
