"""The reaper: takes jobs back from workers that have gone silent. Anybody may run it; one at a time does.

Only the database's clock decides, and an outage of the database is nobody's silence.
"""

from sqlalchemy import text
from sqlmodel import Session, col, select

from shared import jobs, settling
from shared.settings import settings
from shared.tables import Attempt, Job, Outcome

REAPER_LOCK = 0x72656170  # «reap»


def reap(db: Session) -> int:
    """Queues the jobs of workers that are gone again. Returns how many; commit at once.

    In two steps, so that a worker has time to renew: a lease that ran out makes its attempt suspect,
    a suspect that stays silent is lost. After an outage of the database every lease looks run out: so
    nothing is reaped within a lease of the server's start, and while most of the running attempts are
    suspect at once they get another lease's time. Nor is anybody suspected while somebody has a table to himself,
    as then no worker can renew: raises OperationalError.
    """
    mine = (
        db.connection().execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": REAPER_LOCK}).scalar()
    )
    lease = settings().lease_seconds
    up = text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
    if not mine or float(db.connection().execute(up).scalar_one()) < lease:
        return 0
    db.connection().execute(text("LOCK TABLE jobs, attempts IN ROW SHARE MODE NOWAIT"))
    patience = lease if mark_suspects(db, lease / 4) else 1.5 * settings().heartbeat_seconds
    silent = text("""
        SELECT a.id FROM attempts a
         WHERE a.ended_at IS NULL AND a.suspect_since < clock_timestamp() - make_interval(secs => :patience)
         ORDER BY a.job_id""")
    lost = 0
    for attempt_id in db.connection().execute(silent, {"patience": patience}).scalars().all():
        held_by = select(Job).where(Job.attempt_id == attempt_id).with_for_update(skip_locked=True)
        job = db.exec(held_by.execution_options(populate_existing=True)).first()
        if job is not None and still_suspect(db, attempt_id):
            jobs.close(db, job, Outcome.LOST, reason_code="lost", reason=settling.LOST, actor="reaper")
            lost += 1
    return lost


def mark_suspects(db: Session, grace: float) -> bool:
    """Marks the attempts whose lease ran out more than `grace` seconds ago. True: it looks like an outage."""
    db.connection().execute(
        text("""
            UPDATE attempts SET suspect_since = clock_timestamp()
             WHERE ended_at IS NULL AND suspect_since IS NULL
               AND lease_expires_at < clock_timestamp() - make_interval(secs => :grace)"""),
        {"grace": grace},
    )
    counted = text("SELECT count(suspect_since), count(*) FROM attempts WHERE ended_at IS NULL")
    suspects, running = db.connection().execute(counted).one()
    return suspects > 3 and suspects * 2 > running


def still_suspect(db: Session, attempt_id: str) -> bool:
    """Whether no renewal came between the reaper's look and its lock."""
    suspect = select(Attempt.id).where(Attempt.id == attempt_id, col(Attempt.suspect_since).is_not(None))
    return db.exec(suspect.with_for_update()).first() is not None
