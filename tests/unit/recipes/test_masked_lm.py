"""Encoder pretraining: what is hidden and how, words at hidden places alone, the checkpoint as the start of others."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Refused
from shared.learning import masking
from shared.learning.tokenizers import frame, train
from shared.recipe import Learner, get
from shared.recipes.masked_lm import MaskedLMSpec
from tests.attempts import TINY, checkpoints, events, parquet, run_here, write_attempt
from tests.imports import imported, lines

RECIPE = get("masked_lm")
COLUMNS = {"text": "text"}
POEM = "Roses are red. Violets are blue.\nSugar is sweet! And so are you.\n" * 16
ROWS = [{"text": line} for line in POEM.splitlines(keepends=True)]
TINY_BERT = {"architecture": "bert", "width": 32, "layers": 2, "heads": 2}
SPEC = MaskedLMSpec(max_length=24, vocab_size=300)


def fields(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """An attempt at reading the poem."""
    spec = {
        "epochs": 2,
        "batch_size": 4,
        "max_length": 24,
        "vocab_size": 300,
        "evaluations": 1,
        "checkpoints": 1,
    }
    known = {"recipe": "masked_lm", "columns": COLUMNS, "preset": TINY_BERT} | more
    rows = parquet(tmp_path / "rows.parquet", ROWS)
    return known | {"spec": spec | more.get("spec", {}), "train": rows}


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "sentences"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempt at it, without and with next-sentence prediction."""
    folder = tmp_path_factory.mktemp("trained")
    attempt = write_attempt(folder / "attempt", **fields(folder, spec={"next_sentence": request.param}))
    assert run_here(attempt) == 0, events(attempt, "error")
    return attempt


def servable(attempt: Path) -> Path:
    return checkpoints(attempt)[-1] / "servable"


def opened(folder: Path, **spec: Any) -> Learner:
    """A checkpoint or base model as the platform loads it for answers."""
    learner = Learner(spec=MaskedLMSpec(**spec), facts={})
    learner.tokenizer = RECIPE.load_tokenizer(folder, [], learner.spec)
    learner.model = RECIPE.load_model(learner, folder).eval()
    return learner


def new(**spec: Any) -> Learner:
    """A learner with a tokenizer and no weights."""
    known = SPEC.model_copy(update=spec)
    return Learner(spec=known, facts={}, tokenizer=frame(train([POEM], known)), preset=TINY_BERT)


# --- what is hidden ---------------------------------------------------------------------------


