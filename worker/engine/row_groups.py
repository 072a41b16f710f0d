"""A Parquet file's rows by their number, read when they are asked for: memory holds a few row groups and no more."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.formats import ROW

CHUNK, CHUNK_BYTES = 1024, 64 * 1024**2  # rows turned into Python objects at once
KEPT_BYTES = 64 * 1024**2  # of row groups, beside the last one


class RowGroups:
    """The rows of these columns, from number 0 on. The importer writes row groups of a few megabytes."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        self.file = pq.ParquetFile(path)
        groups = self.file.metadata
        self.starts = [
            0,
            *accumulate(groups.row_group(number).num_rows for number in range(groups.num_row_groups)),
        ]
        self.kept: OrderedDict[int, pa.Table] = OrderedDict()
        self.chunk: tuple[int, list[dict[str, Any]]] = (0, [])

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        start, rows = self.chunk
        if not start <= number < start + len(rows):
            start, rows = self.chunk = self.around(number)
        return rows[number - start]

    def around(self, number: int) -> tuple[int, list[dict[str, Any]]]:
        """(the first one's number, the rows) of a chunk that holds row `number`."""
        group = bisect_right(self.starts, number) - 1
        table = self.group(group)
        at_once = max(1, min(CHUNK, CHUNK_BYTES * len(table) // max(table.nbytes, 1)))
        start = (number - self.starts[group]) // at_once * at_once
        return self.starts[group] + start, table.slice(start, at_once).to_pylist()

    def group(self, number: int) -> pa.Table:
        """A row group, kept until others need its room."""
        if number not in self.kept:
            others = sum(table.nbytes for table in self.kept.values())
            while self.kept and others > KEPT_BYTES:
                others -= self.kept.popitem(last=False)[1].nbytes
            self.kept[number] = self.file.read_row_group(number, columns=self.columns)
        self.kept.move_to_end(number)
        return self.kept[number]

    @cached_property
    def in_file(self) -> pa.ChunkedArray | None:
        """The rows' numbers in the user's file, where they are kept."""
        if ROW not in self.file.schema_arrow.names:
            return None
        return pq.read_table(self.path, columns=[ROW]).column(ROW)
