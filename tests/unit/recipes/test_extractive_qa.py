"""Question answering: where answers stand, windows over long contexts, SQuAD's metrics, the checkpoint elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Refused
from shared.learning import answers
from shared.learning.spans import Reading, Stretch, merged, target, windows
from shared.recipe import Learner, get
from shared.recipes.extractive_qa import ExtractiveQASpec
from tests.attempts import TINY, checkpoints, events, parquet, predictions, run_here, write_attempt
from tests.imports import imported, lines

QA = get("extractive_qa")
COLUMNS = {name: name for name in ("question", "context", "answers")}
CURIE = "Marie Curie was born in Warsaw. She moved to Paris. Paris was her home."
ASKED = {"question": "Where was she born?", "context": CURIE}
GOOD = ASKED | {"answers": {"text": ["Warsaw"], "answer_start": [24]}}


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"answers": {"text": ["Warsaw"], "answer_start": [24]}, "id": 7},
        {"answers": [{"text": "Warsaw", "answer_start": 24}]},
        {"answers": json.dumps({"text": ["Warsaw"], "answer_start": [24.0]})},
        {"answers": {"text": "Warsaw", "answer_start": "24"}},
        {"answer": "Warsaw", "answer_start": "24"},
        {"answer": "Warsaw"},
    ],
)
def test_answers_come_in_many_shapes(given: dict[str, Any]):
    row = ASKED | given
    columns = QA.recognise(row)
    assert columns is not None
    assert QA.check([row], columns) == []
    assert QA.canonical(row, columns)["answers"] == GOOD["answers"]


@pytest.mark.parametrize(
    "given", [{"answers": {"text": [], "answer_start": []}}, {"answer": ""}, {"answer": None}]
)
def test_no_answer_is_an_empty_one(given: dict[str, Any]):
    row = ASKED | given
    columns = QA.recognise(row)
    assert columns is not None
    mine = QA.canonical(row, columns)
    assert mine["answers"] == {"text": [], "answer_start": []}
    assert QA.facts([mine], QA.spec(), {}) == {"unanswerable": True}
    assert QA.facts([QA.canonical(GOOD, COLUMNS)], QA.spec(), {}) == {"unanswerable": False}


def wrong(**change: Any) -> dict[str, Any]:
    return GOOD | change


def answered(text: Any, start: Any) -> dict[str, Any]:
    return wrong(answers={"text": text, "answer_start": start})


BROKEN = [
    (answered(["Warsaw"], [20]), True, "there stands «in Wa». It stands at character 24."),
    (answered(["Paris"], [0]), True, "there stands «Marie». It stands at 2 other places."),
    (answered(["Krakow"], [24]), True, "there stands «Warsaw». It stands nowhere in it."),
    (answered(["Warsaw"], [900]), True, f"that has only {len(CURIE)}. It stands at character 24."),
    (answered(["Warsaw"], [-1]), True, "a whole number from 0, not -1"),
    (answered(["Warsaw", "in Warsaw"], [24]), True, "2 answers and 1 starts"),
    (answered([""], [0]), True, "this one is empty"),
    (answered([], [3]), True, "0 answers and 1 starts"),
    (wrong(answers={"start": [24]}), True, "The answers must be {text: […], answer_start: […]}"),
    (wrong(answers=None), True, "The answers must be"),
    (wrong(question=" "), False, "The question is empty; the row is left out."),
    (wrong(context=""), False, "The context is empty; the row is left out."),
    (wrong(question=["a", "list"]), True, "The question must be text, not a list."),
]


@pytest.mark.parametrize(("row", "fatal", "said"), BROKEN)
def test_a_broken_row_is_named_with_its_reason(tmp_path: Path, row: dict[str, Any], fatal: bool, said: str):
    table = [GOOD, row] if isinstance(row["question"], str) else [wrong(question=["which?"]), row]
    made = imported(tmp_path, "rows.jsonl", lines(*table))
    assert made.code == 0
    told = made.report["fits"]["extractive_qa"]["findings"]
    found = [finding for finding in told if finding["row"] == 2]
    assert [finding["fatal"] for finding in found] == [fatal]
    assert said in found[0]["message"]
    assert found[0]["column"] in COLUMNS


@pytest.mark.parametrize(
    ("filename", "data", "row", "said"),
    [
        ("a.csv", "question,context,answer\nWhere?,She moved to Paris. Paris.,Paris\n", 2, "stands 2 times in its context"),
        ("a.csv", "question,context,answer\nWhere?,She moved to Paris.,Warsaw\n", 2, "does not stand in its context"),
        ("a.csv", "question,context,answer,answer_start\nWhere?,In Paris.,Paris,three\n", 2, 'not "three"'),
    ],
)  # fmt: skip
def test_a_table_of_single_answers_is_checked_too(
    tmp_path: Path, filename: str, data: str, row: int, said: str
):
    told = imported(tmp_path, filename, data.encode()).report["fits"]["extractive_qa"]["findings"]
    assert (told[0]["row"], said in told[0]["message"]) == (row, True)


def test_an_id_that_comes_twice_is_told(tmp_path: Path):
    made = imported(tmp_path, "a.jsonl", lines(GOOD | {"id": "q1"}, GOOD | {"id": "q2"}, GOOD | {"id": "q1"}))
    (found,) = made.report["fits"]["extractive_qa"]["findings"]
    assert (found["row"], found["column"], found["fatal"]) == (3, "id", True)
    assert "«q1»" in found["message"]


def test_a_file_without_a_usable_row_is_refused_as_a_whole(tmp_path: Path):
    made = imported(tmp_path, "a.jsonl", lines(*[wrong(context=" ")] * 3))
    told = made.report["fits"]["extractive_qa"]
    assert told["skipped"] == 3
    assert "No row has a question" in told["findings"][-1]["message"]


# --- metrics ----------------------------------------------------------------------------------

# (answer, accepted, exact match, F1), worked out by hand from SQuAD's definition
GOLDEN = [
    ("Warsaw", ["Warsaw"], 1, 1),
    ("the  Warsaw!", ["warsaw"], 1, 1),
    ("an apple a day", ["Apple day."], 1, 1),
    ("theatre", ["atre"], 0, 0),
    ("in Warsaw", ["Warsaw"], 0, 2 / 3),
    ("Jane Austen", ["Austen", "Jane Austen, novelist"], 0, 4 / 5),
    ("red red blue", ["red blue blue"], 0, 2 / 3),
    ("U.S.", ["US"], 1, 1),
    ("twenty-one", ["twentyone"], 1, 1),
    ("twenty one", ["twenty-one"], 0, 0),
    ("", [], 1, 1),
    ("the", [], 1, 1),
    ("Warsaw", [], 0, 0),
    ("", ["Warsaw"], 0, 0),
    ("", ["the", "Warsaw"], 0, 0),
    ("«Łódź»", ["«łódź»"], 1, 1),
]


@pytest.mark.parametrize(("answer", "accepted", "exact", "overlap"), GOLDEN)
def test_answers_are_scored_as_squad_defines(answer: str, accepted: list[str], exact: float, overlap: float):
    assert answers.exact_match(answer, accepted) == exact
    assert answers.f1(answer, accepted) == pytest.approx(overlap)


# --- windows ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["encoder"](tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


LONG = " ".join(f"City {n} has {n * 7} streets." for n in range(40))


def text_of(window: dict[str, Any], context: str) -> str:
    inside = [place for place, start in enumerate(window["starts"]) if start >= 0]
    return context[window["starts"][inside[0]] : window["ends"][inside[-1]]]


def test_windows_cover_the_context_and_overlap(tokenizer: Any):
    found = windows("How many?", LONG, tokenizer, 64, 16)
    assert len(found) > 5
    assert all(len(one["input_ids"]) <= 64 for one in found)
    covered = 0
    for one in found:
        starts = [start for start in one["starts"] if start >= 0]
        assert starts[0] <= covered
        covered = max(one["ends"])
    assert covered == len(LONG)
    overlap = set(found[0]["starts"]) & set(found[1]["starts"]) - {-1}
    assert len(overlap) == 16


def test_a_question_longer_than_a_window_leaves_room_for_the_context(tokenizer: Any):
    found = windows("why " * 300, LONG, tokenizer, 64, 60)
    assert all(len(one["input_ids"]) <= 64 for one in found)
    assert all(sum(start >= 0 for start in one["starts"]) >= 20 for one in found[:-1])


def test_a_window_that_cuts_the_answer_off_points_to_cls(tokenizer: Any):
    start = LONG.index("City 20 has")
    span = (start, start + len("City 20"))
    held = []
    for one in windows("How many?", LONG, tokenizer, 64, 16):
        places = target(one, span)
        if "City 20" in text_of(one, LONG):
            first, last = places["start_position"], places["end_position"]
            held.append(LONG[one["starts"][first] : one["ends"][last]])
        else:
            assert places == {"start_position": 0, "end_position": 0}
    assert held
    assert set(held) == {"City 20"}


def test_the_best_stretch_over_all_windows_is_the_answer():
    found = merged(
        [
            Reading(5.0, [Stretch(1.0, 0, 4), Stretch(0.5, 2, 4)]),
            Reading(2.0, [Stretch(3.0, 40, 44), Stretch(1.5, 0, 4)]),
        ],
        2,
    )
    assert found == Reading(2.0, [Stretch(3.0, 40, 44), Stretch(1.5, 0, 4)])


# --- training and answering -------------------------------------------------------------------

CITIES = ("oslo", "rome", "lima", "cairo", "paris", "quito")
FILLER = "the weather is often grey in this part of the year. "


def rows(count: int) -> list[dict[str, Any]]:
    """Where somebody lives, in contexts longer than a window; every third question has no answer."""
    made = []
    for n in range(count):
        city = CITIES[n % len(CITIES)]
        here = f"{FILLER * (n % 3)}anna {n} lives in {city}. {FILLER * (2 - n % 3)}"
        found = [city] if n % 3 else []
        told = here if found else here.replace("lives in", "is not from")
        made.append(
            {
                "question": "where does anna live?",
                "context": told,
                "answers": {"text": found, "answer_start": [told.index(city)] if found else []},
            }
        )
    return made


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on questions with and without an answer."""
    folder = tmp_path_factory.mktemp("qa")
    spec = {
        "epochs": 2, "learning_rate": 3e-3, "max_length": 64, "stride": 16, "max_answer_length": 8, "evaluations": 1,
    }  # fmt: skip
    attempt = write_attempt(
        folder / "attempt",
        recipe="extractive_qa",
        spec=spec,
        columns=COLUMNS,
        base_model=base,
        train=parquet(folder / "rows.parquet", rows(24)),
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    return attempt


def asked(folder: Path, trained: Path, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    requests = folder / "requests.jsonl"
    requests.write_text("".join(json.dumps({"row": n, "input": one}) + "\n" for n, one in enumerate(given)))
    servable = checkpoints(trained)[-1] / "servable"
    attempt = write_attempt(
        folder / "infer", kind="infer", recipe="extractive_qa", requests=requests, base_model=servable
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    return predictions(attempt)


def test_answers_say_where_they_stand(trained: Path, tmp_path: Path):
    given = [{name: row[name] for name in ("question", "context")} for row in rows(9)]
    told = asked(tmp_path, trained, [*given, {"question": "where?", "context": " "}, {"context": "anna"}])
    for question, line in zip(given, told[:-2], strict=True):
        output = line["output"]
        assert question["context"][output["start"] : output["end"]] == output["answer"]
        assert 0 < output["score"] <= 1
    assert told[-2]["error"]["message"] == "The context is empty."
    assert told[-1]["error"]["param"] == "question"


def test_plain_transformers_answers_as_the_platform_does(trained: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    folder = str(checkpoints(trained)[-1] / "servable")
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    plain: Any = AutoTokenizer.from_pretrained(folder)
    given = [
        {"question": "where does anna live?", "context": f"anna {n} lives in {CITIES[n]}."} for n in range(6)
    ]
    for one, line in zip(given, asked(tmp_path, trained, given), strict=True):
        inputs = plain(one["question"], one["context"], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        tokens = torch.tensor([part == 1 for part in inputs.sequence_ids()])
        scores = output.start_logits[0][:, None] + output.end_logits[0][None]
        scores[~(tokens[:, None] & tokens[None]).triu().tril(7)] = -torch.inf
        null = output.start_logits[0, 0] + output.end_logits[0, 0]
        start, end = divmod(int(scores.argmax()), len(tokens))
        answer = one["context"][inputs.token_to_chars(start).start : inputs.token_to_chars(end).end]
        assert line["output"]["answer"] == ("" if null > scores.max() else answer)


def test_an_adapter_is_read_by_plain_peft_and_keeps_its_layer_for_start_and_end(base: Path, tmp_path: Path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForQuestionAnswering

    fields = {"recipe": "extractive_qa", "columns": COLUMNS, "base_model": base}
    spec = {"epochs": 1, "method": "lora", "learning_rate": 1e-2, "max_length": 64, "stride": 16}
    train = parquet(tmp_path / "rows.parquet", rows(12))
    attempt = write_attempt(tmp_path / "attempt", spec=spec, train=train, **fields)
    assert run_here(attempt) == 0, events(attempt, "error")
    servable = checkpoints(attempt)[-1] / "servable"
    given = {"kind": "export", "recipe": "extractive_qa", "base_model": base, "adapter": servable}
    exported = write_attempt(tmp_path / "export", **given)
    assert run_here(exported) == 0, events(exported, "error")
    ids = torch.tensor([[2, 9, 3, 12, 14, 3]])
    plain = AutoModelForQuestionAnswering.from_pretrained(base)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(plain, str(servable)).eval()(ids)
        merged_model = AutoModelForQuestionAnswering.from_pretrained(exported / "artifacts/merged").eval()
        merged_output = merged_model(ids)
    for name in ("start_logits", "end_logits"):
        assert torch.allclose(getattr(adapted, name), getattr(merged_output, name), atol=1e-4)


def test_a_model_that_never_saw_a_question_without_an_answer_always_answers(base: Path, tokenizer: Any):
    import torch

    learner = Learner(
        spec=ExtractiveQASpec(max_length=64), facts={"unanswerable": False}, tokenizer=tokenizer
    )
    torch.manual_seed(0)
    learner.model = QA.load_model(learner, base).eval()
    with torch.no_grad():
        learner.model.qa_outputs.weight.zero_()
    items = [QA.encode_input(ASKED | {"context": context}, learner) for context in (CURIE, LONG)]
    assert all(output["answer"] for output in QA.predict(learner, items, []))
    learner.facts = {"unanswerable": True}
    learner.spec.no_answer_threshold = -1.0
    assert [output["answer"] for output in QA.predict(learner, items, [])] == ["", ""]


def test_padding_changes_no_answer_and_no_loss(base: Path, tokenizer: Any):
    import torch

    learner = Learner(
        spec=ExtractiveQASpec(max_length=64, stride=16), facts={"unanswerable": True}, tokenizer=tokenizer
    )
    torch.manual_seed(0)
    learner.model = QA.load_model(learner, base).eval()
    made = [QA.canonical(row, COLUMNS) for row in (GOOD, *rows(2))]
    items = [item for row in made for item in QA.encode(row, learner)]
    with torch.no_grad():
        together = QA.loss(learner, QA.collate(items, learner))
        alone = [QA.loss(learner, QA.collate([item], learner)) for item in items]
    assert together.weight == sum(one.weight for one in alone) == len(items) > 3
    assert float(together.total) == pytest.approx(sum(float(one.total) for one in alone), rel=1e-5)
    inputs = [QA.encode_input(row, learner) for row in made]
    apart = [QA.predict(learner, [item], [])[0] for item in inputs]
    for one, other in zip(QA.predict(learner, inputs, []), apart, strict=True):
        assert one | {"score": 0} == other | {"score": 0}
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_whole_contexts_are_held_out():
    many = [QA.canonical(row, COLUMNS) for row in rows(30) for _ in range(3)]
    learned, held = QA.split(many, 0.1, 1)
    assert sorted(learned + held) == list(range(90))
    assert not {many[n]["context"] for n in learned} & {many[n]["context"] for n in held}
    assert 9 <= len(held) <= 12
    few = [GOOD] * 20
    learned, held = QA.split(few, 0.1, 1)
    assert len(held) == 2


def test_a_prediction_needs_a_question_and_a_context():
    with pytest.raises(Refused, match="The question is empty"):
        QA.encode_input({"context": CURIE}, Learner(spec=QA.spec(), facts={}))
