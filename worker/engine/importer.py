"""Import: a stranger's file in; canonical rows, or a model that loads without running code, out.

Runs where trainers run: no network, no credentials, memory bounded. A file that cannot be read ends
with the error event that says what is wrong, in which row, and what to do.
"""

from __future__ import annotations

import hashlib
import json
import resource
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shared import archives, bundles, formats
from shared.bundles import Bundle
from shared.errors import Refused
from shared.formats import HEAD, BadRow, Glance
from worker.engine import base_model_import, bundled, canonical, described
from worker.engine.attempt import DONE, Attempt
from worker.engine.attempt import USER as USER_ERROR
from worker.engine.events import Events

MEMORY = 4 * 1024**3  # beyond what the process holds at its start


def run(attempt: Attempt, events: Events) -> int:
    """Imports the dataset or base model of the attempt. Returns the exit code."""
    try:
        if attempt.kind == "import_base_model":
            base_model_import.run(attempt, events)
        else:
            import_dataset(attempt, events)
    except BadRow as wrong:
        events.error(wrong.code, wrong.message, param=wrong.param, row=wrong.row)
        return USER_ERROR
    except Refused as wrong:
        events.error(wrong.code, wrong.message, param=wrong.param)
        return USER_ERROR
    events.stage("done")
    return DONE


def import_dataset(attempt: Attempt, events: Events) -> None:
    """artifacts/data.parquet and artifacts/report.json from `attempt.source`. Raises Refused."""
    if attempt.source is None:
        raise Refused("There is no file to import.", param="file")
    with bounded_memory():
        path = attempt.artifacts / "data.parquet"
        events.stage("preparing", detail="reading the file")
        kind, made = convert(attempt.source, attempt.filename, attempt.folder, path, Progress(events))
        events.stage("preparing", detail="looking at the columns")
        known = described.describe(path, attempt.artifacts / "preview")
        events.stage("preparing", detail="checking the rows")
        report = {
            "format": kind.format,
            "rows": made.rows,
            "bytes": path.stat().st_size,
            "content_hash": sha256_of(path),
            **known,
            "findings": [described.told(finding) for finding in made.told()],
            "fits": described.fits(path),
        }
    write_report(attempt, report)
    events.log(
        f"{made.rows:,} rows with {formats.counted(len(known['columns']), 'column')} from {kind.format}."
    )


def convert(
    place: Path, name: str, folder: Path, path: Path, tell: canonical.Tell
) -> tuple[Glance, canonical.Canonical]:
    """The file as Parquet at `path`, its kind first; a zip of one file is unpacked into `folder`. Raises Refused."""
    with place.open("rb") as file:
        head = file.read(HEAD)
        kind = formats.glance(head, name, whole=len(head) < HEAD)
        if kind.format == "zip":
            bundle = bundles.look(archives.members(file, archives.MANY))
            if bundle.kind != "file":
                return Glance(bundle.kind), bundled.convert(file, bundle, folder, path, tell)
            return convert(*unpacked(file, bundle, folder), folder, path, tell)
        if kind.format == "parquet":
            return kind, canonical.from_parquet(place, path, tell)
        return kind, canonical.from_text(file, kind, path, tell)


def unpacked(file: BinaryIO, bundle: Bundle, folder: Path) -> tuple[Path, str]:
    """The one file of a zip: (where it lies now, its name). Raises Refused, for a zip within it too."""
    entry = bundle.entries[0]
    place = folder / "unpacked"
    with zipfile.ZipFile(file) as archive:
        archives.head_of(archive, entry, HEAD)
        archives.unpack(archive, entry, place)
    return place, entry.filename


class Progress:
    """Tells of the reading, a hundred times at most."""

    def __init__(self, events: Events) -> None:
        self.events, self.percent = events, 0

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent > self.percent:
            self.percent = percent
            self.events.stage("preparing", detail="reading the file", done=done, total=total)


@contextmanager
def bounded_memory() -> Generator[None]:
    """Turns a file that would fill the machine's memory into a refusal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    statm = Path("/proc/self/statm").read_text().split()
    held = int(statm[5]) * resource.getpagesize()
    most = held + MEMORY if hard == resource.RLIM_INFINITY else min(held + MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    except MemoryError:
        raise Refused(
            f"The file needs more than {MEMORY // formats.MIB:,} MiB of memory to be read."
            " Split its largest cells or rows over several.",
            param="file",
            code="file_too_large",
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_report(attempt: Attempt, report: dict[str, Any]) -> None:
    """artifacts/report.json."""
    (attempt.artifacts / "report.json").write_text(json.dumps(report, ensure_ascii=False, allow_nan=False))
