"""A lease: the time until which an attempt is its worker's own. Only the database's clock decides.

It is renewed by heartbeat, and the renewal's answer brings down what is asked of the attempt. Whatever
an attempt writes is fenced by its `lease_id`: once `shared.jobs` has ended the attempt, nothing counts.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, text
from sqlmodel import Session, col, select

from shared.settings import settings
from shared.tables import Attempt, Job


@dataclass(frozen=True)
class Orders:
    """What a renewal brings down to the worker: what it is asked to do with its attempt."""

    cancel: bool = False
    pause: bool = False
    drain: bool = False
    stop: bool = False
    overdue: bool = False  # it has run for longer than it may


def renew(db: Session, lease_id: str) -> Orders | None:
    """Prolongs the lease by the database's clock and brings down what is asked; None: it is lost.

    A lease that has run out but was not reaped yet is good again.
    """
    renewed = text("""
        UPDATE attempts a
           SET lease_expires_at = clock_timestamp() + make_interval(secs => :seconds), suspect_since = NULL
          FROM jobs j, workers w
         WHERE a.lease_id = :lease AND a.ended_at IS NULL
           AND j.id = a.job_id AND j.attempt_id = a.id AND w.id = a.worker_id
        RETURNING j.cancel_requested_at IS NOT NULL AS cancel, j.pause_requested_at IS NOT NULL AS pause,
                  w.draining_at IS NOT NULL AS drain, j.stop_requested_at IS NOT NULL AS stop,
                  coalesce(j.max_run_seconds < (
                      SELECT extract(epoch FROM sum(coalesce(o.ended_at, clock_timestamp()) - o.started_at))
                        FROM attempts o WHERE o.job_id = j.id), false) AS overdue""")
    row = (
        db.connection()
        .execute(renewed, {"lease": lease_id, "seconds": settings().lease_seconds})
        .one_or_none()
    )
    return Orders(row.cancel, row.pause, row.drain, row.stop, row.overdue) if row else None


def held(db: Session, lease_id: str) -> Attempt | None:
    """The attempt while that lease holds its job, locked against being ended; None: it is lost.

    The fence: whatever an attempt writes beside its job is written in a transaction that asked this.
    """
    holder = (
        select(Attempt)
        .join(Job, col(Job.attempt_id) == Attempt.id)
        .where(Attempt.lease_id == lease_id, col(Attempt.ended_at).is_(None))
    )
    return db.exec(holder.with_for_update(read=True, of=Attempt)).first()


def report(
    db: Session,
    lease_id: str,
    *,
    stage: str | None = None,
    progress: dict | None = None,
    scores: dict | None = None,
    columns: dict | None = None,
) -> bool:
    """Notes how far the attempt is; False: the lease is lost."""
    job = held_job(db, lease_id)
    if job is None:
        return False
    job.stage = job.stage if stage is None else stage
    job.progress = job.progress if progress is None else progress
    job.scores = job.scores if scores is None else scores
    job.columns = job.columns if columns is None else columns
    return True


def held_job(db: Session, lease_id: str) -> Job | None:
    """The job that the lease holds, locked; None: the lease is lost. The fence of report and finish."""
    holder = (
        select(Job)
        .join(Attempt, col(Attempt.id) == Job.attempt_id)
        .where(Attempt.lease_id == lease_id, col(Attempt.ended_at).is_(None))
    )
    return db.exec(holder.with_for_update(of=Job).execution_options(populate_existing=True)).first()


def clock(db: Session) -> datetime:
    """This moment by the database's clock (which, unlike `now()`, goes on within a transaction)."""
    return db.connection().execute(select(func.clock_timestamp())).scalar_one()
