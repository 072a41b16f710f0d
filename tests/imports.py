"""Datasets through the real importer, for tests: bytes in, what it made of them out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.formats import ROW
from worker.engine import importer
from worker.engine.attempt import Attempt
from worker.engine.events import Events


@dataclass
class Imported:
    """What an import left in its folder."""

    folder: Path
    code: int

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "artifacts/report.json").read_text())

    @property
    def table(self) -> pa.Table:
        return pq.read_table(self.folder / "artifacts/data.parquet")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.table.drop_columns([ROW]).to_pylist()

    @property
    def numbers(self) -> list[int]:
        return self.table.column(ROW).to_pylist()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        assert self.code == 10
        return next(event["data"] for event in self.events if event["type"] == "error")


def imported(folder: Path, filename: str, data: bytes) -> Imported:
    source = folder / "source"
    source.write_bytes(data)
    told = {"kind": "import", "source": str(source), "filename": filename}
    (folder / "attempt.json").write_text(json.dumps(told))
    events = Events(folder)
    code = importer.run(Attempt.read(folder), events)
    events.close()
    return Imported(folder, code)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
