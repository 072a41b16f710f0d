"""A stranger's file in, canonical rows and honest findings out."""

import csv
import io
import json
import pickle
import tempfile
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.formats import HEAD, ROW
from tests.imports import imported, lines, parquet
from worker.engine import importer


def test_rows_keep_the_numbers_of_the_users_file(tmp_path: Path):
    made = imported(tmp_path, "a.jsonl", b'\n{"a": 1}\n\n{"a": 2}\n')
    assert (made.rows, made.numbers, made.code) == ([{"a": 1}, {"a": 2}], [2, 4], 0)


def test_rows_of_a_table_count_as_in_a_spreadsheet(tmp_path: Path):
    made = imported(tmp_path, "a.csv", b'text,label\n"over\ntwo lines",a\n\nc,d\n')
    assert made.rows == [{"text": "over\ntwo lines", "label": "a"}, {"text": "c", "label": "d"}]
    assert made.numbers == [2, 4]


def test_cells_of_a_table_stay_as_they_are_written(tmp_path: Path):
    made = imported(tmp_path, "a.csv", b'code,empty\n007,\n1.50,"NA"\n')
    assert made.rows == [{"code": "007", "empty": ""}, {"code": "1.50", "empty": "NA"}]


def test_a_zip_is_read_as_the_file_in_it(tmp_path: Path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/rows.tsv", "text\tlabel\na, b\tc\n")
    made = imported(tmp_path, "data.zip", buffer.getvalue())
    assert made.rows == [{"text": "a, b", "label": "c"}]
    assert made.report["format"] == "tsv"


@pytest.mark.parametrize(
    "text", ["größer\r\n\r\n  x\n", "no line end", "\n\na\n\n", " \x0b\x0c\u2028a\rb\n\t"]
)
def test_a_text_file_is_one_stream_with_a_row_for_each_line(tmp_path: Path, text: str):
    made = imported(tmp_path, "a.txt", text.encode())
    assert "".join(row["text"] for row in made.rows) == text
    assert all(row["text"].endswith("\n") for row in made.rows[:-1])
    assert made.numbers == list(range(1, len(made.rows) + 1))
    assert [row["text"] for row in made.report["preview"]] == [row["text"] for row in made.rows]


def test_values_of_several_kinds_become_text_with_a_finding(tmp_path: Path):
    made = imported(tmp_path, "a.jsonl", lines({"x": 1}, {"x": "one"}, {"x": True}, {"x": None}))
    assert [row["x"] for row in made.rows] == ["1", "one", "true", None]
    assert made.report["findings"] == [
        {"row": None, "column": "x", "message": "«x» holds values of several kinds; all of them are kept as text.",
         "fatal": False}
    ]  # fmt: skip


def test_single_labels_beside_lists_become_lists(tmp_path: Path):
    made = imported(tmp_path, "a.jsonl", lines({"labels": ["a", "b"]}, {"labels": "c"}))
    assert [row["labels"] for row in made.rows] == [["a", "b"], ["c"]]


def test_what_no_column_can_hold_is_kept_as_json(tmp_path: Path):
    messages = [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    ]
    made = imported(tmp_path, "a.jsonl", lines(*({"messages": m} for m in messages)))
    assert [json.loads(row["messages"]) for row in made.rows] == messages


def test_lists_and_objects_beside_words_become_json_with_a_finding(tmp_path: Path):
    made = imported(tmp_path, "a.jsonl", lines({"x": "one"}, {"x": {"a": 1}}, {"x": [["b"]]}))
    assert [row["x"] for row in made.rows] == ["one", '{"a": 1}', '[["b"]]']
    (told,) = made.report["findings"]
    assert (told["column"], told["fatal"]) == ("x", False)
    assert told["message"].endswith("lists and objects among them are kept as JSON text.")


def test_free_keys_do_not_become_columns_of_nulls(tmp_path: Path):
    rows = [{"scores": {f"key {n} {m}": n for m in range(10)}} for n in range(20)]
    made = imported(tmp_path, "a.jsonl", lines(*rows))
    assert [json.loads(row["scores"]) for row in made.rows] == [row["scores"] for row in rows]


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**63), 2**80])
def test_large_whole_numbers_are_not_rounded(tmp_path: Path, number: int):
    made = imported(tmp_path, "a.jsonl", lines({"x": number}, {"x": 1}))
    assert int(made.rows[0]["x"]) == number


