"""A zip of pictures, sounds, code or texts → the canonical Parquet file, one file at a time.

A file that cannot be read is a finding with its number in the sorted list and its path; the others go on.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from shared import archives, bundles
from shared.bundles import Bundle, path_of
from shared.errors import Refused, Unreadable
from shared.formats import BOM, LINE, ROW, BadRow, counted, lines, quoted
from shared.recipe import Finding
from worker.engine import captions
from worker.engine.canonical import Canonical, Numbered, Tell, write
from worker.engine.media import MEDIA, Pictures, Reader, Sounds

ALIKE = 3  # files that are named where many have the same fault


@dataclass
class Zip:
    """A zip that is being read."""

    archive: zipfile.ZipFile
    bundle: Bundle
    folder: Path  # for what must be unpacked
    tell: Tell
    made: Canonical = field(default_factory=Canonical)

    def each(self) -> Iterator[tuple[int, str, zipfile.ZipInfo]]:
        """(number from 1, path, entry) of the files to read."""
        for number, entry in enumerate(self.bundle.entries, 1):
            yield number, path_of(entry), entry
            self.tell(number, len(self.bundle.entries))

    def leave_out(self, number: int, path: str, why: str) -> None:
        """A finding for a file that does not become a row."""
        self.made.find(Finding(f"«{quoted(path)}» {why}; it is left out.", number, fatal=False))

    def say(self, message: str) -> None:
        """A finding about the whole zip."""
        self.made.find(Finding(message, fatal=False))


def convert(file: BinaryIO, bundle: Bundle, folder: Path, path: Path, tell: Tell) -> Canonical:
    """The zip's files as rows of the Parquet file at `path`. Raises Refused where no row is left."""
    with zipfile.ZipFile(file) as archive:
        source = Zip(archive, bundle, folder, tell)
        if bundle.left:
            source.say(
                f"Left out of the zip: {counted(len(bundle.left), 'other file')} ({named(bundle.left)})."
            )
        READERS[bundle.kind](source, path)
    made = source.made
    if not made.rows:
        first = next((one.message for one in made.findings if one.row), "All of them are empty.")
        raise Refused(f"Nothing in the zip can be read. {first}", param="file", code="empty_file")
    return made


def named(paths: list[str]) -> str:
    """The first few paths."""
    return ", ".join(f"«{quoted(path)}»" for path in paths[:ALIKE]) + (" …" if len(paths) > ALIKE else "")


# --- pictures and sounds ----------------------------------------------------------------------------


def media(source: Zip, path: Path) -> None:
    """Rows of `image` or `audio`, what is said of it (`label`, `caption`), and its `path`."""
    said, columns = captions.said_of(source.archive, source.bundle, source.folder, source.made)
    kind = source.bundle.kind
    column, reader = ("image", Pictures()) if kind == "pictures" else ("audio", Sounds())
    texts = [name for name in ("label", "caption", "path") if name in (*columns, "path")]
    fields = [
        pa.field(ROW, pa.int64()),
        pa.field(column, pa.binary(), metadata={MEDIA: reader.suffix}),
        *(pa.field(name, pa.string()) for name in texts),
    ]
    write(path, pa.schema(fields), media_rows(source, column, reader, said), source.made)
    for finding in reader.findings():
        source.made.find(finding)


def media_rows(source: Zip, column: str, reader: Reader, said: dict[str, captions.Said]) -> Numbered:
    """The rows; a file that is broken or that no captions file names is left out."""
    suffixes = bundles.PICTURES if column == "image" else bundles.SOUNDS
    look_at_all(source, reader)
    for number, path, entry in source.each():
        try:
            if path not in said:
                raise Unreadable("is in no captions file")
            if PurePosixPath(path).suffix.lower() not in suffixes:
                raise Unreadable("is of a format that is not read")
            content = archives.content(source.archive, entry, reader.most)
            plain = reader.read(content, f"row {number} («{quoted(path)}»)")
        except Unreadable as wrong:
            source.leave_out(number, path, str(wrong))
        else:
            yield number, {column: plain, "path": path} | said[path]


def look_at_all(source: Zip, reader: Reader) -> None:
    """What they have in common, before the first is read."""
    for entry in source.bundle.entries if reader.looks else ():
        try:
            reader.look(archives.content(source.archive, entry, reader.most))
        except Unreadable:
            continue  # told when it is read


# --- code and texts ---------------------------------------------------------------------------------


def code(source: Zip, path: Path) -> None:
    """Rows of `path` and `content`: a file each."""
    names = (ROW, "path", "content")
    fields = [pa.field(name, pa.int64() if name == ROW else pa.string()) for name in names]
    write(path, pa.schema(fields), code_rows(source), source.made)


def code_rows(source: Zip) -> Numbered:
    """Files of UTF-8 text that are not blank."""
    empty: list[str] = []
    for number, path, entry in source.each():
        try:
            content = plain_text(archives.content(source.archive, entry, LINE))
        except Unreadable as wrong:
            source.leave_out(number, path, str(wrong))
            continue
        if content.strip():
            yield number, {"path": path, "content": content}
        else:
            empty.append(path)
    if empty:
        source.say(f"Left out: {counted(len(empty), 'empty file')} ({named(empty)}).")


def plain_text(data: bytes) -> str:
    """The file's text. Raises Unreadable where it is none."""
    if b"\0" in data:
        raise Unreadable("is not text (it holds zero bytes)")
    try:
        return data.removeprefix(BOM).decode()
    except UnicodeDecodeError as wrong:
        place = data.count(b"\n", 0, wrong.start) + 1
        raise Unreadable(f"is not UTF-8 (byte 0x{data[wrong.start]:02X} in line {place})") from None


def texts(source: Zip, path: Path) -> None:
    """Rows of `text` and `path`: a line each; every file is a stream of its own."""
    fields = [pa.field(ROW, pa.int64()), pa.field("text", pa.string()), pa.field("path", pa.string())]
    write(path, pa.schema(fields), text_rows(source), source.made)


def text_rows(source: Zip) -> Numbered:
    """The lines of all files, numbered through. The last one of a file loses its line end: a row that has
    one is continued by the next.
    """
    total = 0
    for number, path, entry in source.each():
        place = source.folder / "text"
        archives.unpack(source.archive, entry, place)
        with place.open("rb") as file:
            if fault := text_fault(file):
                source.leave_out(number, path, fault)
                continue
            file.seek(0)
            held: str | None = None
            for _, line in lines(file):
                if held is not None:
                    total += 1
                    yield total, {"text": held, "path": path}
                held = line
            total += 1
            yield total, {"text": (held or "").removesuffix("\n").removesuffix("\r"), "path": path}


def text_fault(file: BinaryIO) -> str:
    """Why the file is no text with something in it; empty where it is."""
    blank = True
    try:
        for _, line in lines(file):
            if "\0" in line:
                return "is not text (it holds zero bytes)"
            blank = blank and not line.strip()
    except BadRow as wrong:
        return f"cannot be read ({wrong.message.rstrip('.')})"
    return "is empty" if blank else ""


READERS: dict[str, Callable[[Zip, Path], None]] = {
    "pictures": media,
    "sounds": media,
    "code": code,
    "texts": texts,
}
