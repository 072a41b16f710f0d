"""Pictures and sounds that a job shows while it trains: samples of a generator, stored under their hash."""

import re

from shared.tables import Job

NAME = re.compile(r"[0-9a-f]{32}\.(png|wav)")
TYPES = {"png": "image/png", "wav": "audio/wav"}


def key(job: Job, name: str) -> str | None:
    """Where that picture or sound of the job lies in the store; None for anything that is no such name."""
    return f"teams/{job.team_id}/jobs/{job.id}/media/{name}" if NAME.fullmatch(name) else None
