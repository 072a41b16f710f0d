"""Finished answers of an inference job, in shards: folders that appear whole, so that a kill loses little."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from worker.engine.evaluation import kept
from worker.engine.events import Events

ENOUGH = 256  # answers that make a shard
SOONEST, LATEST = 2.0, 20.0  # seconds after the one before: not sooner however many, not later however few


class Shards:
    """`shard-000001/` … in a folder: `answers.jsonl` with lines {"place", "output"} or {"place", "error"}, and
    the pictures and sounds that they name. `place` counts the requests from 0. Those of earlier attempts
    lie there already: what they answer is not asked again.
    """

    def __init__(self, folder: Path, total: int, events: Events) -> None:
        self.folder, self.events = folder, events
        self.done = bytearray(total)  # 1 for each place that is answered
        self.count = 0  # of them
        self.number = 0
        self.waiting: list[dict[str, Any]] = []
        self.half = folder / "next"
        shutil.rmtree(self.half, ignore_errors=True)
        for shard in sorted(folder.glob("shard-*")):
            self.number = int(shard.name.removeprefix("shard-"))
            with (shard / "answers.jsonl").open("rb") as lines:
                self.note(json.loads(line) for line in lines)
        self.half.mkdir(parents=True)
        self.closed_at = time.monotonic()

    def add(self, answers: list[dict[str, Any]]) -> None:
        """Some more answers; now and then they become a shard."""
        self.waiting += kept(answers, self.half)
        self.note(answers)
        age = time.monotonic() - self.closed_at
        if age >= LATEST or (len(self.waiting) >= ENOUGH and age >= SOONEST):
            self.close()

    def note(self, answers: Iterable[dict[str, Any]]) -> None:
        """Those places are answered."""
        for answer in answers:
            self.count += not self.done[answer["place"]]
            self.done[answer["place"]] = 1

    def close(self) -> None:
        """What waits becomes a shard, whole or not at all; an event says so."""
        if not self.waiting:
            return
        self.number += 1
        name = f"shard-{self.number:06d}"
        lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in self.waiting)
        (self.half / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
        self.half.rename(self.folder / name)
        self.events.write("shard", {"name": name, "answers": len(self.waiting)})
        self.waiting, self.closed_at = [], time.monotonic()
        self.half.mkdir()
