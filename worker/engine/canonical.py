"""A dataset's file → the canonical Parquet file: plain types, the row numbers of the user's file beside
them, a few thousand rows in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.errors import Refused, Unreadable
from shared.formats import COLUMNS, LINE, MIB, ROW, BadRow, Glance, quoted, rows
from shared.recipe import MAX_FINDINGS, Finding
from worker.engine import text_stream
from worker.engine.cells import BYTES, bytes_of, content, may_hold_files, read, reader_of
from worker.engine.class_names import class_names, named
from worker.engine.media import MEDIA, Reader
from worker.engine.shapes import Cast, Shape, column_type

MOST_ROWS = 50_000_000
BATCH_ROWS = 4096
STREAM_ROWS = 65_536  # of lines of text, which are short
BATCH_BYTES = 8 * MIB
TEMPORAL = (pa.types.is_temporal, pa.types.is_decimal)


class Tell(Protocol):
    """Hears how far the reading is."""

    def __call__(self, done: int, total: int) -> None: ...


Numbered = Iterable[tuple[int, dict[str, Any]]]  # rows with their numbers in the user's file


@dataclass
class Canonical:
    """What became of the file; of findings about single rows the first hundred."""

    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    more: int = 0

    def find(self, finding: Finding) -> None:
        """One more finding."""
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.more += 1

    def told(self) -> list[Finding]:
        """All findings, the last one with how many more there are."""
        more = [Finding(f"{self.more:,} more findings like these.", fatal=False)] if self.more else []
        return self.findings + more


def from_text(file: BinaryIO, kind: Glance, path: Path, tell: Tell) -> Canonical:
    """JSON, JSONL, CSV, TSV or text into Parquet. Raises BadRow and Refused."""
    if kind.format == "text":
        return from_stream(file, path, tell)
    size = file.seek(0, 2)
    casts: dict[str, Cast | None] = {}
    made = Canonical()
    if kind.format in ("json", "jsonl"):
        fields = []
        for name, shape in shapes_of(file, kind, size, tell).items():
            of, casts[name], note = column_type(shape)
            fields.append(pa.field(name, of))
            if note:
                made.findings.append(Finding(f"«{name}» {note}", column=name, fatal=False))
    else:
        file.seek(0)
        _, first = next(rows(file, kind), (0, {}))
        fields = [pa.field(name, pa.string()) for name in first]
    if not fields:
        raise Refused(
            "The file has no rows. Choose a file with at least one.", param="file", code="empty_file"
        )
    schema = pa.schema([pa.field(ROW, pa.int64()), *(pa.field(clean(f.name), f.type) for f in fields)])
    check_names([f.name for f in fields])
    names = [f.name for f in fields]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches(rows_from_start(file, kind), file.tell):
            writer.write_batch(record_batch(batch, schema, names, casts))
            made.rows = check_count(made.rows + len(batch))
            tell(file.tell(), size)
    return made


def from_stream(file: BinaryIO, path: Path, tell: Tell) -> Canonical:
    """A text file into Parquet, a row a line. Raises BadRow and Refused."""
    size, made = file.seek(0, 2), Canonical()
    file.seek(0)
    schema = pa.schema([pa.field(ROW, pa.int64()), pa.field("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for numbers, texts in text_stream.columns(file):
            batch = pa.RecordBatch.from_arrays([numbers, texts], schema=schema)
            for start in range(0, len(texts), STREAM_ROWS):
                writer.write_batch(batch.slice(start, STREAM_ROWS))
            made.rows = check_count(made.rows + len(texts))
            tell(file.tell(), size)
    return made


def write(path: Path, schema: pa.Schema, numbered: Numbered, made: Canonical) -> None:
    """Rows of the schema's columns, which may hold bytes, into Parquet."""
    names = schema.names[1:]
    written = 0

    def weighed() -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal written
        for number, row in numbered:
            written += sum(len(value) for value in row.values() if isinstance(value, bytes | str))
            yield number, row

    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=texts_of(schema)) as writer:
        for batch in batches(weighed(), lambda: written):
            writer.write_batch(record_batch(batch, schema, names, {}))
            made.rows = check_count(made.rows + len(batch))


def texts_of(schema: pa.Schema) -> list[str]:
    """The columns in which values repeat."""
    return [field.name for field in schema if pa.types.is_string(field.type)]


def rows_from_start(file: BinaryIO, kind: Glance) -> Iterator[tuple[int, dict[str, Any]]]:
    """The file's rows from its beginning."""
    file.seek(0)
    return rows(file, kind)


