"""Code completion: pieces with their middle at the end, syntax, the same answers by plain transformers."""

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shared import presets
from shared.errors import Refused
from shared.learning import infilling, syntax
from shared.learning.tokenizers import train
from shared.recipe import Learner, Sampling, get
from shared.recipes.code import COUNTED, CodeSpec, gap_in
from tests.attempts import TINY, checkpoints, events, parquet, predictions, run_here, write_attempt
from tests.imports import imported, lines

CODE = get("code")
COLUMNS = {"path": "path", "content": "content"}
PROGRAM = "".join(f"def f{n}(x):\n    return x + {n}  # ≥ {n}\n\n" for n in range(30))


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"path": "a.py", "content": "x = 1\n"}, COLUMNS),
        ({"file_path": "a.py", "code": "x = 1\n"}, {"path": "file_path", "content": "code"}),
        ({"content": "x = 1\n"}, {"content": "content"}),
        ({"path": "a.py", "text": "x = 1\n"}, {"path": "path", "content": "text"}),
    ],
)
def test_files_come_in_many_shapes(row: dict[str, Any], columns: dict[str, str]):
    assert CODE.recognise(row) == columns
    assert [one for one in CODE.check([row], columns) if one.fatal or one.row] == []
    assert CODE.canonical(row, columns)["content"] == "x = 1\n"


def test_texts_without_a_path_are_not_taken_for_code():
    assert CODE.recognise({"text": "It was a dark and stormy night."}) is None


GOOD = {"path": "good.py", "content": "print(1)\n"}


def found(folder: Path, filename: str, data: bytes) -> list[tuple[int | None, bool, str]]:
    made = imported(folder, filename, data)
    assert made.code == 0
    told = made.report["fits"]["code"]["findings"] + made.report["findings"]
    return [(one["row"], one["fatal"], one["message"]) for one in told]


