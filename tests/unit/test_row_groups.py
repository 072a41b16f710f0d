"""Rows of a Parquet file by number: right in any order, a few row groups in memory."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.formats import ROW
from shared.recipe import get
from tests.attempts import parquet
from worker.engine import row_groups
from worker.engine.data import Rows
from worker.engine.row_groups import RowGroups


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """1,000 rows in groups of 70, numbered by 2."""
    table = pa.table({ROW: range(2, 2002, 2), "text": [f"row {n}" for n in range(1000)], "n": range(1000)})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=70)
    return tmp_path / "rows.parquet"


def test_rows_come_right_in_any_order(stored: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_groups, "CHUNK", 16)
    rows = RowGroups(stored, ["n", "text"])
    order = list(range(1000))
    random.Random(0).shuffle(order)
    assert len(rows) == 1000
    for number in [*range(1000), *order, 999, 0]:
        assert rows[number] == {"n": number, "text": f"row {number}"}


def test_memory_holds_the_groups_that_fit_and_the_last_one(stored: Path, monkeypatch: pytest.MonkeyPatch):
    rows = RowGroups(stored, ["text"])
    one = rows.group(0).nbytes
    monkeypatch.setattr(row_groups, "KEPT_BYTES", 3 * one)
    for number in range(len(rows)):
        rows[number]
        assert len(rows.kept) <= 5
    assert max(rows.kept) == 14
    monkeypatch.setattr(row_groups, "KEPT_BYTES", 0)
    rows[0], rows[999]
    assert set(rows.kept) == {14}


def test_a_row_is_named_as_in_the_users_file_and_unusable_ones_are_left_out(tmp_path: Path):
    said = [
        [{"role": role, "content": "hi"}, {"role": "assistant", "content": "ho"}]
        for role in ("user", "wizard")
    ]
    cells = [{ROW: 5, "messages": said[0]}, {ROW: 9, "messages": said[1]}]
    found = Rows(parquet(tmp_path / "rows.parquet", cells), get("sft"), {"messages": "messages"})
    assert (len(found), list(found.numbers), [row for row, _ in found.refused]) == (1, [1], [9])
    assert found.in_file(1) == 5
    assert len(found.part([0])) == 1