def shapes_of(file: BinaryIO, kind: Glance, size: int, tell: Tell) -> dict[str, Shape]:
    """The shape of every column, in the order in which they first appear."""
    shapes: dict[str, Shape] = {}
    for number, (place, row) in enumerate(rows_from_start(file, kind)):
        for name, value in row.items():
            shapes.setdefault(name, Shape()).observe(value)
        if len(shapes) > COLUMNS:
            raise BadRow(
                place,
                f"Up to row {place} the rows have more than {COLUMNS} different fields. Give all rows the same.",
            )
        if number % BATCH_ROWS == 0:
            tell(file.tell() // 2, size)
    return shapes


def batches(numbered: Numbered, place: Callable[[], int]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Rows in lists of bounded count and bytes; `place` says how many bytes were read so far."""
    batch: list[tuple[int, dict[str, Any]]] = []
    start = 0
    for numbered_row in numbered:
        batch.append(numbered_row)
        if len(batch) >= BATCH_ROWS or place() - start > BATCH_BYTES:
            yield batch
            batch, start = [], place()
    if batch:
        yield batch


def record_batch(
    batch: list[tuple[int, dict[str, Any]]],
    schema: pa.Schema,
    names: list[str],
    casts: dict[str, Cast | None],
) -> pa.RecordBatch:
    """The rows as Arrow columns of the schema."""
    columns = [pa.array([number for number, _ in batch], pa.int64())]
    for name in names:
        values: Iterable[Any] = (row.get(name) for _, row in batch)
        if cast := casts.get(name):
            values = map(cast, values)
        columns.append(pa.array(list(values), schema.field(len(columns)).type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def from_parquet(source: Path, path: Path, tell: Tell) -> Canonical:
    """A user's Parquet file into ours: plain types only, nothing that would be unpickled. Raises Refused."""
    try:
        file = pq.ParquetFile(source, arrow_extensions_enabled=False)
        columns = [(field.name, field.type) for field in file.schema_arrow]
    except (pa.ArrowException, OSError, ValueError) as wrong:
        raise broken(wrong) from None
    made = Canonical()
    check_names([name for name, _ in columns])
    check_count(file.metadata.num_rows)
    try:
        readers = readers_of(file, [name for name, of in columns if may_hold_files(of)])
        taken = taken_of(columns, readers, class_names(file.schema_arrow), made)
        if not taken or not file.metadata.num_rows:
            raise Refused("The Parquet file has no rows to learn from.", param="file", code="empty_file")
        (copy_files if readers else copy)(file, path, taken, readers, made, tell)
    except MemoryError:
        raise  # Arrow's own kind of it too; the importer says what it means
    except (pa.ArrowException, OSError) as wrong:
        if isinstance(wrong, OSError) and wrong.errno:
            raise  # this machine's disk
        raise broken(wrong) from None
    return made


def taken_of(
    columns: list[tuple[str, pa.DataType]],
    readers: dict[str, Reader],
    classes: dict[str, list[str]],
    made: Canonical,
) -> dict[str, pa.DataType]:
    """{column: the plain type that it becomes}; those that are left out are findings."""
    taken: dict[str, pa.DataType] = {}
    for name, of in columns:
        of_files = pa.binary() if name in readers else None
        if target := of_files or (pa.string() if name in classes else plain_type(of)):
            taken[name] = target
        else:
            why = f"«{name}» holds {of}, which no recipe reads; the column is left out."
            made.findings.append(Finding(why, column=name, fatal=False))
    return taken


def schema_of(taken: dict[str, pa.DataType], readers: dict[str, Reader]) -> pa.Schema:
    """Our schema of these columns."""
    marks = {name: {MEDIA: reader.suffix.encode()} for name, reader in readers.items()}
    fields = [pa.field(clean(name), of, metadata=marks.get(name)) for name, of in taken.items()]
    return pa.schema([pa.field(ROW, pa.int64()), *fields])


def copy(
    file: pq.ParquetFile,
    path: Path,
    taken: dict[str, pa.DataType],
    readers: dict[str, Reader],
    made: Canonical,
    tell: Tell,
) -> None:
    """Every row, batch by batch."""
    schema, classes = schema_of(taken, readers), class_names(file.schema_arrow)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in file.iter_batches(rows_at_once(file), columns=list(taken)):
            writer.write_batch(plain_batch(named(batch, classes), schema, made.rows))
            made.rows = check_count(made.rows + batch.num_rows)
            tell(made.rows, file.metadata.num_rows)


def copy_files(
    file: pq.ParquetFile,
    path: Path,
    taken: dict[str, pa.DataType],
    readers: dict[str, Reader],
    made: Canonical,
    tell: Tell,
) -> None:
    """The rows whose pictures and sounds can be read, these in their plain form; the others are findings."""
    schema, classes = schema_of(taken, readers), class_names(file.schema_arrow)
    others = pa.schema([field for field in schema if not field.metadata])

    def numbered() -> Numbered:
        before = 0
        for batch in file.iter_batches(rows_at_once(file), columns=list(taken)):
            files = batch.select(list(readers)).to_pylist()
            rest = named(batch.drop_columns(list(readers)), classes)
            plain = plain_batch(rest, others, before).to_pylist()
            for row, own in zip(plain, files, strict=True):
                number = row.pop(ROW)
                if read(
                    own, number, readers, lambda name, why, at=number: made.find(left_out(at, name, why))
                ):
                    yield number, row | {clean(name): data for name, data in own.items()}
            before += batch.num_rows
            tell(before, file.metadata.num_rows)

    write(path, schema, numbered(), made)
    for finding in [one for reader in readers.values() for one in reader.findings()]:
        made.find(finding)
    if not made.rows:
        said = made.findings[0].message
        raise Refused(f"No row of the Parquet file can be read. {said}", param="file", code="empty_file")


def left_out(number: int, column: str, why: str) -> Finding:
    """The finding for a row that is left out for one of its cells."""
    return Finding(f"«{column}» of row {number} {why}; the row is left out.", number, column, fatal=False)


def readers_of(file: pq.ParquetFile, columns: list[str]) -> dict[str, Reader]:
    """{column: what reads it} of the columns that hold pictures or sounds; they have seen all that they must."""
    found = {}
    for name in columns:
        cells = cells_of(file, name)
        first = next((cell for cell in cells if bytes_of(cell)), None)
        if reader := reader_of(first):
            found[name] = reader
            for cell in chain([first], cells) if reader.looks else ():
                with suppress(Unreadable):  # told when it is read
                    reader.look(content(cell))
    return found


def cells_of(file: pq.ParquetFile, column: str) -> Iterator[Any]:
    """A column's cells, some at a time."""
    for batch in file.iter_batches(rows_at_once(file), columns=[column]):
        batch.validate(full=True)
        yield from batch.column(0).to_pylist()


def broken(wrong: Exception) -> Refused:
    """The refusal of a Parquet file that cannot be read."""
    return Refused(
        f"The Parquet file cannot be read: {quoted(str(wrong), 200)}. Write it again, or upload JSONL.",
        param="file",
        code="invalid_file_format",
    )


def rows_at_once(file: pq.ParquetFile) -> int:
    """How many rows of this file make a batch of bounded size, by what it says of itself."""
    groups = range(file.metadata.num_row_groups)
    size = sum(file.metadata.row_group(n).total_byte_size for n in groups)
    return max(1, min(BATCH_ROWS, BATCH_BYTES * file.metadata.num_rows // max(size, 1)))


def plain_batch(batch: pa.RecordBatch, schema: pa.Schema, before: int) -> pa.RecordBatch:
    """The batch under our schema, with its row numbers. Raises BadRow for a huge cell."""
    batch.validate(full=True)  # texts may be no UTF-8, offsets may point anywhere
    columns = [pa.array(range(before + 1, before + 1 + batch.num_rows), pa.int64())]
    for column in batch.columns:
        target = schema.field(len(columns)).type
        plain = column.cast(target)
        if plain.type == pa.string() and len(plain):
            lengths = pc.call_function("binary_length", [plain])
            if (pc.call_function("max", [lengths]).as_py() or 0) > LINE:
                row = (
                    before
                    + 1
                    + next(n for n, length in enumerate(lengths.to_pylist()) if (length or 0) > LINE)
                )
                raise BadRow(row, f"A cell of row {row} is larger than {LINE // MIB} MB. Split it.")
        columns.append(plain)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def plain_type(of: pa.DataType) -> pa.DataType | None:
    """The plain type that a Parquet column becomes; None where it is left out (bytes, maps)."""
    if isinstance(of, pa.BaseExtensionType):
        return plain_type(of.storage_type)
    if pa.types.is_dictionary(of):
        return plain_type(of.value_type)
    if pa.types.is_boolean(of):
        return of
    if pa.types.is_integer(of):
        return pa.int64()
    if pa.types.is_floating(of):
        return pa.float64()
    if any(test(of) for test in TEMPORAL) and not pa.types.is_duration(of):
        return pa.string()
    if any(test(of) for test in BYTES):
        return None
    return nested_type(of)


def nested_type(of: pa.DataType) -> pa.DataType | None:
    """The same for texts, lists and structs."""
    if (
        pa.types.is_string(of)
        or pa.types.is_large_string(of)
        or pa.types.is_string_view(of)
        or pa.types.is_null(of)
    ):
        return pa.string()
    if pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of):
        item = plain_type(of.value_type)
        return pa.list_(item) if item else None
    if pa.types.is_struct(of) and of.num_fields:
        fields = [(field.name, plain_type(field.type)) for field in of]
        return pa.struct(fields) if all(inner for _, inner in fields) else None
    return None


def clean(name: str) -> str:
    """A column's name without the blanks around it."""
    return name.strip()


def check_names(names: list[str]) -> None:
    """Raises Refused for too many columns, and for names that are not usable or not unique."""
    if len(names) > COLUMNS:
        raise Refused(f"The file has {len(names)} columns; {COLUMNS} are the most.", param="file")
    seen: set[str] = set()
    for name in map(clean, names):
        if not name or name == ROW or len(name) > 200 or not name.isprintable():
            raise Refused(
                f"«{quoted(name)}» cannot be a column's name. Rename it.", param="file", code="bad_column"
            )
        if name in seen:
            raise Refused(
                f"The column «{name}» occurs twice. Rename one.", param="file", code="duplicate_column"
            )
        seen.add(name)


def check_count(count: int) -> int:
    """The number of rows, where it is not too large. Raises Refused."""
    if count > MOST_ROWS:
        raise Refused(
            f"The file has more than {MOST_ROWS:,} rows. Split it.", param="file", code="too_many_rows"
        )
    return count
