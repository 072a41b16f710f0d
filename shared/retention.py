"""Which checkpoints of an ended job are kept, and the giving up of the rest.

A team keeps the best few of each job by its metric, the last one, and every one that is pinned or in use: the
job's own best, and what another job or a schedule starts from, answers with, judges or exports, and what lies
under somebody's adapter. The others go a day after the job's end. The row says so first (`deleted_at`); the
bytes go after, whatever dies in between.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import base_models, chains, checkpoints, jobs
from shared.errors import Refused
from shared.leases import clock
from shared.recipe import recipes
from shared.tables import FINAL, Attempt, Checkpoint, Job, Schedule, State, Team

GRACE = timedelta(days=1)  # after the job's end
AGAIN = timedelta(days=1)  # what was in use may no longer be: another look
FEWEST, MOST = 1, 100
ACTOR = "retention"


def rule(keep_best: int | None) -> str:
    """What a team keeps, in a sentence."""
    if keep_best is None:
        return "Every checkpoint is kept."
    best = "the best one" if keep_best == 1 else f"the best {keep_best}"
    return (
        f"Keeps {best}, the last, and every one that is pinned or in use; others are removed 1 day after the job"
        " ends."
    )


def choose(db: Session, team_id: str, keep_best: int | None) -> None:
    """How many of the best the team keeps; None: every checkpoint. Raises Refused."""
    if keep_best is not None and not FEWEST <= keep_best <= MOST:
        raise Refused(
            f"The best checkpoints that are kept are a whole number from {FEWEST} to {MOST}, or all.",
            param="keep_best",
        )
    db.get_one(Team, team_id).keep_best = keep_best
    looked_at = (col(Job.team_id) == team_id, col(Job.swept_at).is_not(None))
    db.exec(update(Job).where(*looked_at).values(swept_at=None))
    db.flush()


# --- what is kept -----------------------------------------------------------------------------------


def kept(db: Session, job: Job, stored: Sequence[Checkpoint]) -> dict[str, str]:
    """{checkpoint: why it is kept} of a job's checkpoints, newest first; the others may go."""
    keep_best, recipe = db.get_one(Team, job.team_id).keep_best, recipes().get(job.recipe or "")
    if keep_best is None or recipe is None:
        return dict.fromkeys((point.id for point in stored), "all")
    why = dict.fromkeys((point.id for point in checkpoints.ranked(stored, recipe)[:keep_best]), "best")
    if stored:
        why[stored[0].id] = "last"
    why |= dict.fromkeys((point.id for point in stored if point.id == job.best_checkpoint_id), "best")
    why |= dict.fromkeys(in_use(db, job.team_id, [point.id for point in stored]), "in use")
    return why | dict.fromkeys((point.id for point in stored if point.pinned_at), "pinned")


def in_use(db: Session, team_id: str, ids: Sequence[str]) -> set[str]:
    """Those checkpoints that another job or a schedule names, or an adapter stands on."""
    found = set(chains.standing_on(db, ids))
    for names in (Job.checkpoint_id, Job.resume_checkpoint_id):
        named = select(names).where(col(names).in_(ids), col(Job.deleted_at).is_(None))
        found |= {name for name in db.exec(named.distinct()) if name}
    return found | (scheduled(db, team_id) & set(ids))


def scheduled(db: Session, team_id: str) -> set[str]:
    """The checkpoints that the team's schedules start from."""
    own = select(Schedule).where(Schedule.team_id == team_id, col(Schedule.deleted_at).is_(None))
    names = {schedule.order.get("base_model") or "" for schedule in db.exec(own)}
    found = (base_models.named_checkpoint(db, team_id, name) for name in names if name.startswith("ft"))
    return {point.id for point in found if point is not None}


def goes_at(job: Job) -> datetime | None:
    """When those go that are not kept; None: the job has not ended."""
    return job.finished_at + GRACE if job.finished_at and job.state in FINAL else None


def pin(db: Session, checkpoint_id: str, *, on: bool) -> Checkpoint:
    """Keeps a checkpoint until it is unpinned. Raises Refused where it is gone already."""
    row = select(Checkpoint).where(Checkpoint.id == checkpoint_id).with_for_update()
    point = db.exec(row.execution_options(populate_existing=True)).one()
    if point.deleted_at is not None:
        raise Refused(
            f"The checkpoint of step {point.step} has been removed.", code="not_found", param="id", status=404
        )
    point.pinned_at = (point.pinned_at or clock(db)) if on else None
    if not on:
        db.exec(update(Job).where(col(Job.id) == point.job_id).values(swept_at=None))
    db.flush()
    return point


# --- what goes --------------------------------------------------------------------------------------


def due(db: Session, limit: int) -> list[Job]:
    """Some jobs to look at: ended ones that nobody has looked at, running ones of which an attempt ended long ago,
    and those that were looked at long ago.
    """
    at = clock(db)
    fresh = select(Job).where(col(Job.swept_at).is_(None), col(Job.finished_at) < at - GRACE)
    found = list(db.exec(fresh.order_by(col(Job.finished_at)).limit(limit)).all())
    tried = select(Attempt.id).where(Attempt.job_id == Job.id, col(Attempt.ended_at) < at - GRACE)
    running = select(Job).where(Job.state == State.RUNNING, col(Job.swept_at).is_(None), tried.exists())
    found += db.exec(running.order_by(col(Job.id)).limit(limit - len(found))).all()
    seen = select(Job).where(col(Job.swept_at) < at - AGAIN)
    return found + list(db.exec(seen.order_by(col(Job.swept_at)).limit(limit - len(found))).all())


def left_by(db: Session, job: Job) -> tuple[str, ...]:
    """The folders of the store in which nobody works any longer: the whole job's, or those of its attempts that
    ended long ago.
    """
    if job.state in FINAL:
        return (f"teams/{job.team_id}/jobs/{job.id}/",)
    old = select(Attempt).where(Attempt.job_id == job.id, col(Attempt.ended_at) < clock(db) - GRACE)
    return tuple(checkpoints.folder(job, attempt.number, attempt.lease_id) for attempt in db.exec(old))


def free(db: Session, job_id: str) -> list[Checkpoint]:
    """Gives up the checkpoints of an ended job that are not kept. Returns them; commit, then remove their bytes.

    Their rows are locked before it is asked who uses them: who begins to use one has its row locked too, so
    that it is either seen here or finds the checkpoint gone. One that is locked just now stays for this time.
    """
    job = db.get_one(Job, job_id)
    if job.state not in FINAL or job.finished_at is None or job.finished_at > clock(db) - GRACE:
        return []
    locked = checkpoints.lock(db, job.id, wait=False)
    stored = checkpoints.of(db, job.id)
    why = kept(db, job, stored)
    going = [point for point in stored if point.id in locked and point.id not in why]
    for point in going:
        point.deleted_at = clock(db)
    if going:
        jobs.note(db, job, ACTOR, told(going))
    return going


def told(going: Iterable[Checkpoint]) -> str:
    """The line of the timeline."""
    steps = ", ".join(f"{point.step:,}" for point in sorted(going, key=lambda point: point.step))
    return f"removed, as the team's rule says: the checkpoints of step {steps}"


def swept(db: Session, job: Job) -> None:
    """The job was looked at; where it has ended since then, that was not its end that was looked at."""
    as_seen = (col(Job.id) == job.id, col(Job.finished_at).is_not_distinct_from(job.finished_at))
    db.exec(update(Job).where(*as_seen).values(swept_at=clock(db)))
