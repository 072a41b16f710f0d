"""Takes away the bytes of what was deleted or given up, the shards of inference jobs that have ended, what lost
attempts left in the store, and old deliveries.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from shared import checkpoints, outbox, retention, shards, storage
from shared.columns import now
from shared.db import transaction
from shared.tables import FINAL, Artifact, Checkpoint, File, Job

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
    sweep()
    empty_given_up()
    with transaction() as db:
        emptied = deleted_with_bytes(db)
    for job in emptied:
        storage.delete_prefix(f"teams/{job.team_id}/jobs/{job.id}/")
        with transaction() as db:
            for stored in (Checkpoint, Artifact):
                of_job = update(stored).where(col(stored.job_id) == job.id)
                db.exec(of_job.values(manifest=[], bytes=0))
    return len(emptied)


def sweep() -> None:
    """Gives up the checkpoints of ended jobs that need not be kept, and removes what no row names."""
    with transaction() as db:
        jobs = retention.due(db, AT_ONCE)
    for job in jobs:
        with transaction() as db:
            retention.free(db, job.id)
        if job.swept_at is None or job.state not in FINAL:
            remove_orphans(job)
        with transaction() as db:
            retention.swept(db, job)


def empty_given_up() -> None:
    """The bytes of checkpoints whose rows say that they exist no more. Raises storage.Away."""
    with transaction() as db:
        given_up = checkpoints.given_up(db, AT_ONCE)
    for checkpoint in given_up:
        storage.delete_prefix(checkpoint.prefix)
        with transaction() as db:
            checkpoints.emptied(db, checkpoint.id)


def remove_orphans(job: Job) -> None:
    """Removes the objects of a job that no row names, where nobody works any longer: a lost attempt had stored them,
    or was about to. Young ones stay: somebody may be at it still. Raises storage.Away.
    """
    prefix = f"teams/{job.team_id}/jobs/{job.id}/"
    with transaction() as db:
        left, (folders, files) = retention.left_by(db, job), named(db, job, prefix)
    for place in left:
        for key in orphans(storage.listed(place), folders, files):
            storage.delete(key)


def named(db: Session, job: Job, prefix: str) -> tuple[tuple[str, ...], set[str]]:
    """(folders, single objects) of the job that rows name. Pictures and sounds of samples are named by events."""
    points = select(Checkpoint.prefix).where(
        Checkpoint.job_id == job.id, col(Checkpoint.deleted_at).is_(None) | (Checkpoint.bytes > 0)
    )
    made = select(Artifact.prefix).where(Artifact.job_id == job.id, col(Artifact.prefix).is_not(None))
    files = select(File.key).where(
        File.team_id == job.team_id,
        col(File.key).startswith(prefix, autoescape=True),
        col(File.deleted_at).is_(None),
    )
    folders = [f"{prefix}media/", *db.exec(points), *(place for place in db.exec(made) if place)]
    return tuple(folders), set(db.exec(files))


def orphans(listed: Iterable[dict[str, Any]], folders: tuple[str, ...], files: set[str]) -> Iterator[str]:
    """The keys that are in none of these folders, are none of these objects, and have lain there for long."""
    for entry in listed:
        known = entry["Key"].startswith(folders) or entry["Key"] in files
        if not known and entry["LastModified"] < now() - retention.GRACE:
            yield entry["Key"]


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
