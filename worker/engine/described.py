"""What a dataset's page shows of its rows: statistics per column, a preview, and which recipes they fit."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.formats import ROW
from shared.recipe import Finding, Recipe, recipes
from worker.engine import pictures, sounds
from worker.engine.media import MEDIA

PREVIEW = 50
CELL = 2000  # characters of a text in the preview
ITEMS = 50  # of a list in the preview
DISTINCT = 100_000  # values counted exactly
TOP = 20
LABEL = 200  # characters of a value that may be listed
ROWS_AT_ONCE = 4096


class Statistics:
    """One column's, gathered batch by batch."""

    def __init__(self, field: pa.Field) -> None:
        self.name, self.type = field.name, field.type
        self.filled = self.length = 0
        self.shortest: int | None = None
        self.longest: int | None = None
        self.counts: Counter[Any] | None = None if pa.types.is_nested(field.type) else Counter()

    def add(self, column: pa.Array) -> None:
        """One more batch."""
        present = column.drop_null()
        lengths = self.lengths(present)
        if lengths is not None:
            present = present.filter(compute("greater", lengths, 0))
            lengths = lengths.filter(compute("greater", lengths, 0))
        self.filled += len(present)
        if lengths is not None and len(lengths):
            low, high = compute("min", lengths).as_py(), compute("max", lengths).as_py()
            self.shortest = low if self.shortest is None else min(low, self.shortest)
            self.longest = high if self.longest is None else max(high, self.longest)
            self.length += compute("sum", lengths).as_py()
        self.count(present)

    def lengths(self, present: pa.Array) -> pa.Array | None:
        """Characters of texts, items of lists."""
        if pa.types.is_string(self.type):
            return compute("utf8_length", present)
        if pa.types.is_list(self.type):
            return compute("list_value_length", present)
        return None

    def count(self, present: pa.Array) -> None:
        """The distinct values, until there are too many for labels."""
        if self.counts is None:
            return
        for entry in compute("value_counts", present):
            self.counts[entry["values"].as_py()] += entry["counts"].as_py()
        if len(self.counts) > DISTINCT:
            self.counts = None

    def report(self) -> dict[str, Any]:
        """As `shared.datasets` describes."""
        known: dict[str, Any] = {"name": self.name, "type": type_name(self.type), "filled": self.filled}
        known["distinct"] = None if self.counts is None else len(self.counts)
        if self.shortest is not None:
            known |= {
                "min_length": self.shortest,
                "mean_length": round(self.length / max(self.filled, 1), 1),
                "max_length": self.longest,
            }
        top = self.counts.most_common(TOP) if self.counts else []
        listed = bool(top) and (len(self.counts or ()) <= TOP or top[0][1] > 1)
        known["values"] = (
            [{"value": shortened(value, LABEL), "count": count} for value, count in top] if listed else []
        )
        return known


class MediaStatistics:
    """The same for pictures and sounds: how large they are, and how many of each size."""

    def __init__(self, field: pa.Field) -> None:
        self.name, self.suffix = field.name, suffix_of(field)
        self.filled = 0
        self.sizes: Counter[str] = Counter()
        self.seconds: list[float] = []

    def add(self, column: pa.Array) -> None:
        """One more batch."""
        for content in column.drop_null().to_pylist():
            self.filled += 1
            if self.suffix == "png":
                width, height = pictures.size(content)
                self.sizes[f"{width:,} × {height:,}"] += 1
            else:
                rate, seconds = sounds.facts(content)
                self.sizes[f"{rate:,} Hz"] += 1
                self.seconds.append(seconds)

    def report(self) -> dict[str, Any]:
        """As `shared.datasets` describes."""
        known: dict[str, Any] = {
            "name": self.name,
            "type": "picture" if self.suffix == "png" else "sound",
            "filled": self.filled,
            "distinct": None,
            "values": [],
            "sizes": [{"value": size, "count": count} for size, count in self.sizes.most_common(TOP)],
        }
        if self.seconds:
            low, high, mean = min(self.seconds), max(self.seconds), sum(self.seconds) / len(self.seconds)
            known["seconds"] = [round(value, 2) for value in (low, mean, high)]
        return known


