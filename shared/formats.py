"""What uploaded bytes are, told by content, and how rows are read from them.

Everything here is pure Python over open files, bounded in memory, and raises Refused with a sentence
that says what is wrong, in which row, and what to do. The web looks at the head of an upload with it,
the importer reads the whole. Rows count as in the user's file: lines of JSONL and text, spreadsheet
rows of CSV and TSV (the header is row 1), rows of Parquet, elements of a JSON array.

A text file is one stream: a row for each line, its line end kept, blank lines too. A row that ends in
a line end is continued by the next one; joined, the rows are the file again.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import PurePath
from typing import Any, BinaryIO

from shared.errors import Refused

MIB = 1024**2
LINE = 10 * MIB  # the longest line or cell
HEAD = 12 * MIB  # what a look at a file reads; more than a line, so that it sees where one ends
COLUMNS = 1000
DEPTH = 32  # of nested JSON
ROW = "__row__"  # the column of Parquet files that keeps row numbers
DELIMITERS = {",": "csv", "\t": "tsv", ";": "csv", "|": "csv"}
UTF16 = (b"\xff\xfe", b"\xfe\xff")
DOCUMENT = 2 * MIB  # the largest JSON document that a look at it reads
TEXT, LINES = (".txt", ".md", ".text"), (".jsonl", ".ndjson")
SQUAD = re.compile(rb'\{\s*(?:"version"\s*:\s*"[^"]{0,100}"\s*,\s*)?"data"\s*:\s*\[')
BOM = b"\xef\xbb\xbf"

# what a file begins with → what it is; none of these holds rows
FOREIGN = {
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"GGUF": "a GGUF model",
    b"ARROW1": "an Arrow IPC file",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"SQLite format 3": "an SQLite database",
}
WANTED = "Datasets come as JSONL, JSON, CSV, TSV, Parquet, text, or a zip: of one of these, or of pictures, sounds or code."


class BadRow(Refused):
    """A row of the user's file that cannot be read; `row` counts as there."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message, param="file", code="invalid_file_content")
        self.row = row


class OpenQuote(BadRow):
    """A quote that is not closed before the bytes end."""


@dataclass(frozen=True)
class Glance:
    """What a file is. `delimiter` parts the cells of csv and tsv."""

    format: str  # json, jsonl, csv, tsv, parquet, text, zip
    delimiter: str = ""


def glance(head: bytes, filename: str, *, whole: bool) -> Glance:
    """What a dataset file is, from its first bytes; `whole` where these are all.

    Raises Refused for what cannot become rows, and for everything wrong within `head`.
    """
    if not head.strip():
        raise refused("The file is empty. Choose a file with at least one row.", "empty_file")
    if head.startswith(b"PAR1"):
        return Glance("parquet")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Glance("zip")
    if foreign := foreign_kind(head):
        raise refused(f"«{filename}» is {foreign}, not rows. {WANTED}", "unsupported_format")
    text = whole_lines(head, whole=whole)
    kind = text_kind(text, filename)
    if kind.format == "json" and not (whole and len(head) <= DOCUMENT):
        return kind  # it can only be read as a whole
    try:
        count = sum(1 for _ in rows(BytesIO(text), kind))
    except OpenQuote:
        if whole:  # else the head may end within a cell; the importer sees the rest
            raise
    else:
        if whole and not count:
            raise refused(
                "The file has a header and no rows. Choose a file with at least one row.", "empty_file"
            )
    return kind


def foreign_kind(head: bytes) -> str:
    """The name of a known format that holds no rows, or nothing."""
    return next((name for magic, name in FOREIGN.items() if head.startswith(magic)), "")


def whole_lines(head: bytes, *, whole: bool) -> bytes:
    """The head up to its last line end: the next line may be cut anywhere."""
    end = head.rfind(b"\n") + 1
    return head if whole or not end else head[:end]


def text_kind(head: bytes, filename: str) -> Glance:
    """Which format of text it is; the name decides only between tables and plain text."""
    if head.startswith(UTF16):
        raise refused("The file is UTF-16 text. Save it again as UTF-8.", "invalid_encoding")
    start = head.removeprefix(BOM).lstrip()[:1]
    suffix = PurePath(filename.lower()).suffix
    if b"\0" in head[:8192]:
        raise refused(
            f"The file is not text (it holds zero bytes), nor Parquet. {WANTED}", "unsupported_format"
        )
    if (start == b"[" and suffix not in (*TEXT, *LINES, ".csv", ".tsv")) or (
        start == b"{" and suffix not in LINES and is_document(head)
    ):
        return Glance("json")
    if start == b"{" or suffix in (*LINES, ".json"):
        return Glance("jsonl")
    if suffix in TEXT:
        return Glance("text")
    return table_kind(head, suffix)


