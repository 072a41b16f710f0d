"""Who needs a checkpoint: a job that starts from it, and every adapter above it.

An adapter stands on what its own job started from, which may be an adapter too, down to full weights: a chain.
While an adapter at its end is there, all below it are needed, also where the job between them is deleted. So are
those of a recipe that judges a model beside what it was before, whose full weights stand on that too.
"""

from collections.abc import Collection

from sqlmodel import Session, col, select

from shared.recipe import recipes
from shared.tables import FINAL, Checkpoint, Job


def standing_on(db: Session, ids: Collection[str]) -> dict[str, str]:
    """{checkpoint: the newest job of which something stands on it} of those checkpoints that bear something."""
    compared = [recipe.name for recipe in recipes().values() if recipe.needs_reference]
    stands = col(Checkpoint.adapter).is_(True) | col(Job.recipe).in_(compared)
    made = (col(Checkpoint.id), col(Checkpoint.job_id), col(Checkpoint.deleted_at))
    first = (
        select(col(Job.checkpoint_id).label("below"), *made)
        .join(Job, col(Job.id) == Checkpoint.job_id)
        .where(col(Job.checkpoint_id).in_(ids), stands)
        .cte("above", recursive=True)
    )
    further = (
        select(first.c.below, *made)
        .join(Job, col(Job.id) == Checkpoint.job_id)
        .join(first, first.c.id == Job.checkpoint_id)
        .where(stands)
    )
    above = first.union(further)
    alive = select(above.c.below, above.c.job_id).where(above.c.deleted_at.is_(None))
    return dict(db.exec(alive.order_by(above.c.job_id)).all())


def needed_by(db: Session, job: Job) -> str | None:
    """Who needs a checkpoint of that job, and what to do about it, in sentences; None: nobody."""
    own = select(Checkpoint.id).where(Checkpoint.job_id == job.id)
    named = col(Job.checkpoint_id).in_(own) | col(Job.resume_checkpoint_id).in_(own)
    unfinished = select(Job.id).where(named, col(Job.state).not_in(FINAL))
    if user := db.exec(unfinished.limit(1)).first():
        return f"{user} still needs a checkpoint of {job.id}. Cancel that job, or wait for it."
    if above := standing_on(db, db.exec(own).all()).values():
        return f"{max(above)} stands on a checkpoint of {job.id}. Delete {max(above)} first."
    return None
