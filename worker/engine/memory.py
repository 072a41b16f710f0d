"""What was found out once on this machine: small JSON files by hash, so that no attempt finds it out again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MOST = 256  # of a kind; those read longest ago go first


def recall(cache: Path | None, kind: str, key: str) -> Any:
    """What `keep` was given under that key; None: nothing yet."""
    path = cache / kind / f"{key}.json" if cache else None
    if path is None or not path.exists():
        return None
    os.utime(path)
    return json.loads(path.read_text())


def keep(cache: Path | None, kind: str, key: str, value: Any) -> None:
    """Store a JSON value, whole or not at all. Without a cache nothing is kept."""
    if cache is None:
        return
    folder = cache / kind
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f"{key}.{os.getpid()}"
    half.write_text(json.dumps(value))
    half.rename(folder / f"{key}.json")
    known = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in known[MOST:]:
        path.unlink(missing_ok=True)
