"""What was found out once on this machine: small JSON files by hash, so that no attempt finds it out again.
Trainers share the folder: any file may go at any moment.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST = 256  # of a kind; those read longest ago go first


def recall(cache: Path | None, kind: str, key: str) -> Any:
    """What `keep` was given under that key; None: nothing yet."""
    if cache is None:
        return None
    path = cache / kind / f"{key}.json"
    with suppress(FileNotFoundError):
        os.utime(path)
        return json.loads(path.read_text())
    return None


def keep(cache: Path | None, kind: str, key: str, value: Any) -> None:
    """Store a JSON value, whole or not at all. Without a cache nothing is kept."""
    if cache is None:
        return
    folder = cache / kind
    folder.mkdir(parents=True, exist_ok=True)
    half = half_of(folder / f"{key}.json")
    half.write_text(json.dumps(value))
    with suppress(FileNotFoundError):
        half.rename(folder / f"{key}.json")
    prune(folder, MOST)


def half_of(path: Path) -> Path:
    """Where a file is written until it is whole. No process id: trainers in two containers may have the same."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}")


def prune(folder: Path, most: int) -> None:
    """Leaves the `most` files that were used last."""
    known = []
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            known.append((path.stat().st_mtime, path))
    for _, path in sorted(known, reverse=True)[most:]:
        path.unlink(missing_ok=True)
