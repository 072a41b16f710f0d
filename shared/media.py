"""Pictures and sounds: samples that a job shows while it trains, and a dataset's first rows, made small.
Each is stored under its hash, so that a name never means other bytes.
"""

import re

from shared.tables import DatasetVersion, Job

NAME = re.compile(r"[0-9a-f]{32}\.(png|wav)")
TYPES = {"png": "image/png", "wav": "audio/wav"}


def key(job: Job, name: str) -> str | None:
    """Where that picture or sound of the job lies in the store; None for anything that is no such name."""
    return f"teams/{job.team_id}/jobs/{job.id}/media/{name}" if NAME.fullmatch(name) else None


def preview_key(version: DatasetVersion, name: str) -> str | None:
    """Where that picture or sound of the first rows lies; None for anything that is no such name."""
    folder = f"teams/{version.team_id}/datasets/{version.id}/preview"
    return f"{folder}/{name}" if NAME.fullmatch(name) else None


def preview_keys(version: DatasetVersion) -> list[str]:
    """Where all pictures and sounds of the first rows lie."""
    cells = (cell for row in version.report.get("preview", []) for cell in row.values())
    names = {str(cell["media"]) for cell in cells if isinstance(cell, dict) and "media" in cell}
    return [found for name in sorted(names) if (found := preview_key(version, name))]
