"""Next-token pretraining: a stream is joined without loss, learned once, and its checkpoint answers elsewhere alike."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Refused
from shared.learning import lstm, stream
from shared.learning.tokenizers import train
from shared.recipe import Learner, Sampling, get
from shared.recipes.causal_lm import CausalLMSpec
from shared.spec import ScratchSpec, resolve
from tests.attempts import TINY, checkpoints, events, parquet, run_here, write_attempt
from tests.imports import imported, lines

RECIPE = get("causal_lm")
COLUMNS = {"text": "text"}
POEM = "Roses are red,\nviolets are blue,\n\nsugar is sweet,\n  and so are you.\n" * 12
LINES = [{"text": line} for line in POEM.splitlines(keepends=True)]
SIZES = {
    "gpt": {"architecture": "gpt", "width": 32, "layers": 2, "heads": 2},
    "llama": {"architecture": "llama", "width": 32, "layers": 2, "heads": 2},
    "lstm": {"architecture": "lstm", "width": 32, "layers": 2},
}
EVERY = pytest.mark.parametrize("architecture", SIZES)
TOKENIZERS: dict[str, Any] = {
    kind: train([POEM], ScratchSpec(tokenizer=kind, vocab_size=300))
    for kind in ("bpe", "characters", "bytes")
}


def fields(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """An attempt at reading the poem."""
    spec = {
        "epochs": 3,
        "batch_size": 4,
        "max_length": 24,
        "vocab_size": 300,
        "evaluations": 1,
        "checkpoints": 1,
    }
    rows = more.pop("rows", LINES)
    known = {"recipe": "causal_lm", "columns": COLUMNS, "preset": SIZES["gpt"]} | more
    return known | {"spec": spec | more.get("spec", {}), "train": parquet(tmp_path / "rows.parquet", rows)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{architecture: a checkpoint's servable folder}."""
    folders = {}
    for architecture, preset in SIZES.items():
        folder = tmp_path_factory.mktemp(architecture)
        attempt = write_attempt(folder / "attempt", **fields(folder, preset=preset))
        assert run_here(attempt) == 0, events(attempt, "error")
        folders[architecture] = checkpoints(attempt)[-1] / "servable"
    return folders


def opened(folder: Path) -> Learner:
    """A checkpoint as the platform loads it for answers."""
    learner = Learner(spec=RECIPE.spec(), facts={})
    learner.tokenizer = RECIPE.load_tokenizer(folder, [], learner.spec)
    learner.model = RECIPE.load_model(learner, folder).eval()
    return learner


def answers(learner: Learner, prompts: list[str], **way: Any) -> list[str]:
    items = [RECIPE.encode_input({"text": prompt}, learner) for prompt in prompts]
    return [one["text"] for one in RECIPE.predict(learner, items, [Sampling(**way)] * len(items))]


# --- the stream -------------------------------------------------------------------------------


def read(
    rows: list[str], kind: str = "bytes", length: int = 7
) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """(its blocks, the text that their predicted tokens make)."""
    blocks = list(stream.blocks(({"text": row} for row in rows), TOKENIZERS[kind], length))
    predicted = [token for _, block in blocks for token in block["input_ids"][1:]]
    return blocks, TOKENIZERS[kind].decode(predicted)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("piece", [1, 5, 2**16])
@settings(max_examples=30)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=8))
def test_lines_are_joined_again_without_loss(kind: str, piece: int, texts: list[str]):
    rows = [text.replace("\n", " ") + "\n" for text in texts]
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(stream, "PIECE", piece)
        blocks, text = read(rows, kind)
    assert text == "".join(rows)
    assert sum(block["chars"] for _, block in blocks) == len(text)


def test_each_token_is_predicted_once_and_nothing_is_padded():
    blocks = [block["input_ids"] for _, block in read([row["text"] for row in LINES])[0]]
    assert {len(block) for block in blocks[:-1]} == {8}
    assert len(blocks[-1]) <= 8
    assert [block[0] for block in blocks[1:]] == [block[-1] for block in blocks[:-1]]
    assert sum(len(block) - 1 for block in blocks) == len(POEM)


def test_a_row_without_a_newline_is_a_document_and_ends_with_the_end_token():
    _, text = read(["one\n", "\n", "two", "three", "", "  ", "four\n"])
    assert text == "one\n\ntwo</s>three</s>four\n"


