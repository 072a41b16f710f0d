"""Takes away the bytes of what was deleted, the shards of inference jobs that have ended, old deliveries."""

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from shared import outbox, shards, storage
from shared.db import transaction
from shared.tables import Artifact, Checkpoint, Job

AT_ONCE = 20  # jobs in one sweep
SHARDS_AT_ONCE = 1000
DELIVERIES_AT_ONCE = 1000


def tidy() -> int:
    """Removes what deleted jobs have stored. Returns how many jobs it were. Raises storage.Away.

    The rows say first that something is deleted; its bytes may go any time later.
    """
    with transaction() as db:
        outbox.forget(db, DELIVERIES_AT_ONCE)
    clear_shards()
    with transaction() as db:
        emptied = deleted_with_bytes(db)
    for job in emptied:
        storage.delete_prefix(f"teams/{job.team_id}/jobs/{job.id}/")
        with transaction() as db:
            for stored in (Checkpoint, Artifact):
                of_job = update(stored).where(col(stored.job_id) == job.id)
                db.exec(of_job.values(manifest=[], bytes=0))
    return len(emptied)


def clear_shards() -> None:
    """The answers of ended jobs stand in their output files: their shards go. Raises storage.Away."""
    with transaction() as db:
        ended = shards.left_behind(db, SHARDS_AT_ONCE)
    for shard in ended:
        storage.delete(f"{shard.prefix}{shards.LINES}")
    with transaction() as db:
        db.exec(delete(Artifact).where(col(Artifact.id).in_([shard.id for shard in ended])))


def deleted_with_bytes(db: Session) -> list[Job]:
    """Some deleted jobs whose rows still count stored bytes."""
    kept = [
        select(stored.job_id).where(stored.job_id == Job.id, stored.bytes > 0).exists()
        for stored in (Checkpoint, Artifact)
    ]
    deleted = select(Job).where(col(Job.deleted_at).is_not(None), kept[0] | kept[1])
    return list(db.exec(deleted.limit(AT_ONCE)).all())
