"""Datasets through the real importer, for tests: bytes in, what it made of them out."""

import io
import json
import wave
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shared.formats import ROW
from tests.attempts import json_lines
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
        return json_lines((self.folder / "events.jsonl").read_text())

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


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zipped(files: Mapping[str, bytes | str]) -> bytes:
    """A zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def picture(
    color: Any = (200, 30, 30),
    size: tuple[int, int] = (8, 6),
    mode: str = "RGB",
    format: str = "PNG",
    **more: Any,
) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format, **more)
    return buffer.getvalue()


def sound(raw: bytes = bytes(1600), rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    """A WAV file with these frames."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return buffer.getvalue()