def test_a_block_knows_the_row_it_begins_in():
    blocks, _ = read(["abcdefghij\n", "klm\n", "nopq\n"], length=8)
    assert [place for place, _ in blocks] == [0, 0, 2]
    assert [block["chars"] for _, block in blocks] == [8, 8, 4]


def test_characters_of_many_bytes_count_once():
    blocks, text = read(["数字☃\n"], length=4)
    assert text == "数字☃\n"
    assert [block["chars"] for _, block in blocks] == [2, 1, 1]


@pytest.mark.parametrize(
    ("texts", "fraction", "held"),
    [
        (["a\n"] * 20, 0.1, [18, 19]),
        (["a\n"] * 19 + ["b"], 0.1, [18, 19]),
        (["a", "b"], 0.1, [1]),
        (["a\n", "b\n"], 0.5, [1]),
        (["a"], 0.5, []),
        (["a\n"] * 20, 0.0, []),
        (["a\n"] * 50 + ["b", "c"], 0.25, list(range(39, 52))),
    ],
)
def test_the_end_of_a_stream_is_held_out(texts: list[str], fraction: float, held: list[int]):
    rows = [{"text": text} for text in texts]
    learned, kept = RECIPE.split(rows, fraction, 3)
    assert kept == held
    assert sorted(learned + kept) == list(range(len(rows)))


def test_documents_are_held_out_at_random_and_stay_whole():
    rows = [{"text": text} for _ in range(40) for text in ("title\n", "body")]
    _, held = RECIPE.split(rows, 0.2, 3)
    assert len(held) == 16
    assert held != list(range(64, 80))
    assert {place ^ 1 for place in held} == set(held), "a title goes where its body goes"
    assert RECIPE.split(rows, 0.2, 4)[1] != held


def test_a_tokenizer_is_learned_from_what_is_not_held_out(tmp_path: Path):
    rows = LINES + [{"text": "quetzalcoatl quetzalcoatl quetzalcoatl\n"}] * 5
    attempt = write_attempt(tmp_path / "attempt", **fields(tmp_path, rows=rows, spec={"max_steps": 1}))
    assert run_here(attempt) == 0, events(attempt, "error")
    words = opened(checkpoints(attempt)[-1] / "servable").tokenizer.get_vocab()
    assert any("roses" in word.lower() for word in words)
    assert not any("quet" in word for word in words)


# --- loss and metrics -------------------------------------------------------------------------


def test_a_shorter_block_beside_longer_ones_costs_what_it_costs_alone(trained: dict[str, Path]):
    for architecture, folder in trained.items():
        learner = opened(folder)
        items = [block for _, block in stream.blocks(LINES[:5], learner.tokenizer, 9)]
        assert len(items[0]["input_ids"]) > len(items[-1]["input_ids"])
        together = RECIPE.judged(learner, RECIPE.collate(items, learner))
        alone = [RECIPE.judged(learner, RECIPE.collate([item], learner))[0] for item in items]
        for one, other in zip(together, alone, strict=True):
            assert one == pytest.approx(other, rel=1e-4), architecture


def test_every_place_is_computed_once_and_padding_never(trained: dict[str, Path]):
    from shared.learning.language_model import answer_logits

    learner = opened(trained["gpt"])
    items = [{"input_ids": [5] * 9, "chars": 1}, {"input_ids": [6] * 4, "chars": 1}]
    assert len(answer_logits(learner.model, RECIPE.collate(items, learner))) == 8 + 3
    assert "places" not in RECIPE.collate(items[:1] * 2, learner)


def test_bits_per_character_of_a_model_that_knows_nothing(trained: dict[str, Path]):
    import torch

    learner = opened(trained["gpt"])
    with torch.no_grad():
        learner.model.get_input_embeddings().weight.zero_()  # tied to the output: every token is as likely
    rows = [{"text": "Größe ☃\n"}, {"text": "and so are you."}]
    items: list[Any] = [block | {"row": place} for place, block in RECIPE.encode_all(rows, learner)]
    scores = RECIPE.evaluate(learner, rows, [(items, RECIPE.collate(items, learner))])
    words, tokens = len(learner.tokenizer), sum(len(item["input_ids"]) - 1 for item in items)
    assert scores.metrics["perplexity"] == pytest.approx(words, rel=1e-4)
    assert scores.metrics["bits_per_character"] == pytest.approx(
        tokens * math.log2(words) / (len("Größe ☃\n") + len("and so are you.")), rel=1e-5
    )