def describe(path: Path, folder: Path) -> dict[str, Any]:
    """{"columns", "preview", "preview_rows"} of a canonical Parquet file; small pictures and sounds for the
    preview go to `folder`.
    """
    schema = pq.read_schema(path)
    gathered = [
        (MediaStatistics if suffix_of(field) else Statistics)(field) for field in schema if field.name != ROW
    ]
    shown: list[dict[str, Any]] = []
    for batch in batches(path):
        if len(shown) < PREVIEW:
            shown += batch.slice(0, PREVIEW - len(shown)).to_pylist()
        for statistics in gathered:
            statistics.add(batch.column(statistics.name))
    media = {field.name: suffix for field in schema if (suffix := suffix_of(field))}
    return {
        "columns": [statistics.report() for statistics in gathered],
        "preview": [
            {
                name: previewed(value, media[name], folder) if name in media else shortened(value, CELL)
                for name, value in row.items()
                if name != ROW
            }
            for row in shown
        ],
        "preview_rows": [row[ROW] for row in shown],
    }


def batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows in batches that memory holds: none spans two of the file's row groups, which are bounded."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns)


def suffix_of(field: pa.Field) -> str:
    """«png» for a column of pictures, «wav» for one of sounds, else nothing."""
    return (field.metadata or {}).get(MEDIA, b"").decode()


def previewed(content: bytes | None, suffix: str, folder: Path) -> dict[str, Any] | None:
    """{"media": the name of a small copy in `folder`, and how large the whole is}."""
    if content is None:
        return None
    if suffix == "png":
        small = pictures.preview(content)
        facts: dict[str, Any] = dict(zip(("width", "height"), pictures.size(content), strict=True))
    else:
        small = sounds.preview(content)
        rate, seconds = sounds.facts(content)
        facts = {"rate": rate, "seconds": round(seconds, 2)}
    name = f"{hashlib.sha256(small).hexdigest()[:32]}.{suffix}"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(small)
    return {"media": name} | facts


def fits(path: Path) -> dict[str, Any]:
    """{recipe: {"columns", "findings", "fatal", "skipped"}} for every recipe that knows these columns."""
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name != ROW]
    found = {}
    for name, recipe in recipes().items():
        if columns := recipe.recognise(names):
            found[name] = fit(path, recipe, columns)
    return found


def fit(path: Path, recipe: Recipe, columns: dict[str, str]) -> dict[str, Any]:
    """What that recipe makes of the rows."""
    findings = as_in_file(path, recipe.check(read(path, sorted(set(columns.values()))), columns))
    return {
        "columns": columns,
        "findings": [told(finding) for finding in findings],
        "fatal": sum(finding.fatal for finding in findings),
        "skipped": sum(not finding.fatal and finding.row is not None for finding in findings),
    }


def read(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows one by one, these columns alone."""
    for batch in batches(path, columns):
        yield from batch.to_pylist()


def as_in_file(path: Path, findings: list[Finding]) -> list[Finding]:
    """The findings with the row numbers of the user's file, instead of places in ours."""
    if not any(finding.row for finding in findings):
        return findings
    numbers = pq.read_table(path, columns=[ROW]).column(ROW)
    return [
        Finding(one.message, numbers[one.row - 1].as_py(), one.column, one.fatal) if one.row else one
        for one in findings
    ]


def told(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    return {
        "row": finding.row,
        "column": finding.column,
        "message": shortened(finding.message, CELL),
        "fatal": finding.fatal,
    }


def compute(function: str, *values: Any) -> Any:
    """One of Arrow's functions, by name."""
    return pc.call_function(function, list(values))


def type_name(of: pa.DataType) -> str:
    """A column's type in the user's words."""
    if pa.types.is_string(of):
        return "text"
    if pa.types.is_boolean(of):
        return "yes or no"
    if pa.types.is_integer(of):
        return "whole number"
    if pa.types.is_floating(of):
        return "number"
    if pa.types.is_list(of):
        inner = of.value_type
        names = {field.name for field in inner} if pa.types.is_struct(inner) else set()
        return "messages" if names & {"content", "value"} and names & {"role", "from"} else "list"
    return "object"


def shortened(value: Any, most: int) -> Any:
    """The value as it may be shown and stored as JSON: texts and lists cut, nothing unprintable hidden."""
    if isinstance(value, str):
        clean = value if "\0" not in value else value.replace("\0", "\ufffd")
        return clean if len(clean) <= most else clean[:most] + "…"
    if isinstance(value, list):
        return [shortened(one, most) for one in value[:ITEMS]]
    if isinstance(value, dict):
        return {name: shortened(one, most) for name, one in value.items()}
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):  # noqa: PLR0124 - NaN
        return str(value)
    return value