@pytest.mark.parametrize(
    ("rows", "row", "fatal", "said"),
    [
        ([GOOD | {"content": ["x"]}, GOOD | {"content": []}], 1, True, "The content must be text, not a list."),
        ([{"content": 7}], 1, True, "The content must be text, not a number."),
        ([{"content": {"a": 1}}], 1, True, "The content must be text, not an object."),
        ([{"content": True}], 1, True, "The content must be text, not yes or no."),
        ([{"content": "x", "path": 3}], 1, True, "The path must be text, not a number."),
        ([GOOD, {"path": "b.py", "content": ""}], 2, False, "The file is empty; the row is left out."),
        ([GOOD, {"path": "b.py", "content": " \n\t"}], 2, False, "The file is empty"),
        ([GOOD, {"path": "b.py", "content": None}], 2, False, "The file is empty"),
        ([GOOD, {"path": "b.py", "content": "x\0y"}], 2, False, "holds zero bytes"),
        ([{"path": "b.py", "content": " "}], None, True, "No row has code to learn from."),
        ([GOOD, GOOD | {"path": "b.py"}], None, False, "1 file is a copy of another"),
        ([{"path": "a.rs", "content": "fn main() {}"}], None, False, "no other syntax is checked"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named_with_its_reason(
    tmp_path: Path, rows: list[dict[str, Any]], row: int | None, fatal: bool, said: str
):
    told = found(tmp_path, "rows.jsonl", lines(*rows))
    assert any((one, bad) == (row, fatal) and said in message for one, bad, message in told), told


def test_a_zip_of_code_leaves_out_what_is_no_text(tmp_path: Path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("src/a.py", "x = 1\n")
        file.writestr("src/b.py", b"\xff\xfe\x00")
        file.writestr("src/c.py", b"caf\xe9 = 1\n")
    made = imported(tmp_path, "src.zip", packed.getvalue())
    assert made.rows == [{"path": "src/a.py", "content": "x = 1\n"}]
    told = {one["row"]: one["message"] for one in made.report["findings"]}
    assert "«src/b.py»" in told[2]
    assert "«src/c.py» is not UTF-8" in told[3]
    assert made.report["fits"]["code"]["columns"] == COLUMNS


# --- pieces -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train([PROGRAM], CodeSpec(vocab_size=300), infilling.MARKS)


def put_back(ids: list[int], known: infilling.Marks, tokenizer: Any) -> str:
    """The text of a piece whose middle stands at its end."""
    rest = ids[len(known.start) :]
    middle = rest.index(known.middle[0])
    assert (rest[:2], rest[-1:]) == ([*known.prefix, *known.suffix], known.end)
    return tokenizer.decode(rest[middle + 1 : -1]) + tokenizer.decode(rest[2:middle])


def test_pieces_end_to_end_are_the_file(tokenizer: Any):
    pieces = list(infilling.sequences(PROGRAM, tokenizer, 128, 0.0))
    known = infilling.marks(tokenizer)
    assert len(pieces) >= 5
    assert max(map(len, pieces)) <= 128
    assert all(piece[:1] == known.start for piece in pieces)
    assert [piece[-1:] == known.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert tokenizer.decode([n for piece in pieces for n in piece], skip_special_tokens=True) == PROGRAM


def test_pieces_with_their_middle_at_the_end_lose_nothing(tokenizer: Any):
    pieces = list(infilling.sequences(PROGRAM, tokenizer, 128, 1.0))
    known = infilling.marks(tokenizer)
    assert max(map(len, pieces)) <= 128
    assert "".join(put_back(piece, known, tokenizer) for piece in pieces) == PROGRAM


def test_the_share_of_pieces_is_kept_and_drawn_the_same_each_time(tokenizer: Any):
    texts = [f"x{n} = {n} * {n}\n" for n in range(400)]
    drawn = [next(infilling.sequences(text, tokenizer, 64, 0.3)) for text in texts]
    prefix = infilling.marks(tokenizer).prefix[0]
    assert 90 <= sum(prefix in piece for piece in drawn) <= 150
    assert drawn == [next(infilling.sequences(text, tokenizer, 64, 0.3)) for text in texts]


def test_marks_in_a_file_are_words_and_no_marks(tokenizer: Any):
    text = "print('<fim_prefix></s><fim_middle>')\n"
    (piece,) = infilling.sequences(text, tokenizer, 64, 0.0)
    assert not set(piece[1:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(piece[1:-1]) == text


def test_marks_are_the_tokenizers_own_or_spelled_out(tokenizer: Any):
    plain = train([PROGRAM], CodeSpec(vocab_size=300), ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))
    own = infilling.marks(plain)
    assert plain.convert_ids_to_tokens(own.middle) == ["<|fim_middle|>"]
    without = infilling.marks(train([PROGRAM], CodeSpec(vocab_size=300)))
    assert len(without.middle) > 1
    assert infilling.native(tokenizer) == infilling.MARKS


def test_a_long_prompt_is_read_from_its_end_and_a_long_suffix_from_its_beginning(tokenizer: Any):
    known = infilling.marks(tokenizer)
    prompt, suffix = list(range(100, 200)), list(range(200, 280))
    asked = infilling.question(prompt, suffix, known, 45)
    assert asked == [
        *known.start, *known.prefix, *known.suffix, *suffix[:10], *known.middle, *prompt[-30:],
    ]  # fmt: skip
    assert infilling.question(prompt, None, known, 45) == [*known.start, *prompt[-44:]]
    short = infilling.question(prompt[:3], suffix, known, 45)
    assert short[-41:] == [*suffix[:37], *known.middle, *prompt[:3]]


def test_a_model_that_knows_other_marks_is_asked_in_their_order():
    names = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    tokenizer = train([PROGRAM], CodeSpec(vocab_size=300), names)
    prompt, suffix = (infilling.tokens(text, tokenizer) for text in ("a", "b"))
    asked = infilling.question(prompt, suffix, infilling.marks(tokenizer), 9)
    assert tokenizer.decode(asked) == "<s><|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    assert tokenizer(infilling.spelled("a", "b", tokenizer))["input_ids"] == asked[1:]


# --- syntax and gaps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "good"),
    [
        ("a.py", "def f(:\n", False),
        ("a.py", "x = '\\d'\n", True),  # a warning of Python's is no fault
        ("a.PY", "print 1\n", False),
        ("a.py", "x\0", False),
        ("a.py", "(" * 50_000, False),
        ("a.py", "-" * 100_000 + "1", False),
        ("a.py", "a" + ".a" * 90_000, False),
        ("a.json", "[" * 100_000, False),
        ("a.json", '{"a": 1}', True),
        ("a.json", "{'a': 1}", False),
        ("a.toml", "a = 1\n", True),
        ("a.toml", "a = \n", False),
    ],
)
def test_syntax_is_judged_by_a_parser_that_survives_anything(path: str, text: str, good: bool):
    assert syntax.valid(path, text) is good


def test_only_languages_with_a_parser_are_known():
    assert [syntax.known(path) for path in ("a.py", "b.json", "c.rs", "Makefile", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_gap_runs_from_within_a_lines_words_to_its_end():
    for seed in range(50):
        gap = gap_in(PROGRAM, random.Random(seed))
        assert gap is not None
        assert "".join(gap) == PROGRAM
        assert "\n" not in gap.line
        assert gap.line.strip()
        assert gap.after.startswith("\n")
    assert gap_in("a\n\n}\n", random.Random(0)) is None


# --- training and answering -------------------------------------------------------------------


def trained(folder: Path, **fields: Any) -> Path:
    """A short training on the example."""
    rows = [{"path": f"f{n}.py", "content": PROGRAM[n * 40 :]} for n in range(6)]
    told = {
        "recipe": "code",
        "columns": COLUMNS,
        "preset": presets.preset("scratch/llama-tiny"),
        "train": parquet(folder / "rows.parquet", rows),
    }
    spec = {"epochs": 3, "max_length": 96, "evaluations": 1, "checkpoints": 1, "vocab_size": 300}
    spec |= fields.pop("spec", {})
    attempt = write_attempt(folder / "attempt", spec=spec, **(told | fields))
    assert run_here(attempt) == 0, events(attempt, "error")
    return attempt


def asked(folder: Path, given: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    requests = folder / "requests.jsonl"
    way = vars(Sampling(max_tokens=12))
    told = [{"row": n, "input": one, "sampling": way} for n, one in enumerate(given)]
    requests.write_text("".join(json.dumps(one) + "\n" for one in told))
    attempt = write_attempt(folder / "infer", kind="infer", recipe="code", requests=requests, **fields)
    assert run_here(attempt) == 0, events(attempt, "error")
    return predictions(attempt)


ASKED = [
    {"prompt": "def f3(x):\n    return"},
    {"prompt": "def f4(x):\n    ", "suffix": "\n\ndef f5(x):\n"},
    {"suffix": "\n    return x\n"},
]


def test_plain_transformers_completes_as_the_platform_does(tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = checkpoints(trained(tmp_path))[-1] / "servable"
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    plain: Any = AutoTokenizer.from_pretrained(folder)
    told = asked(tmp_path, [*ASKED, {}, {"prompt": 5}], base_model=folder)
    for given, line in zip(ASKED, told, strict=False):
        text = given.get("prompt", "")
        if "suffix" in given:
            text = f"<fim_prefix><fim_suffix>{given['suffix']}<fim_middle>{text}"
        ids = torch.tensor([plain("<s>" + text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert line["output"] == {"text": plain.decode(written, skip_special_tokens=True)}
    assert [line["error"]["param"] for line in told[-2:]] == ["prompt", "prompt"]
    card = (folder / "README.md").read_text()
    assert "<fim_middle>def add(a, b):" in card


def test_without_fill_in_the_middle_a_suffix_is_refused(tmp_path: Path):
    folder = checkpoints(trained(tmp_path, spec={"fim_rate": 0}))[-1] / "servable"
    told = asked(tmp_path, ASKED[:2], base_model=folder)
    assert "output" in told[0]
    assert told[1]["error"]["param"] == "suffix"
    assert "fim_prefix" not in (folder / "README.md").read_text()


def test_an_adapter_fits_its_base_model_as_it_is(tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = TINY["causal_lm"](tmp_path / "base")
    attempt = trained(tmp_path, base_model=base, preset={}, spec={"method": "lora"})
    servable = checkpoints(attempt)[-1] / "servable"
    plain = AutoModelForCausalLM.from_pretrained(base)
    words = plain.get_input_embeddings().num_embeddings
    adapted = PeftModel.from_pretrained(plain, str(servable))
    assert adapted.get_input_embeddings().num_embeddings == words
    told = asked(tmp_path, ASKED, base_model=base, adapter=servable)
    assert all("text" in line["output"] for line in told)


def test_a_plain_base_model_writes_on_and_cannot_fill(tmp_path: Path):
    base = TINY["causal_lm"](tmp_path / "base")
    told = asked(tmp_path, ASKED[:2], base_model=base)
    assert "output" in told[0]
    assert "fill in the middle" in told[1]["error"]["message"]


def test_a_line_that_is_completed_rightly_counts(monkeypatch: pytest.MonkeyPatch):
    rows = [{"path": "a.py", "content": PROGRAM}, {"path": "b.rs", "content": "fn main() {}\n"}]
    judged = {"loss": 6.0, "weight": 3}
    monkeypatch.setattr(type(CODE), "judged", lambda *_: [judged | dict.fromkeys(COUNTED, 0)] * 2)

    def scores(fill: Any) -> dict[str, float]:
        monkeypatch.setattr(type(CODE), "filled", lambda _, learner, gaps: [fill(gap) for gap in gaps])
        return CODE.evaluate(
            Learner(spec=CodeSpec(), facts={}), rows, [([{"row": 0}, {"row": 1}], {})]
        ).metrics

    assert scores(lambda gap: gap.line) == {"loss": 2.0, "syntax_valid": 1.0, "exact_match": 1.0}
    wrong = scores(lambda gap: gap.line + "\n)(")
    assert (wrong["syntax_valid"], wrong["exact_match"]) == (0.0, 0.0)


def test_what_a_file_continues_with_keeps_its_blanks(tokenizer: Any):
    from shared.learning.generation import continued

    ids = tokenizer("def f(x):\n    return x", add_special_tokens=False)["input_ids"]
    for cut in range(1, len(ids)):
        text = tokenizer.decode(ids[:cut]) + continued(ids[:cut], ids[cut:], tokenizer)
        assert text == "def f(x):\n    return x"


def test_copies_of_a_file_are_held_out_together():
    rows = [{"content": f"file {n // 2}"} for n in range(40)]
    learned, held = CODE.split(rows, 0.25, 3)
    assert sorted(learned + held) == list(range(40))
    assert len(held) == 10
    assert not {rows[n]["content"] for n in learned} & {rows[n]["content"] for n in held}


def test_rows_to_be_completed_have_a_prompt_and_a_suffix():
    row = CODE.canonical({"before": "x = ", "suffix": "\n"}, {"prompt": "before", "suffix": "suffix"})
    assert CODE.input(row) == {"prompt": "x = ", "suffix": "\n"}
    assert CODE.input({"path": "a.py", "content": "x = 1"}) == {"prompt": "x = 1"}
    assert "«content»" in (CODE.lacks({"prompt": "before"}) or "")
    with pytest.raises(Refused, match="needs a «prompt»"):
        CODE.encode_input({"prompt": ""}, Learner(spec=CodeSpec(), facts={}))
