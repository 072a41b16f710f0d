"""What is said of pictures and sounds in a zip: a captions file's rows, or else the names of their folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile, ZipInfo

from shared import archives, formats
from shared.bundles import Bundle, path_of
from shared.errors import Refused
from shared.formats import HEAD, BadRow, quoted
from shared.recipe import Finding
from worker.engine.canonical import Canonical

FILE = ("file", "file_name", "filename", "path", "image", "audio", "picture", "sound")
CAPTION = ("caption", "text", "prompt", "description", "transcript", "transcription", "sentence")
LABEL = ("label", "class", "category")

Said = dict[str, str | None]  # of one file: its label, its caption


def said_of(
    archive: ZipFile, bundle: Bundle, folder: Path, made: Canonical
) -> tuple[dict[str, Said], list[str]]:
    """({path: what is said of that file}, the columns that this fills). Raises Refused.

    What a captions file says wrong is a finding; a file that no captions file names has no entry.
    """
    if not bundle.captions:
        return from_folders([path_of(entry) for entry in bundle.entries])
    known: dict[str, Said] = {}
    columns: dict[str, None] = {}
    paths = Names([path_of(entry) for entry in bundle.entries])
    for entry in bundle.captions:
        for row, name, said in read(archive, entry, folder / "captions"):
            columns |= dict.fromkeys(said)
            path = paths.find(PurePosixPath(path_of(entry)).parent, name)
            where = f"«{quoted(path_of(entry))}», row {row}: «{quoted(name)}»"
            if path is None:
                made.find(Finding(f"{where} is not in the zip.", fatal=False))
            elif path in known:
                made.find(Finding(f"{where} is described a second time; the first one counts.", fatal=False))
            else:
                known[path] = said
    return known, list(columns)


def from_folders(paths: list[str]) -> tuple[dict[str, Said], list[str]]:
    """The name of its folder as each file's label; no columns where all lie outside of folders."""
    labels = {path: PurePosixPath(path).parent.name or None for path in paths}
    named = any(labels.values())
    return {path: {"label": labels[path]} if named else {} for path in paths}, ["label"] if named else []


class Names:
    """Finds files by what a captions file calls them."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = set(paths)
        counts = Counter(PurePosixPath(path).name for path in paths)
        self.single = {
            PurePosixPath(path).name: path for path in paths if counts[PurePosixPath(path).name] == 1
        }

    def find(self, folder: PurePosixPath, name: str) -> str | None:
        """The path below the captions file's folder, else in the zip, else of the only file of that name."""
        clean = name.replace("\\", "/").removeprefix("./")
        for path in (str(folder / clean), clean):
            if path in self.paths:
                return path
        return self.single.get(PurePosixPath(clean).name)


def read(archive: ZipFile, entry: ZipInfo, place: Path) -> Iterator[tuple[int, str, Said]]:
    """(row, the file that it names, what it says) of a captions file. Raises Refused, BadRow naming the file."""
    name = path_of(entry)
    archives.unpack(archive, entry, place)
    try:
        with place.open("rb") as source:
            head = source.read(HEAD)
            kind = formats.glance(head, name, whole=len(head) < HEAD)
            source.seek(0)
            for number, row in formats.rows(source, kind):
                yield number, *described(number, {key.strip().lower(): value for key, value in row.items()})
    except BadRow as wrong:
        raise BadRow(wrong.row, f"«{quoted(name)}»: {wrong.message}") from None
    except Refused as wrong:
        raise Refused(f"«{quoted(name)}»: {wrong.message}", param="file", code=wrong.code) from None


def described(number: int, row: dict[str, Any]) -> tuple[str, Said]:
    """(the file that a row names, {label, caption} as far as there are such columns). Raises BadRow."""
    place = next((name for name in FILE if name in row), None)
    columns = {"label": LABEL, "caption": CAPTION}
    found = {mine: next((name for name in names if name in row), None) for mine, names in columns.items()}
    if place is None or not any(found.values()):
        raise Refused(
            "It needs the columns «file» and «caption» (or «label»)."
            f" It has: {', '.join(quoted(name) for name in list(row)[:20])}."
        )
    if not isinstance(row[place], str) or not row[place].strip():
        raise BadRow(number, f"Row {number} names no file in its column «{place}».")
    return row[place].strip(), {mine: plain(number, row[name], name) for mine, name in found.items() if name}


def plain(number: int, value: Any, column: str) -> str | None:
    """A caption or label as text. Raises BadRow for lists and objects."""
    if isinstance(value, list | dict):
        raise BadRow(number, f"Row {number} has a list or an object in «{column}», and text is wanted.")
    text = "" if value is None else str(value).strip()
    return text or None
