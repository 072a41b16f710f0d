"""What an attempt reports: a line of JSON an event, in `events.jsonl`, in order."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

PAUSE = 0.2  # seconds between two step events that are written


class Events:
    """Appends to `events.jsonl`; numbers go on where an earlier process in the same folder stopped.

    Any thread may write. Numbers that are not finite become null, as JSON has none.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "events.jsonl"
        self.seq = drop_half_line(path)
        self.file = path.open("a", encoding="utf-8")
        self.lock = threading.Lock()
        self.stepped = 0.0
        self.pending: tuple[int, dict[str, Any]] | None = None

    def write(self, kind: str, data: dict[str, Any], step: int | None = None) -> None:
        """One event, on disk when this returns. A step that waited its turn goes first."""
        with self.lock:
            self.flush_step()
            self.line(kind, step, data)

    def step(self, step: int, data: dict[str, Any]) -> None:
        """A step; of those that come faster than five a second only the latest is written."""
        with self.lock:
            self.pending = (step, data)
            if time.monotonic() - self.stepped >= PAUSE:
                self.flush_step()

    def stage(self, stage: str, **more: Any) -> None:
        """What is being done now."""
        self.write("stage", {"stage": stage, **more})

    def log(self, message: str, level: str = "info") -> None:
        """A sentence for the job's log."""
        self.write("log", {"level": level, "message": message})

    def error(self, code: str, message: str, **more: Any) -> None:
        """Why the attempt ends."""
        self.write("error", {"code": code, "message": message, **more})

    def close(self) -> None:
        """Write what waits."""
        with self.lock:
            self.flush_step()
            self.file.close()

    def flush_step(self) -> None:
        """The step that waits, if any. Call with the lock held."""
        if self.pending is not None:
            step, data = self.pending
            self.pending = None
            self.stepped = time.monotonic()
            self.line("step", step, data)

    def line(self, kind: str, step: int | None, data: dict[str, Any]) -> None:
        """Write a line. Call with the lock held."""
        self.seq += 1
        event = {"seq": self.seq, "at": time.time(), "type": kind, "step": step, "data": finite(data)}
        self.file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")
        self.file.flush()


class Silence(Events):
    """What the other processes of a training report: nothing, but for the output's log why they end."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, data: dict[str, Any], step: int | None = None) -> None:
        """Not told."""

    def step(self, step: int, data: dict[str, Any]) -> None:
        """Not told."""

    def error(self, code: str, message: str, **more: Any) -> None:  # noqa: ARG002 - as its parent's
        """For whoever reads the log of the output."""
        sys.stderr.write(f"{code}: {message}\n")

    def close(self) -> None:
        """Nothing waits."""


def drop_half_line(path: Path) -> int:
    """How many whole lines the file has; a last one that was cut short by a crash is taken off."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)
    return content.count(b"\n")


def finite(value: Any) -> Any:
    """The same with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value
