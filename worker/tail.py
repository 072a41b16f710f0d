"""The end of a file of JSON lines that a trainer writes. What it says is not trusted: sizes are bounded."""

import json
import logging
from pathlib import Path
from typing import Any

from shared.events import storable
from shared.tables import EventType

log = logging.getLogger(__name__)

A_READ = 1024 * 1024  # a trainer that floods the file must not fill this process
KNOWN = frozenset(EventType)


class Tail:
    """Reads the lines that were added. `commit` says that they are stored; until then they come again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.last_seq = 0
        self._next = 0
        self._next_seq = 0

    def read(self) -> list[dict[str, Any]]:
        """The whole lines after the committed ones, at most a mebibyte."""
        self._next, self._next_seq = self.offset, self.last_seq
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                piece = file.read(A_READ)
        except FileNotFoundError:
            return []
        whole = piece.rfind(b"\n") + 1
        if not whole and len(piece) == A_READ:
            log.warning("%s has a line of more than a mebibyte; it is left out", self.path)
            whole = len(piece)
        self._next = self.offset + whole
        events = [e for line in piece[:whole].splitlines() if (e := parsed(line)) is not None]
        self._next_seq = max([self.last_seq, *(e["seq"] for e in events)])
        return events

    def commit(self) -> None:
        """The lines of the last `read` are stored."""
        self.offset, self.last_seq = self._next, self._next_seq


def parsed(line: bytes) -> dict[str, Any] | None:
    """The event, or None for what is none. Numbers that JSON lacks (NaN) become None."""
    try:
        event = json.loads(line.decode("utf-8", "replace"), parse_constant=lambda _: None)
        at, step = float(event["at"]), event.get("step")
        known = event["type"] in KNOWN and isinstance(event["data"], dict)
        bounded = isinstance(event["seq"], int) and 0 < event["seq"] < 2**63 and 0 < at < 4e9
        counted = step is None or (isinstance(step, int) and 0 <= step < 2**31)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not (known and bounded and counted):
        return None
    return {
        "seq": event["seq"],
        "at": at,
        "type": event["type"],
        "step": step,
        "data": storable(event["data"]),
    }


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a text file, cut to a bearable length each; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 256 * 1024))
            said = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line[:2000].rstrip() for line in said.splitlines()[-count:] if line.strip()]