def test_tokens_are_hidden_as_in_bert():
    import torch

    learner = new()
    ids = learner.tokenizer("Roses are red. " * 20000)["input_ids"]
    blocks = [{"input_ids": ids[at : at + 128], "seed": at} for at in range(0, len(ids) - 128, 128)]
    batch = RECIPE.collate(blocks, learner)
    plain = torch.tensor([block["input_ids"] for block in blocks]).flatten()
    shown, places = batch["input_ids"].flatten(), batch["places"]
    assert len(places) / len(plain) == pytest.approx(0.15, abs=0.01)
    masked = shown[places] == learner.tokenizer.mask_token_id
    same = shown[places] == plain[places]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert same.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert (~masked & ~same).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(batch["targets"], plain[places])
    untouched = torch.ones(len(plain), dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(shown[untouched], plain[untouched])


def test_every_block_has_a_hidden_token_and_none_hides_its_frame():
    learner = new(mask_fraction=0.01)
    start, end = learner.tokenizer.cls_token_id, learner.tokenizer.sep_token_id
    items = [{"input_ids": [start, *range(50, 51 + n % 3), end], "seed": n} for n in range(40)]
    batch = RECIPE.collate(items, learner)
    assert set(batch["owners"].tolist()) == set(range(40))
    assert not {start, end, learner.tokenizer.pad_token_id} & set(batch["targets"].tolist())


def test_the_same_seed_hides_the_same_and_another_one_others():
    learner = new()
    items = [item for _, item in RECIPE.encode_all(ROWS, learner)]

    def hidden(seed: int) -> list[int]:
        seeded = [item | {"seed": seed + place} for place, item in enumerate(items)]
        return RECIPE.collate(seeded, learner)["places"].tolist()

    assert hidden(1) == hidden(1)
    assert hidden(1) != hidden(2)


def test_blocks_hold_every_token_once_between_their_frames():
    learner = new()
    items = [item["input_ids"] for _, item in RECIPE.encode_all(ROWS, learner)]
    assert {len(ids) for ids in items[:-1]} == {24}
    tokenizer = learner.tokenizer
    assert {(ids[0], ids[-1]) for ids in items} == {(tokenizer.cls_token_id, tokenizer.sep_token_id)}
    assert tokenizer.decode([token for ids in items for token in ids[1:-1]]) == POEM


def test_words_are_computed_at_hidden_places_alone():
    learner = new()
    learner.model = RECIPE.build_model(learner).eval()
    items = [item | {"seed": 3} for _, item in RECIPE.encode_all(ROWS[:4], learner)]
    batch = RECIPE.collate(items, learner)
    words, _ = masking.logits(learner.model, batch)
    assert words.shape == (len(batch["targets"]), len(learner.tokenizer))
    everywhere = learner.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert words.allclose(everywhere.flatten(0, 1)[batch["places"]], atol=1e-5)


# --- next-sentence prediction -----------------------------------------------------------------


def test_pairs_are_parted_at_a_sentences_end_and_half_of_them_do_not_belong_together():
    learner = new(next_sentence=True)
    rows = [{"text": f"Number {n} comes here. It is followed by {n}.\n"} for n in range(400)]
    items = [item for _, item in RECIPE.encode_all(rows, learner)]
    assert max(len(item["input_ids"]) for item in items) <= 24
    assert Counter(item["apart"] for item in items)[1] / len(items) == pytest.approx(0.5, abs=0.1)
    end = learner.tokenizer.sep_token_id
    for item in items:
        first = item["input_ids"].index(end)
        assert item["input_ids"][-1] == end
        assert item["token_type_ids"] == [0] * (first + 1) + [1] * (len(item["input_ids"]) - first - 1)
    begun = [learner.tokenizer.decode(item["input_ids"][1 : item["input_ids"].index(end)]) for item in items]
    assert sum(text[-1] in ".\n" for text in begun) / len(begun) > 0.9


def test_it_is_reported_in_detail_where_it_was_learned(trained: Path):
    judged = events(trained, "eval")[-1]["data"]
    assert list(judged["metrics"]) == ["loss", "masked_accuracy", "perplexity"]
    learned = checkpoints(trained)[-1] / "servable" / "burnish.json"
    assert ("next_sentence_accuracy" in judged["detail"]) == ('"next_sentence": true' in learned.read_text())


def test_it_is_refused_for_what_is_no_bert(tmp_path: Path):
    import torch
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    base = TINY["encoder"](tmp_path / "base")
    torch.manual_seed(0)
    DistilBertForMaskedLM(DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=2)).save_pretrained(
        base
    )
    with pytest.raises(Refused, match="this base model is «distilbert»"):
        opened(base, next_sentence=True)


# --- answers, and the checkpoint elsewhere ----------------------------------------------------