def test_metrics_of_golden_sums():
    found = RECIPE.scored({"loss": 30 * math.log(2), "weight": 10.0, "chars": 15})
    assert found == pytest.approx({"loss": 3 * math.log(2), "perplexity": 8, "bits_per_character": 2})


def test_a_text_file_is_learned_as_it_came(tmp_path: Path):
    made = imported(tmp_path, "poem.txt", POEM.encode())
    assert "".join(row["text"] for row in made.rows) == POEM
    given = fields(tmp_path) | {"train": tmp_path / "artifacts/data.parquet"}
    attempt = write_attempt(tmp_path / "attempt", **given)
    assert run_here(attempt) == 0, events(attempt, "error")
    base, tuned = (event["data"]["metrics"]["bits_per_character"] for event in events(attempt, "eval"))
    assert tuned < base
    sample = events(attempt, "sample")[-1]["data"]["samples"][0]
    assert sample["prompt"] + sample["expected"] in POEM


# --- the spec ---------------------------------------------------------------------------------


def test_the_learning_rate_depends_on_the_start_unless_it_is_given():
    def rate(scratch: bool, **asked: Any) -> Any:
        return resolve(RECIPE, asked, scratch=scratch).model_dump()["learning_rate"]

    assert (rate(True), rate(False)) == (3e-3, 1e-4)
    assert rate(True, learning_rate=0.01) == rate(False, learning_rate=0.01) == 0.01
    assert rate(True, learning_rate_multiplier=2) == pytest.approx(6e-3)
    assert CausalLMSpec().learning_rate is None


def test_an_adapter_from_scratch_is_refused(tmp_path: Path):
    attempt = write_attempt(tmp_path / "attempt", **fields(tmp_path, spec={"method": "lora"}))
    assert run_here(attempt) == 10
    assert "An adapter stands on trained weights" in events(attempt, "error")[0]["data"]["message"]


def test_an_architecture_of_another_kind_is_refused(tmp_path: Path):
    preset = {"architecture": "bert", "width": 32, "layers": 1, "heads": 2}
    attempt = write_attempt(tmp_path / "attempt", **fields(tmp_path, preset=preset))
    assert run_here(attempt) == 10
    assert "«bert» is no language model" in events(attempt, "error")[0]["data"]["message"]


def test_a_base_model_reads_on_with_an_adapter_and_no_further_than_it_can(tmp_path: Path):
    base = TINY["causal_lm"](tmp_path / "base")
    given = fields(tmp_path, preset={}, base_model=base, spec={"method": "lora", "max_length": 4096})
    attempt = write_attempt(tmp_path / "attempt", **given)
    assert run_here(attempt) == 0, events(attempt, "error")
    assert (checkpoints(attempt)[-1] / "servable" / "adapter_config.json").exists()
    learner = Learner(spec=CausalLMSpec(max_length=4096), facts={}, source=base)
    learner.tokenizer = RECIPE.load_tokenizer(base, [], learner.spec)
    items = [item for _, item in RECIPE.encode_all(LINES, learner)]
    assert max(RECIPE.length(item) for item in items) == 256