def is_document(text: bytes) -> bool:
    """Whether text that begins with a brace is one JSON document, and not an object on each line."""
    first, _, rest = text.removeprefix(BOM).lstrip().partition(b"\n")
    if not first.rstrip().endswith(b"}"):
        return True
    return bool(SQUAD.match(first)) and not rest.strip()


def table_kind(head: bytes, suffix: str) -> Glance:
    """CSV or TSV by the delimiter that parts the first rows alike; else plain text."""
    sample = head[: 64 * 1024]
    text = whole_lines(sample, whole=len(sample) == len(head)).decode("utf-8-sig", "replace")
    best, fields = "", 1
    for delimiter in DELIMITERS:
        widths = widths_of(text, delimiter)
        alike = widths and widths.count(widths[0]) >= 0.9 * len(widths)
        if alike and len(widths) > 1 and widths[0] > fields:
            best, fields = delimiter, widths[0]
    if suffix == ".tsv" or (suffix == ".csv" and not best):
        best = "\t" if suffix == ".tsv" else max(DELIMITERS, key=text.partition("\n")[0].count)
    return Glance(DELIMITERS[best], best) if best else Glance("text")


def widths_of(text: str, delimiter: str) -> list[int]:
    """The numbers of cells in the first 50 rows, where that reads as a table at all."""
    try:
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
        return [len(cells) for cells, _ in zip(reader, range(50), strict=False) if cells]
    except csv.Error:
        return []


def rows(file: BinaryIO, kind: Glance) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, row) of a JSON, JSONL, CSV, TSV or text file. Raises BadRow and Refused."""
    if kind.format == "jsonl":
        return json_rows(file)
    if kind.format == "json":
        from shared.json_files import document_rows

        return document_rows(file)
    if kind.format == "text":
        return ((number, {"text": text}) for number, text in lines(file))
    return table_rows(file, kind.delimiter)


def lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """(number, text with its line end) of each line. Raises BadRow: too long, not UTF-8."""
    number = 0
    while raw := file.readline(LINE + 2):
        number += 1
        if len(raw) > LINE and not raw.endswith(b"\n"):
            raise BadRow(
                number, f"Line {number} is longer than {LINE // MIB} MB. Split it, or leave that row out."
            )
        if number == 1:
            raw = raw.removeprefix(BOM)
        yield number, decoded(number, raw)


def decoded(number: int, raw: bytes) -> str:
    """The line's text. Raises BadRow where it is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as wrong:
        raise BadRow(
            number,
            f"Line {number} is not UTF-8: byte 0x{raw[wrong.start]:02X} at position {wrong.start + 1}, after"
            f" «{quoted(raw[: wrong.start].decode()[-30:])}». Save the file as UTF-8 (it looks like Latin-1 or"
            " Windows-1252).",
        ) from None