def test_an_error_deep_in_a_large_file_names_its_row(tmp_path: Path):
    data = lines(*({"text": f"row {n}" * 100} for n in range(30_000)))
    assert len(data) > HEAD
    error = imported(tmp_path, "a.jsonl", data + b"{oops\n").error
    assert error["row"] == 30_001
    assert "Line 30001 is not JSON: it begins «{oops»" in error["message"]


def test_a_short_row_deep_in_a_table_names_its_row(tmp_path: Path):
    data = b"text,label\n" + (b"some text " * 40 + b",a\n") * 32_000 + b"alone\n"
    assert len(data) > HEAD
    error = imported(tmp_path, "a.csv", data).error
    assert error["row"] == 32_002
    assert "has 1 field, the header has 2" in error["message"]


def test_statistics_tell_of_each_column(tmp_path: Path):
    made = imported(
        tmp_path, "a.jsonl", lines(*({"t": "x" * n, "l": "ab"[n % 2], "n": n} for n in range(10)))
    )
    text, label, number = made.report["columns"]
    assert text == {"name": "t", "type": "text", "filled": 9, "distinct": 9, "min_length": 1, "mean_length": 5.0,
                    "max_length": 9, "values": text["values"]}  # fmt: skip
    assert label["values"] == [{"value": "a", "count": 5}, {"value": "b", "count": 5}]
    assert (number["type"], number["filled"], number["distinct"]) == ("whole number", 10, 10)


def test_the_preview_is_bounded_and_fits_a_database(tmp_path: Path):
    rows = [{"text": "x" * 10_000 + "\0", "list": list(range(1000)), "zero": "a\0b"} for _ in range(100)]
    report = imported(tmp_path, "a.jsonl", lines(*rows)).report
    assert len(report["preview"]) == 50
    assert report["preview_rows"] == list(range(1, 51))
    assert len(json.dumps(report)) < 500_000
    assert "\\u0000" not in json.dumps(report)


def test_the_recipes_that_fit_say_what_is_wrong_with_which_row(tmp_path: Path):
    good = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    made = imported(tmp_path, "a.jsonl", b"\n" + lines({"messages": good}, {"messages": good[::-1]}))
    fit = made.report["fits"]["sft"]
    assert fit["columns"] == {"messages": "messages"}
    assert fit["fatal"] == 1
    assert fit["findings"][0]["row"] == 3
    assert "assistant" in fit["findings"][0]["message"]


def test_a_label_column_with_one_class_is_a_fatal_finding(tmp_path: Path):
    made = imported(tmp_path, "a.csv", b"text,label\n" + b"hello,spam\n" * 20)
    fit = made.report["fits"]["classification"]
    assert fit["fatal"] == 1
    assert "«spam»" in fit["findings"][0]["message"]


def test_parquet_keeps_plain_types_and_drops_bytes(tmp_path: Path):
    table = pa.table(
        {
            "text": pa.array(["a", None], pa.large_string()),
            "label": pa.array(["x", "y"]).dictionary_encode(),
            "small": pa.array([1, 2], pa.int8()),
            "half": pa.array([0.5, None], pa.float32()),
            "when": pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * 2),
            "price": pa.array([Decimal("1.20")] * 2),
            "picture": pa.array([b"\x89PNG", b""]),
            "list": pa.array([[1], []], pa.large_list(pa.int32())),
            "messages": pa.array([[{"role": "user", "content": "a"}], None]),
        }
    )
    made = imported(tmp_path, "a.parquet", parquet(table))
    assert made.rows[0] == {"text": "a", "label": "x", "small": 1, "half": 0.5, "when": "2026-01-02 00:00:00.000000Z",
                            "price": "1.20", "list": [1], "messages": [{"content": "a", "role": "user"}]}  # fmt: skip
    assert made.rows[1]["messages"] is None
    assert [finding["column"] for finding in made.report["findings"]] == ["picture"]


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Pickled(pa.ExtensionType):
    """The type that pyarrow once unpickled whenever it met it."""

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled
        super().__init__(pa.string(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.pickled

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Pickled":
        return cls(serialized)


def test_extension_types_are_read_as_what_they_store_and_nothing_is_unpickled(tmp_path: Path):
    canary = tmp_path / "canary"
    of = Pickled(pickle.dumps(Canary(canary)))
    table = pa.table({"text": pa.ExtensionArray.from_storage(of, pa.array(["a", "b"]))})
    made = imported(tmp_path, "a.parquet", parquet(table))
    assert made.rows == [{"text": "a"}, {"text": "b"}]
    assert not canary.exists()


def test_broken_parquet_is_refused(tmp_path: Path):
    good = parquet(pa.table({"text": ["hello"] * 1000}))
    for name, data in {"cut": good[:100] + b"PAR1", "mixed": good[:50] + b"x" * 40 + good[90:]}.items():
        folder = tmp_path / name
        folder.mkdir()
        assert "Parquet" in imported(folder, "a.parquet", data).error["message"]


def test_text_that_is_no_utf8_is_refused(tmp_path: Path):
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    assert "UTF8" in imported(tmp_path, "a.parquet", parquet(pa.table({"text": text}))).error["message"]


def test_a_cell_over_10_mb_is_refused(tmp_path: Path):
    data = parquet(pa.table({"text": ["short", "x" * 11 * 2**20]}))
    assert "A cell of row 2 is larger than 10 MB" in imported(tmp_path, "a.parquet", data).error["message"]


def test_a_file_that_unpacks_into_all_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importer, "MEMORY", 256 * 2**20)
    once = pa.array(["x" * 9 * 2**20])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), once)
    data = parquet(pa.table({"text": column}))
    assert len(data) < 2**20
    assert "of memory" in imported(tmp_path, "a.parquet", data).error["message"]