# --- answers, and the checkpoint elsewhere ----------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt", "llama"])
def test_plain_transformers_loads_it_and_writes_the_same(trained: dict[str, Path], architecture: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained[architecture]
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, told = loaded
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompts = ["Roses are", "sugar is sweet,\n  and"]
    for prompt, answer in zip(prompts, answers(opened(folder), prompts, max_tokens=12), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        asked = inputs["input_ids"].shape[1]
        assert tokenizer.decode(written[asked:], skip_special_tokens=True) == answer


def printed(folder: Path) -> str:
    """The Python of a checkpoint's card, for the folder it lies in."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "path/to/this/folder" in code
    return code.replace("path/to/this/folder", str(folder))


@pytest.mark.parametrize("architecture", ["gpt", "llama"])
def test_the_code_of_the_card_writes_on(
    trained: dict[str, Path], architecture: str, capsys: pytest.CaptureFixture[str]
):
    exec(printed(trained[architecture]), {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_the_class_on_an_lstms_card_gives_its_logits(
    trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
):
    import torch

    folder = trained["lstm"]
    code = printed(folder)
    assert not re.search(r"shared|burnish|trust_remote_code", code.replace(str(folder), ""))
    assert "auto_map" not in (folder / "config.json").read_text()
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out
    learner = opened(folder)
    ids = torch.tensor([learner.tokenizer("violets are blue,\n\nsugar")["input_ids"]])
    with torch.no_grad():
        theirs, _ = names["model"](ids)
        assert torch.allclose(learner.model(ids).logits, theirs, atol=1e-6)
    assert names["tokenizer"]("sugar")["input_ids"] == learner.tokenizer("sugar")["input_ids"]


@EVERY
def test_an_answer_does_not_depend_on_its_company(trained: dict[str, Path], architecture: str):
    learner = opened(trained[architecture])
    prompts = ["R", "violets are blue,\n\nsugar is", "and so"]
    together = answers(learner, prompts, max_tokens=8, temperature=1.0, seed=5)
    assert together == [answers(learner, [one], max_tokens=8, temperature=1.0, seed=5)[0] for one in prompts]
    assert together != answers(learner, prompts, max_tokens=8, temperature=1.0, seed=6)


def test_an_lstm_goes_on_from_its_state_as_from_the_whole_text(trained: dict[str, Path]):
    import torch
    from transformers import GenerationConfig

    model, tokenizer = (learner := opened(trained["lstm"])).model, learner.tokenizer
    for weight in model.parameters():
        weight.data *= 3  # so that beams part ways
    ids = torch.tensor([tokenizer("violets")["input_ids"]])
    for beams in (1, 4):
        how = {"max_new_tokens": 20, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
        written = [
            model.generate(ids, generation_config=GenerationConfig(**how, use_cache=cached)).tolist()
            for cached in (True, False)
        ]
        assert written[0] == written[1]


def test_the_empty_prompt_begins_a_document_and_blanks_are_kept(trained: dict[str, Path]):
    learner = opened(trained["gpt"])
    assert RECIPE.encode_input({"prompt": ""}, learner) == {"input_ids": [learner.tokenizer.eos_token_id]}
    texts = answers(learner, ["Roses", "violets", "sugar"], max_tokens=12)
    assert any(text != text.strip() for text in texts)


def test_a_prompt_that_does_not_fit_is_refused_and_one_that_nearly_does_is_answered(trained: dict[str, Path]):
    learner = opened(trained["gpt"])
    token = learner.tokenizer("a")["input_ids"][0]
    with pytest.raises(Refused, match="this model reads fewer than 1,024"):
        RECIPE.encode_input({"text": "☃" * 600}, learner)
    answer = RECIPE.predict(learner, [{"input_ids": [token] * 1020}], [Sampling(max_tokens=50)])[0]["text"]
    assert len(learner.tokenizer(answer)["input_ids"]) <= 4


@pytest.mark.parametrize("given", [{}, {"text": None}, {"text": ["a"]}, {"prompt": 5}])
def test_an_input_without_text_is_refused(trained: dict[str, Path], given: dict[str, Any]):
    with pytest.raises(Refused, match="needs a «text»"):
        RECIPE.encode_input(given, opened(trained["gpt"]))


CHAT = [
    {"messages": [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": f"{word}!"}]}
    for word in ("red", "blue", "sweet", "you")
] * 3


@EVERY
def test_a_pretrained_model_learns_to_chat(trained: dict[str, Path], architecture: str, tmp_path: Path):
    spec = {"method": "full", "epochs": 6, "batch_size": 4, "learning_rate": 0.01, "max_length": 96}
    given = {
        "recipe": "sft",
        "columns": {"messages": "messages"},
        "base_model": trained[architecture],
        "spec": spec,
    }
    rows = parquet(tmp_path / "chat.parquet", CHAT)
    attempt = write_attempt(tmp_path / "attempt", **given, train=rows)
    assert run_here(attempt) == 0, events(attempt, "error")
    base, *_, tuned = [event["data"]["metrics"]["loss"] for event in events(attempt, "eval")]
    assert tuned < 0.7 * base


def test_an_adapter_on_an_lstm_is_refused_with_a_sentence(trained: dict[str, Path], tmp_path: Path):
    given = {
        "recipe": "sft",
        "columns": {"messages": "messages"},
        "base_model": trained["lstm"],
        "spec": {"method": "lora"},
    }
    attempt = write_attempt(tmp_path / "attempt", **given, train=parquet(tmp_path / "chat.parquet", CHAT))
    assert run_here(attempt) == 10
    told = events(attempt, "error")[0]["data"]
    assert (
        told["message"]
        == f"A model of the kind «{lstm.MODEL_TYPE}» has no layers for an adapter: train «full»."
    )


# --- broken data ------------------------------------------------------------------------------

GOOD = {"text": "Roses are red."}


@pytest.mark.parametrize(
    ("rows", "row", "fatal", "said"),
    [
        ([{"text": 1}, {"text": 2}], 2, True, "The text must be text, not a number."),
        ([{"text": 1.5}, {"text": 2.5}], 1, True, "The text must be text, not a number."),
        ([{"text": True}, {"text": False}], 1, True, "The text must be text, not a truth value."),
        ([{"text": ["a"]}, {"text": ["b"]}], 2, True, "The text must be text, not a list."),
        ([GOOD, {"text": ["b"]}], 2, True, "The text must be text, not a list."),
        ([{"text": {"a": "b"}}, {"text": {"a": "c"}}], 1, True, "The text must be text, not an object."),
        ([GOOD, {"text": ""}], 2, False, "The text is empty; the row is left out."),
        ([GOOD, {"text": None}], 2, False, "The text is empty; the row is left out."),
        ([GOOD, {"text": "  \t"}], 2, False, "The text is empty; the row is left out."),
        ([GOOD, GOOD, {"other": "a"}], 3, False, "The text is empty; the row is left out."),
        ([{"text": "\n"}, {"text": "\n"}], None, True, "No row has text to learn from."),
        ([{"text": ""}, {"text": " "}], None, True, "No row has text to learn from."),
        ([GOOD], None, False, "All text is in one row, so that none can be held out"),
    ],
)
def test_a_broken_row_is_named_with_its_reason(
    tmp_path: Path, rows: list[dict[str, Any]], row: int | None, fatal: bool, said: str
):
    made = imported(tmp_path, "rows.jsonl", lines(*rows))
    assert made.code == 0
    for recipe in ("causal_lm", "masked_lm"):
        told = made.report["fits"][recipe]["findings"]
        found = [finding for finding in told if finding["row"] == row]
        assert [finding["fatal"] for finding in found] == [fatal], told
        assert said in found[0]["message"]


@pytest.mark.parametrize(
    ("filename", "data", "said"),
    [
        ("a.txt", b"", "The file is empty"),
        ("a.txt", "Größe".encode("latin-1"), "Line 1 is not UTF-8"),
        ("a.txt", b"fine\n" + b"x" * (11 * 2**20), "Line 2 is longer than 10 MB"),
        ("a.txt", b"zero \0 bytes\n", "zero bytes"),
        ("a.txt", "Rosen\n".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b'{"text": NaN}\n', "Line 1 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "Line 2 is not JSON"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "half of a surrogate pair"),
        ("a.csv", b"text,title\na,b\nc\n", "Row 3 has 1 field"),
        ("a.csv", b'text,title\n"a,b\n', "never closed"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF document"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, filename: str, data: bytes, said: str):
    assert said in imported(tmp_path, filename, data).error["message"]


def test_a_dataset_without_a_text_column_is_not_taken(tmp_path: Path):
    made = imported(tmp_path, "a.jsonl", lines({"words": "a"}, {"words": "b"}))
    assert "causal_lm" not in made.report["fits"]
    assert "needs a column for «text»" in (RECIPE.lacks({}) or "")


def test_rows_that_cannot_be_used_do_not_keep_the_others_from_being_read(tmp_path: Path):
    rows = [*LINES, {"text": None}, {"text": ""}]
    attempt = write_attempt(tmp_path / "attempt", **fields(tmp_path, rows=rows, spec={"max_steps": 1}))
    assert run_here(attempt) == 0, events(attempt, "error")


def test_the_usual_names_of_a_text_column_are_known():
    assert RECIPE.recognise(["id", "content"]) == {"text": "content"}
    assert RECIPE.recognise(["document", "text"]) == {"text": "text"}
    assert RECIPE.recognise(["prompt", "answer"]) is None


def test_a_card_is_valid_where_it_is_written(trained: dict[str, Path]):
    told = json.loads((trained["lstm"] / "burnish.json").read_text())
    assert told["spec"]["learning_rate"] == 3e-3, "the rate that was used, not the open one"