def json_rows(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file; blank lines are passed over."""
    for number, text in lines(file):
        if text.strip():
            yield number, json_object(number, text)


def json_object(number: int, text: str) -> dict[str, Any]:
    """One line's object. Raises BadRow quoting how the line begins."""
    try:
        value = json.loads(text, parse_constant=not_json)
    except RecursionError:
        raise BadRow(number, f"Line {number} is nested deeper than {DEPTH} levels. Flatten it.") from None
    except ValueError as wrong:
        whole = "" if text.strip() != "{" else " An object that is spread over lines must be put on one line."
        raise BadRow(
            number,
            f"Line {number} is not JSON: it begins «{quoted(text.strip())}» ({reason_of(wrong)}). Write one JSON object on each line.{whole}",
        ) from None
    if not isinstance(value, dict):
        raise BadRow(
            number,
            f"Line {number} is not a JSON object: it begins «{quoted(text.strip())}». Every line must be an object, as"
            ' {"text": "…", "label": "…"}.',
        )
    if not value:
        raise BadRow(number, f"Line {number} is an empty object. Give it its fields, or leave the line out.")
    check_shape(number, value)
    if "\\u" in text:
        check_letters(number, value)
    return value


def not_json(word: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{word} is not JSON; write null")


def reason_of(wrong: ValueError) -> str:
    """What the parser said, with the place in the line."""
    if isinstance(wrong, json.JSONDecodeError):
        return f"{wrong.msg} at character {wrong.pos + 1}"
    return str(wrong).split(":", maxsplit=1)[0]


def check_shape(number: int, row: dict[str, Any]) -> None:
    """Raises BadRow for too many fields and too deep nesting."""
    if len(row) > COLUMNS:
        raise BadRow(number, f"Row {number} has {len(row)} fields; {COLUMNS} are the most. Leave some out.")
    level: list[Any] = [row]
    for _ in range(DEPTH):
        level = [inner for value in level for inner in inside(value)]
        if not level:
            break
    else:
        raise BadRow(number, f"Row {number} is nested deeper than {DEPTH} levels. Flatten it.")


def check_letters(number: int, row: dict[str, Any]) -> None:
    """Raises BadRow for halves of surrogate pairs: JSON can write them, UTF-8 cannot."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRow(
            number,
            f"Row {number} holds half of a surrogate pair (as \\ud83d), which is no character."
            " Write the characters themselves, as UTF-8.",
        ) from None


def inside(value: Any) -> list[Any]:
    """The lists and objects within a list or object."""
    within = value.values() if isinstance(value, dict) else value
    return [inner for inner in within if isinstance(inner, dict | list)]


def table_rows(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV or TSV file under its header's names; cells stay text."""
    records = table_records(file, delimiter)
    _, header = next(records, (1, []))
    check_header(header)
    for number, cells in records:
        if not cells:
            continue
        if len(cells) != len(header):
            raise BadRow(
                number,
                f"Row {number} has {counted(len(cells), 'field')}, the header has {len(header)}."
                f" It begins «{quoted(delimiter.join(cells))}». Put quotes around cells that hold"
                f" «{'tab' if delimiter == chr(9) else delimiter}» or a line end.",
            )
        yield number, dict(zip(header, cells, strict=True))


def table_records(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(spreadsheet row, cells), the header first. Raises BadRow for broken quotes and huge cells."""
    csv.field_size_limit(LINE)
    number = 0
    reader = csv.reader((text for _, text in lines(file)), delimiter=delimiter, strict=True)
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as wrong:
            raise broken_quotes(number, str(wrong)) from None
        yield number, cells


def broken_quotes(number: int, said: str) -> BadRow:
    """What the CSV parser meant."""
    if "field larger" in said:
        most = f"{LINE // MIB} MB"
        return BadRow(number, f"A cell of row {number} is larger than {most}, or its quote is never closed.")
    if "unexpected end" in said:
        return OpenQuote(
            number, f'A quote that opens in row {number} is never closed. Write quotes inside a cell as "".'
        )
    return BadRow(
        number,
        f'Row {number} has a quote in the wrong place ({said}). Write quotes inside a quoted cell as "".',
    )


def check_header(header: list[str]) -> None:
    """Raises Refused unless every column has a name of its own."""
    names = [name.strip() for name in header]
    if not any(names):
        raise refused(
            "The file has no header: its first row is blank. Put the column names there.", "no_header"
        )
    if len(names) > COLUMNS:
        raise refused(f"The header names {len(names)} columns; {COLUMNS} are the most.", "too_many_columns")
    for place, name in enumerate(names, 1):
        if not name:
            raise refused(f"Column {place} of the header has no name. Name it, or remove it.", "no_header")
        if names.index(name) < place - 1:
            raise refused(
                f"The header names «{name}» twice (columns {names.index(name) + 1} and {place})."
                " Rename one of them.",
                "duplicate_column",
            )
    if all(is_number(name) for name in names):
        raise refused(
            f"The file has no header: its first row is «{quoted(', '.join(names))}»."
            " Put the column names into the first row, as text,label.",
            "no_header",
        )


def is_number(text: str) -> bool:
    """Whether it reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def refused(message: str, code: str) -> Refused:
    """A refusal of the uploaded file."""
    return Refused(message, param="file", code=code)


def quoted(text: str, most: int = 60) -> str:
    """The start of a text as it may stand in a sentence: one line, nothing unprintable."""
    clean = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return clean if len(text) <= most else clean[:most] + "…"


def counted(number: int, noun: str) -> str:
    """1 field, 2 fields."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