def test_a_line_that_ends_beyond_the_first_look_is_read(tmp_path: Path):
    rows = [{"text": "x" * (9 * 2**20)}, {"text": "y" * (9 * 2**20)}]
    assert imported(tmp_path, "a.jsonl", lines(*rows)).rows == rows


def test_a_column_may_not_take_the_name_of_ours(tmp_path: Path):
    assert ROW in imported(tmp_path, "a.jsonl", lines({ROW: 1})).error["message"]


TEXT = st.text(max_size=20)
CELLS = {
    "text": TEXT,
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "texts": st.lists(TEXT, max_size=3),
    "messages": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3),
}
NAMES = st.text(st.characters(codec="utf-8", categories=("L", "Nd")), min_size=1, max_size=8)


@st.composite
def rows_alike(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows whose columns each hold one kind of value, or null."""
    kinds = draw(st.dictionaries(NAMES, st.sampled_from(sorted(CELLS)), min_size=1, max_size=4))
    row = st.fixed_dictionaries({name: st.none() | CELLS[kind] for name, kind in kinds.items()})
    return draw(st.lists(row, min_size=1, max_size=8))


@settings(max_examples=60, deadline=None)
@given(rows=rows_alike(), ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_jsonl_in_is_the_same_rows_out(rows: list[dict[str, Any]], ascii_only: bool, end: str):
    data = "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows).encode()
    with tempfile.TemporaryDirectory() as folder:
        assert imported(Path(folder), "a.jsonl", data).rows == rows


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.text(st.characters(codec="utf-8", categories=("L",)), min_size=1, max_size=6).filter(
        lambda name: name.lower() not in ("nan", "inf", "infinity")), min_size=2, max_size=4, unique=True),
    rows=st.lists(st.lists(TEXT.filter(lambda cell: "\0" not in cell), min_size=4, max_size=4), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_csv_in_is_the_same_cells_out(names: list[str], rows: list[list[str]], end: str):
    rows = [row[: len(names)] for row in rows]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *rows])
    with tempfile.TemporaryDirectory() as folder:
        made = imported(Path(folder), "a.csv", buffer.getvalue().encode())
        assert made.rows == [dict(zip(names, row, strict=True)) for row in rows]


@settings(max_examples=40, deadline=None)
@given(rows=rows_alike())
def test_parquet_in_is_the_same_rows_out(rows: list[dict[str, Any]]):
    table = pa.Table.from_pylist(rows)
    with tempfile.TemporaryDirectory() as folder:
        assert imported(Path(folder), "a.parquet", parquet(table)).rows == table.to_pylist()


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=200),
    name=st.sampled_from(["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.parquet", "a"]),
)
def test_no_bytes_crash_the_importer(data: bytes, name: str):
    with tempfile.TemporaryDirectory() as folder:
        made = imported(Path(folder), name, data)
        assert made.code == 0 or made.error["message"]


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_no_flipped_byte_of_a_parquet_file_crashes_the_importer(place: int, value: int):
    data = bytearray(parquet(pa.table({"text": ["hello", "world"] * 20, "n": list(range(40))})))
    data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        made = imported(Path(folder), "a.parquet", bytes(data))
        assert made.code == 0 or made.error["message"]
