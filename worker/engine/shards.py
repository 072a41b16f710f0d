"""Finished parts of an attempt's work, in shards: folders that appear whole, so that a kill loses little."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.engine.evaluation import kept
from worker.engine.events import Events

ENOUGH = 256  # lines that make a shard
SOONEST, LATEST = 2.0, 20.0  # seconds after the one before: not sooner however many, not later however few

Line = dict[str, Any]


class Shards:
    """`shard-000001/` … in a folder: `answers.jsonl` with a line for each thing done. Those of earlier attempts
    lie there already. Pictures and sounds that lines name go to `media`, else into the shard.
    """

    def __init__(self, folder: Path, events: Events, media: Path | None = None) -> None:
        self.folder, self.events = folder, events
        self.waiting: list[Line] = []
        self.half = folder / "next"
        self.media = media or self.half
        shutil.rmtree(self.half, ignore_errors=True)
        self.earlier = sorted(folder.glob("shard-*"))
        self.number = int(self.earlier[-1].name.removeprefix("shard-")) if self.earlier else 0
        self.half.mkdir(parents=True)
        self.closed_at = time.monotonic()

    def lines(self) -> Iterator[Line]:
        """What earlier attempts have done, in its order."""
        for shard in self.earlier:
            with (shard / "answers.jsonl").open("rb") as lines:
                yield from map(json.loads, lines)

    def add(self, lines: list[Line]) -> list[Line]:
        """Some more things done, as they are kept; now and then they become a shard."""
        fresh = kept(lines, self.media)
        self.waiting += fresh
        age = time.monotonic() - self.closed_at
        if age >= LATEST or (len(self.waiting) >= ENOUGH and age >= SOONEST):
            self.close()
        return fresh

    def close(self) -> None:
        """What waits becomes a shard, whole or not at all; an event says so."""
        if not self.waiting:
            return
        self.number += 1
        name = f"shard-{self.number:06d}"
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in self.waiting)
        (self.half / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
        self.half.rename(self.folder / name)
        elsewhere = {"media": sorted(media_in(self.waiting))} if self.media != self.half else {}
        self.events.write("shard", {"name": name, "answers": len(self.waiting)} | elsewhere)
        self.waiting, self.closed_at = [], time.monotonic()
        self.half.mkdir()


def media_in(value: Any) -> set[str]:
    """The names of all pictures and sounds in a JSON value."""
    if isinstance(value, list):
        return set().union(*map(media_in, value))
    if not isinstance(value, dict):
        return set()
    return {value["media"]} if "media" in value else media_in([*value.values()])
