"""What a person does to one checkpoint: keep it, or leave it to the team's rule again."""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, flash, g, redirect
from sqlmodel import Session
from werkzeug.wrappers import Response

from shared import checkpoints, jobs, retention
from shared.db import transaction
from shared.errors import NotFound
from shared.tables import Checkpoint, Job, Team

pages = Blueprint("checkpoints", __name__)


@pages.post("/checkpoints/<checkpoint_id>/pin")
def pin(checkpoint_id: str) -> Response:
    """It is kept, whatever the rule says."""
    return kept(checkpoint_id, on=True, said="The checkpoint of step {step:,} is kept until you unpin it.")


@pages.post("/checkpoints/<checkpoint_id>/unpin")
def unpin(checkpoint_id: str) -> Response:
    """The rule decides again."""
    return kept(checkpoint_id, on=False, said="The rule decides again about the checkpoint of step {step:,}.")


def kept(checkpoint_id: str, *, on: bool, said: str) -> Response:
    """Pin it or not, note it, and show it on its job's page."""
    with transaction() as db:
        point = pinned(db, checkpoint_id, on=on)
    flash(said.format(step=point.step), "good")
    return redirect(f"/jobs/{point.job_id}#{point.id}", 303)


def pinned(db: Session, checkpoint_id: str, *, on: bool) -> Checkpoint:
    """The team's checkpoint, pinned or not from now on, with a line in the timeline. Raises NotFound, Refused."""
    found = db.get(Checkpoint, checkpoint_id)
    if found is None or found.team_id != g.caller.team_id:
        raise NotFound("checkpoint", checkpoint_id)
    was = found.pinned_at is not None
    point = retention.pin(db, checkpoint_id, on=on)
    if was is not on:
        verb = "pinned" if on else "unpinned"
        jobs.note(
            db, db.get_one(Job, point.job_id), g.caller.actor, f"{verb} the checkpoint of step {point.step:,}"
        )
    return point


def keeping(db: Session, job: Job, stored: Sequence[Checkpoint]) -> dict[str, Any]:
    """What a job's page says of keeping: `rule`, `why` {checkpoint: the reason}, `goes_at`, `removed` steps."""
    return {
        "rule": retention.rule(db.get_one(Team, job.team_id).keep_best),
        "why": retention.kept(db, job, stored) if stored else {},
        "goes_at": retention.goes_at(job),
        "removed": checkpoints.removed(db, job.id),
    }
