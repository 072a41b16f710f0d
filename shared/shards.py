"""Shards: finished parts of an inference job's answers or of an evaluation, stored while the job goes on.

A shard is a folder: `answers.jsonl` with lines, and the pictures and sounds that they name. Of an inference job
the lines are {"place", "output"} or {"place", "error"}: `place` counts the job's requests from 0, and they may
come from anywhere among them. Those of an evaluation are the engine's own; its pictures and sounds lie with the
job's. A shard's row, an artifact of the form `shard-000001`, is the commit point: the next attempt does only what
is in no shard. When the job has ended the lines are joined and go; pictures and sounds stay where they are.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, delete, select

from shared import leases
from shared.tables import FINAL, Artifact, Job, Ready

FORM = "shard-"
NAME = re.compile(r"shard-\d{6,9}")
LINES = "answers.jsonl"
IS_SHARD = col(Artifact.form).startswith(FORM)  # the condition in a query


def place(attempt: Path) -> Path:
    """Where the engine has them in an attempt's folder."""
    return attempt / "artifacts" / "shards"


def prefix(job: Job, number: int, lease_id: str, name: str) -> str:
    """Where an attempt stores a shard: no two attempts share a key, so nothing is overwritten."""
    return f"teams/{job.team_id}/jobs/{job.id}/{number}-{lease_id[-8:]}/{name}/"


def record(
    db: Session, lease_id: str, name: str, prefix: str, manifest: list[dict[str, Any]]
) -> Artifact | None:
    """Makes a shard exist whose files are stored; None: the lease is lost and it does not."""
    attempt = leases.held(db, lease_id)
    if attempt is None:
        return None
    same = select(Artifact).where(Artifact.job_id == attempt.job_id, Artifact.form == name)
    shard = db.exec(same).first() or Artifact(team_id=attempt.team_id, job_id=attempt.job_id, form=name)
    shard.state, shard.prefix, shard.manifest = Ready.READY, prefix, manifest
    shard.bytes = sum(entry["bytes"] for entry in manifest)
    db.add(shard)
    db.flush()
    return shard


def of(db: Session, job_id: str) -> Sequence[Artifact]:
    """A job's shards in the order in which they were finished."""
    stored = select(Artifact).where(Artifact.job_id == job_id, IS_SHARD)
    return db.exec(stored.order_by(Artifact.form)).all()


def any_of(db: Session, job_id: str) -> bool:
    """Whether a job has shards."""
    return (
        db.exec(select(Artifact.id).where(Artifact.job_id == job_id, IS_SHARD).limit(1)).first() is not None
    )


def forget(db: Session, lease_id: str, shard: Artifact) -> None:
    """Takes the row of a shard away whose bytes cannot be read, if the lease still holds the job."""
    if leases.held(db, lease_id) is not None:
        db.exec(delete(Artifact).where(col(Artifact.id) == shard.id))


def left_behind(db: Session, limit: int) -> Sequence[Artifact]:
    """Some shards of jobs that have ended."""
    ended = select(Job.id).where(col(Job.state).in_(FINAL))
    found = select(Artifact).where(IS_SHARD, col(Artifact.job_id).in_(ended))
    return db.exec(found.limit(limit)).all()