def test_plain_transformers_loads_it_and_fills_in_the_same(trained: Path):
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = servable(trained)
    loaded: Any = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    model, told = loaded
    assert not told["missing_keys"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Roses are <mask>. Violets <mask> blue.", return_tensors="pt")
    with torch.no_grad():
        shares = model(**inputs).logits.softmax(-1)[0]
    best = [
        shares[at].max(-1) for at in (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    ]
    learner = opened(folder)
    item = RECIPE.encode_input({"text": "Roses are [MASK]. Violets <mask> blue."}, learner)
    (answer,) = RECIPE.predict(learner, [item], [])
    assert item["input_ids"] == inputs["input_ids"][0].tolist()
    assert answer["tokens"] == [tokenizer.decode([int(one.indices)]).strip() for one in best]
    assert answer["scores"] == pytest.approx([float(one.values) for one in best], abs=1e-4)


def test_the_code_of_the_card_fills_in(trained: Path, capsys: pytest.CaptureFixture[str]):
    folder = servable(trained)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(code.replace("path/to/this/folder", str(folder)), {})
    assert "token_str" in capsys.readouterr().out


def test_answers_in_company_are_those_alone(trained: Path):
    learner = opened(servable(trained))
    texts = ["[MASK]", "Roses are [MASK]. Violets are [MASK].", "And so are [MASK]."]
    items = [RECIPE.encode_input({"text": text}, learner) for text in texts]
    together = RECIPE.predict(learner, items, [])
    assert [len(one["tokens"]) for one in together] == [1, 2, 1]
    for item, answer in zip(items, together, strict=True):
        (alone,) = RECIPE.predict(learner, [item], [])
        assert alone["tokens"] == answer["tokens"]
        assert alone["scores"] == pytest.approx(answer["scores"], abs=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs a «text»"),
        ({"text": 3}, "needs a «text»"),
        ({"text": " "}, "needs a «text»"),
        ({"text": "Roses are red."}, "has no \\[MASK\\]"),
        ({"text": "[MASK] " + "☃" * 600}, "reads at most 510"),
    ],
)
def test_an_input_that_cannot_be_filled_in_is_refused(trained: Path, given: dict[str, Any], said: str):
    with pytest.raises(Refused, match=said):
        RECIPE.encode_input(given, opened(servable(trained)))


def test_an_encoder_without_a_head_reads_on(tmp_path: Path):
    base = TINY["encoder"](tmp_path / "base")
    attempt = write_attempt(tmp_path / "attempt", **fields(tmp_path, preset={}, base_model=base))
    assert run_here(attempt) == 0, events(attempt, "error")
    learner = opened(servable(attempt))
    item = RECIPE.encode_input({"text": "Roses are [MASK]."}, learner)
    assert len(RECIPE.predict(learner, [item], [])[0]["tokens"]) == 1


def test_a_base_model_without_a_mask_token_is_refused(tmp_path: Path):
    given = fields(tmp_path, preset={}, base_model=TINY["causal_lm"](tmp_path / "base"))
    attempt = write_attempt(tmp_path / "attempt", **given)
    assert run_here(attempt) == 10
    assert "has no mask token" in events(attempt, "error")[0]["data"]["message"]


def test_a_classifier_learns_from_its_checkpoint(trained: Path, tmp_path: Path):
    rows = [
        {"text": text, "label": label}
        for text, label in [("Roses are red.", "red"), ("Violets are blue.", "blue")] * 12
    ]
    given = {
        "recipe": "classification",
        "columns": {"text": "text", "label": "label"},
        "base_model": servable(trained),
        "spec": {"epochs": 8, "batch_size": 4, "learning_rate": 0.003},
        "train": parquet(tmp_path / "labels.parquet", rows),
    }
    attempt = write_attempt(tmp_path / "attempt", **given)
    assert run_here(attempt) == 0, events(attempt, "error")
    assert events(attempt, "eval")[-1]["data"]["metrics"]["accuracy"] == 1.0
    from safetensors.torch import load_file

    before, after = (load_file(one / "model.safetensors") for one in (servable(trained), servable(attempt)))
    name = "bert.embeddings.position_embeddings.weight"
    unread = slice(100, None)  # no row reaches these positions: weight decay alone moves them
    assert before[name][unread].allclose(after[name][unread], rtol=0.01), "it went on from there"


def test_question_answering_starts_from_its_checkpoint(trained: Path, tmp_path: Path):
    rows = [
        {
            "question": "What is red?",
            "context": "Roses are red.",
            "answers": {"text": ["Roses"], "answer_start": [0]},
        }
    ] * 8
    given = {
        "recipe": "extractive_qa",
        "columns": {name: name for name in rows[0]},
        "base_model": servable(trained),
        "spec": {"epochs": 1, "batch_size": 4},
        "train": parquet(tmp_path / "questions.parquet", rows),
    }
    attempt = write_attempt(tmp_path / "attempt", **given)
    assert run_here(attempt) == 0, events(attempt, "error")


# --- broken data ------------------------------------------------------------------------------

GOOD = {"text": "Roses are red."}


@pytest.mark.parametrize(
    ("rows", "row", "fatal", "said"),
    [
        ([{"text": 1}, {"text": 2}], 2, True, "not a number"),
        ([{"text": True}, {"text": False}], 1, True, "not a truth value"),
        ([GOOD, {"text": ["b"]}], 2, True, "not a list"),
        ([{"text": {"a": "b"}}, {"text": {"a": "c"}}], 1, True, "not an object"),
        ([GOOD, {"text": ""}], 2, False, "The text is empty; the row is left out."),
        ([GOOD, {"text": None}], 2, False, "The text is empty; the row is left out."),
        ([GOOD, {"text": " \t "}], 2, False, "The text is empty; the row is left out."),
        ([GOOD, GOOD, {"other": "a"}], 3, False, "The text is empty; the row is left out."),
        ([{"text": "\n"}, {"text": "\n"}], None, True, "No row has text to learn from."),
        ([GOOD], None, False, "All text is in one row"),
    ],
)
def test_a_broken_row_is_named_with_its_reason(
    tmp_path: Path, rows: list[dict[str, Any]], row: int | None, fatal: bool, said: str
):
    told = imported(tmp_path, "rows.jsonl", lines(*rows)).report["fits"]["masked_lm"]["findings"]
    found = [finding for finding in told if finding["row"] == row]
    assert [finding["fatal"] for finding in found] == [fatal], told
    assert said in found[0]["message"]


@pytest.mark.parametrize(
    ("filename", "data", "said"),
    [
        ("a.txt", b"fine\n" + b"x" * (11 * 2**20), "Line 2 is longer than 10 MB"),
        ("a.txt", "Größe".encode("latin-1"), "Line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": NaN}\n', "Line 1 is not JSON"),
        ("a.csv", b"text,title\na,b\nc\n", "Row 3 has 1 field"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, filename: str, data: bytes, said: str):
    assert said in imported(tmp_path, filename, data).error["message"]
