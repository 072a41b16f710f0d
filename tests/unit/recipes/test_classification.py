"""Classification: labels as datasets hold them, what is wrong with rows, which are held out."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shared.recipe import get
from tests.imports import imported, lines, parquet

CLASSIFICATION = get("classification")
COLUMNS = {"text": "text", "label": "label"}


def row(text: Any = "Fine.", label: Any = "good") -> dict[str, Any]:
    return {"text": text, "label": label}


GOOD = [row("Cold."), row("Warm.", "bad"), row("Kind."), row("Late.", "bad")]
LISTS = [row(one["text"], [one["label"]]) for one in GOOD]
NAN = float("nan")


def test_labels_keep_the_words_of_the_dataset():
    rows = [row("a", value) for value in (10, 9.0, "2", True)]
    canonical = [CLASSIFICATION.canonical(row, COLUMNS) for row in rows]
    facts = CLASSIFICATION.facts(canonical[:3], CLASSIFICATION.spec(), {})
    assert facts["labels"] == ["2", "9", "10"]
    assert canonical[3]["label"] == "true"


def test_only_lists_are_several_labels():
    facts = CLASSIFICATION.facts([row("a", "x, y"), row("b", "z")], CLASSIFICATION.spec(), {})
    assert (facts["labels"], facts["multi_label"]) == (["x, y", "z"], False)
    facts = CLASSIFICATION.facts([row("a", ["x", "y"]), row("b", [])], CLASSIFICATION.spec(), {})
    assert (facts["labels"], facts["multi_label"]) == (["x", "y"], True)


# --- broken datasets --------------------------------------------------------------------------


def fit(folder: Path, data: bytes, filename: str = "rows.jsonl") -> dict[str, Any]:
    """What the importer says of the file for this recipe."""
    made = imported(folder, filename, data)
    assert made.code == 0
    return made.report["fits"]["classification"]


@pytest.mark.parametrize(
    ("wrong", "column", "fatal", "said"),
    [
        (row(""), "text", False, "The text is empty; the row is left out."),
        (row(" \n"), "text", False, "The text is empty; the row is left out."),
        (row(None), "text", False, "The text is empty; the row is left out."),
        ({"label": "good"}, "text", False, "The text is empty; the row is left out."),
        ({"text": "Fine."}, "label", False, "There is no label; the row is left out."),
        (row(label=None), "label", False, "There is no label; the row is left out."),
        (row(label=" "), "label", False, "There is no label; the row is left out."),
        (row(label={"name": "good"}), "label", True, "A label must be a word, a number or a list of them"),
        (row(label=[{"name": "good"}]), "label", True, "not an object or a list of lists"),
        (row(label=[["good"], ["bad"]]), "label", True, "not an object or a list of lists"),
        (row(label=[[[[["good"]]]]]), "label", True, "not an object or a list of lists"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named_with_its_reason(
    tmp_path: Path, wrong: dict[str, Any], column: str, fatal: bool, said: str
):
    (found,) = fit(tmp_path, lines(*GOOD, wrong))["findings"]
    assert (found["row"], found["column"], found["fatal"]) == (5, column, fatal)
    assert said in found["message"]


@pytest.mark.parametrize(
    ("rows", "column", "said"),
    [
        ([row(label={"name": "good"})] * 2, "label", "not an object or a list of lists"),
        ([row(label=[["good"], ["bad"]])] * 2, "label", "not an object or a list of lists"),
        ([row(["Fine.", "Good."])] * 2, "text", "«text» must be text."),
        ([row({"en": "Fine."})] * 2, "text", "«text» must be text."),
    ],
)
def test_a_column_of_the_wrong_type_is_named_row_by_row(
    tmp_path: Path, rows: list[Any], column: str, said: str
):
    found = fit(tmp_path, lines(*rows))["findings"]
    assert [(one["row"], one["column"], one["fatal"]) for one in found[:2]] == [
        (n, column, True) for n in (1, 2)
    ]
    assert all(said in one["message"] for one in found[:2])


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ('["x", "y"]', ["x", "y"]),
        (" [1, 2.0]", ["1", "2"]),
        ("[draft", "[draft"),
        ("[" * 100_000, "[" * 100_000),
    ],
    ids=["words", "numbers", "no JSON", "no bottom"],
)
def test_a_list_may_be_written_as_json(cell: str, label: Any):
    assert CLASSIFICATION.canonical(row(label=cell), COLUMNS)["label"] == label


def test_not_a_number_is_no_label_and_no_text(tmp_path: Path):
    """Tables of pandas hold it where a cell is empty; JSON cannot."""
    labels = {"text": list("abcde"), "label": [1.0, 2.0, 1.0, 2.0, NAN]}
    texts = {"text": [1.0, 2.0, 3.0, 4.0, NAN], "label": list("xyxyx")}
    found = [fit(tmp_path, parquet(pa.table(table)), "rows.parquet")["findings"] for table in (labels, texts)]
    assert [[(one["row"], one["message"]) for one in each] for each in found] == [
        [(5, "There is no label; the row is left out.")],
        [(5, "The text is empty; the row is left out.")],
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(f"text {n}") for n in range(3)], "Every label is «good»: a classifier needs at least two labels."),
        ([row(f"text {n}", ["good"]) for n in range(3)], "Every label is «good»"),
        ([row(f"text {n}", None) for n in range(3)], "No row has both a text and a label."),
        ([row(f"text {n}", []) for n in range(3)], "No row has both a text and a label."),
        ([row(""), row("", "bad")], "No row has both a text and a label."),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_told_apart_are_refused_as_a_whole(tmp_path: Path, rows: list[Any], said: str):
    last = fit(tmp_path, lines(*rows))["findings"][-1]
    assert (last["row"], last["column"], last["fatal"]) == (None, "label", True)
    assert said in last["message"]


def test_a_label_with_a_single_row_is_told(tmp_path: Path):
    (found,) = fit(tmp_path, lines(*GOOD, row(label="odd")))["findings"]
    assert not found["fatal"]
    assert found["message"] == "The label «odd» has a single row: it cannot be both learned and checked."


def test_single_labels_beside_lists_become_lists_and_it_is_said(tmp_path: Path):
    made = imported(tmp_path, "rows.jsonl", lines(*GOOD, row(label=["good", "bad"])))
    (told,) = made.report["findings"]
    assert (told["column"], told["fatal"]) == ("label", False)
    assert "each single one became a list" in told["message"]
    assert made.rows[0]["label"] == ["good"]
    assert made.report["fits"]["classification"]["findings"] == []
    # What no file can hold any more, a program may: rows of an earlier release, say.
    (found,) = CLASSIFICATION.check([*GOOD, *LISTS], COLUMNS)
    assert found.fatal
    assert "rows 1 and 5" in found.message


def test_rows_that_come_twice_are_rows_and_a_text_may_have_two_opinions(tmp_path: Path):
    found = fit(tmp_path, lines(*GOOD, *GOOD, row("Cold.", "bad")))
    assert (found["findings"], found["skipped"]) == ([], 0)


@pytest.mark.parametrize(
    "data", [lines({"body": "a", "stars": 5}), lines({"text": "a"}), lines({"label": "a"})]
)
def test_other_columns_are_not_taken_for_texts_with_labels(tmp_path: Path, data: bytes):
    assert "classification" not in imported(tmp_path, "rows.jsonl", data).report["fits"]
    (found,) = CLASSIFICATION.check([{"text": "a"}], {"text": "text"})
    assert found.fatal
    assert "«label»" in found.message


@pytest.mark.parametrize(
    ("filename", "data", "at", "said"),
    [
        ("a.jsonl", lines(*GOOD) + b'{"text": "Fine.", "label": NaN}\n', 5, "NaN is not JSON; write null"),
        ("a.jsonl", lines(*GOOD, row("x" * 11 * 2**20)), 5, "Line 5 is longer than 10 MB."),
        ("a.jsonl", lines(*GOOD) + b'{"text": "a", "label": ' + b"[" * 40 + b"]" * 40 + b"}\n", 5,
         "Row 5 is nested deeper than 32 levels."),
        ("a.jsonl", lines(*GOOD) + b'["Fine.", "good"]\n', 5, "Line 5 is not a JSON object"),
        ("a.jsonl", lines(*GOOD) + b'{"text": "Fi\n', 5, "Line 5 is not JSON"),
        ("a.csv", b"text,label\nFine.,good\nCold.\n", 3, "Row 3 has 1 field, the header has 2."),
        ("a.csv", "text,label\nFine.,good\nGrößer,bad\n".encode("latin-1"), 3, "Line 3 is not UTF-8"),
        ("a.csv", b"text,label,label\nFine.,good,bad\n", None, "The header names «label» twice"),
        ("a.csv", b"text,label\n", None, "The file has a header and no rows."),
        ("a.jsonl", b"\n \n", None, "The file is empty."),
        ("a.jsonl", b"\x80\x04\x95\0\0", None, "is a Python pickle, not rows."),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, filename: str, data: bytes, at: int | None, said: str
):
    error = imported(tmp_path, filename, data).error
    assert said in error["message"]
    assert error.get("row") == at


def test_findings_stop_at_a_hundred_but_the_verdict_on_all_rows_stays():
    rows = [row("", "x")] * 500 + [row("a", "x")]
    found = CLASSIFICATION.check(rows, COLUMNS)
    assert len(found) < 110
    assert any("at least two labels" in one.message for one in found)


# --- held-out rows ----------------------------------------------------------------------------


def test_the_held_out_rows_have_every_label_and_are_the_same_each_time():
    rows = [row(str(n), "rare" if n % 10 == 0 else "common") for n in range(100)]
    learning, held = CLASSIFICATION.split(rows, 0.2, seed=3)
    assert CLASSIFICATION.split(rows, 0.2, seed=3) == (learning, held)
    assert sorted(learning + held) == list(range(100))
    assert [rows[n]["label"] for n in held].count("rare") == 2
    assert len(held) == 20
    assert CLASSIFICATION.split(rows, 0.2, seed=4)[1] != held
