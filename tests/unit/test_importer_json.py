"""One JSON document: an array of objects, or SQuAD; what is wrong is told with its place."""

import json
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import json_files
from shared.recipe import recipes
from tests.imports import imported

CONTEXT = "Marie Curie was born in Warsaw."
SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Marie_Curie",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where was she born?",
                            "answers": [{"text": "Warsaw", "answer_start": 24}],
                            "is_impossible": False,
                        },
                        {
                            "id": "q2",
                            "question": "When did she fly?",
                            "answers": [],
                            "plausible_answers": [{"text": "Warsaw", "answer_start": 24}],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        },
        {"title": "Empty", "paragraphs": []},
        {
            "title": "Emma",
            "paragraphs": [
                {
                    "context": "Emma is by Jane Austen.",
                    "qas": [
                        {
                            "id": 3,
                            "question": "Who?",
                            "answers": [
                                {"text": "Jane Austen", "answer_start": 11},
                                {"text": "Austen", "answer_start": 16},
                            ],
                        }
                    ],
                }
            ],
        },
    ],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_squad_is_a_row_for_each_question(tmp_path: Path, indent: int | None):
    made = imported(tmp_path, "train.json", json.dumps(SQUAD, indent=indent).encode())
    assert made.rows == [
        {"question": "Where was she born?", "context": CONTEXT, "answers": {"text": ["Warsaw"], "answer_start": [24]},
         "id": "q1", "title": "Marie_Curie"},
        {"question": "When did she fly?", "context": CONTEXT, "answers": {"text": [], "answer_start": []},
         "id": "q2", "title": "Marie_Curie"},
        {"question": "Who?", "context": "Emma is by Jane Austen.",
         "answers": {"text": ["Jane Austen", "Austen"], "answer_start": [11, 16]}, "id": "3", "title": "Emma"},
    ]  # fmt: skip
    assert made.numbers == [1, 2, 3]
    assert made.report["format"] == "json"
    assert "extractive_qa" not in recipes() or made.report["fits"]["extractive_qa"]["fatal"] == 0


def broken(change: Any) -> bytes:
    """SQuAD with something changed within."""
    document = deepcopy(SQUAD)
    change(document, document["data"][0], document["data"][0]["paragraphs"][0])
    return json.dumps(document).encode()


FIRST = "Article 1 («Marie_Curie»), paragraph 1"
BROKEN = {
    "no context": (broken(lambda _d, _a, p: p.pop("context")), f"{FIRST} has no text «context»"),
    "a context that is a list": (broken(lambda _d, _a, p: p.update(context=["x"])), f"{FIRST} has no text"),
    "no questions": (broken(lambda _d, _a, p: p.pop("qas")), f"{FIRST} has no list «qas»"),
    "a question without words": (
        broken(lambda _d, _a, p: p["qas"][1].pop("question")),
        f"{FIRST}, question 2 has no text «question»",
    ),
    "an answer that is text": (
        broken(lambda _d, _a, p: p["qas"][0].update(answers=["Warsaw"])),
        f"{FIRST}, question 1: the answers must be a list of",
    ),
    "answers that are no list": (
        broken(lambda _d, _a, p: p["qas"][0].update(answers={"text": "Warsaw"})),
        'one is «{"text": "Warsaw"}»',
    ),
    "an answer without its start": (
        broken(lambda _d, _a, p: p["qas"][0]["answers"][0].pop("answer_start")),
        f"{FIRST}, question 1: the answers",
    ),
    "a start that is text": (
        broken(lambda _d, _a, p: p["qas"][0]["answers"][0].update(answer_start="24")),
        f"{FIRST}, question 1: the answers",
    ),
    "impossible as text": (
        broken(lambda _d, _a, p: p["qas"][0].update(is_impossible="no")),
        f"{FIRST}, question 1: «is_impossible» must be true or false",
    ),
    "a paragraph that is text": (
        broken(lambda _d, a, _p: a["paragraphs"].insert(0, "text")),
        f"{FIRST} has no text «context»",
    ),
    "paragraphs that are an object": (
        broken(lambda _d, a, _p: a.update(paragraphs={})),
        "Article 1 («Marie_Curie») has no list «paragraphs»",
    ),
    "an article that is nothing": (
        broken(lambda d, _a, _p: d["data"].insert(1, None)),
        "Article 2 has no list «paragraphs»",
    ),
    "no question at all": (b'{"data": [{"paragraphs": []}]}', "no question in it"),
    "a comma too many": (b'[{"a": 1},\n {"a": 2},]', "at line 2, character 11"),
    "cut short": (json.dumps(SQUAD).encode()[:-30], "The file is not JSON: "),
    "NaN": (b'[{"a": NaN}]', "NaN is not JSON"),
    "Latin-1": ('[{"a": 1},\n {"a": "Größe"}]'.encode("latin-1"), "Line 2 is not UTF-8 (byte 0xF6)"),
    "a number among objects": (b'[{"a": 1}, 7]', "Row 2 is not an object with fields: it is «7»"),
    "an empty object": (b'[{}, {"a": 1}]', "Row 1 is not an object with fields: it is «{}»"),
    "an empty array": (b"[]", "The JSON array is empty"),
    "an object without rows": (b'{\n "name": "x"\n}', "one JSON object without a list of rows"),
    "half a surrogate pair": (b'[{"a": "\\ud83d"}]', "Row 1 holds half of a surrogate pair"),
    "very deep": (b"[" * 10**5, "nested too deep"),
    "deep": (b'[{"a": ' + b"[" * 40 + b"]" * 40 + b"}]", "Row 1 is nested deeper than 32"),
    "an 11 MB cell": (
        json.dumps([{"a": "x"}, {"a": "x" * 11 * 2**20}]).encode(),
        "A cell of row 2 is larger",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_document_is_refused_with_its_place(tmp_path: Path, case: str):
    data, said = BROKEN[case]
    assert said in imported(tmp_path, "train.json", data).error["message"]


def test_an_array_of_objects_is_rows(tmp_path: Path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    made = imported(tmp_path, "a.json", json.dumps(rows, indent=2).encode())
    assert (made.rows, made.numbers) == (rows, [1, 2])


def test_a_list_within_an_object_is_rows(tmp_path: Path):
    made = imported(tmp_path, "a.json", b'{"info": "x",\n"data": [{"a": 1}]}')
    assert made.rows == [{"a": 1}]


def test_a_large_document_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_files, "MOST", 2**20)
    data = json.dumps([{"a": "x" * 1000}] * 3000).encode()
    assert "Write JSONL" in imported(tmp_path, "a.json", data).error["message"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.integers() | st.text(max_size=9), min_size=1), min_size=1
    )
)
def test_a_document_is_the_same_rows_as_its_lines(rows: list[dict[str, Any]]):
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "1", Path(folder) / "2"
        one.mkdir()
        other.mkdir()
        document = imported(one, "a.json", json.dumps(rows).encode())
        lines = imported(other, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        assert (document.rows, document.report["columns"]) == (lines.rows, lines.report["columns"])


@settings(max_examples=100, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_flipped_byte_of_squad_crashes_the_importer(flips: list[tuple[int, int]]):
    data = bytearray(json.dumps(SQUAD).encode())
    for place, value in flips:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        made = imported(Path(folder), "train.json", bytes(data))
        assert made.code == 0 or made.error["message"]
