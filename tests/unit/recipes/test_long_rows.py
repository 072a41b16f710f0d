"""Rows that are longer than the model reads, in every recipe over text."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from shared.recipe import Recipe, get, recipes
from tests.attempts import TINY, checkpoints, events, parquet, run_here, write_attempt

WORDS = " ".join(f"word{n}" for n in range(300))
LONG: dict[str, dict[str, Any]] = {
    "sft": {
        "messages": [
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": WORDS},
            {"role": "assistant", "content": "No."},
        ]
    },
    "dpo": {"prompt": "Hi.", "chosen": WORDS, "rejected": "No."},
    "classification": {"text": WORDS, "label": "good"},
    "extractive_qa": {
        "question": "Which?",
        "context": WORDS,
        "answers": {"text": ["word7"], "answer_start": [WORDS.index("word7")]},
    },
    "seq2seq": {"source": WORDS, "target": WORDS},
    "code": {"path": "long.py", "content": WORDS.replace(" ", "\n")},
    "causal_lm": {"text": WORDS},
    "masked_lm": {"text": WORDS},
}
EVERY = pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in recipes().values() if recipe.library == "transformers"],
    ids=lambda recipe: recipe.name,
)


def small(folder: Path, recipe: Recipe) -> Path:
    """A tiny base model."""
    base = TINY[recipe.head](folder / "base")
    if recipe.name == "causal_lm":
        config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 64}
        (base / "config.json").write_text(json.dumps(config))
    return base


def attempt(
    folder: Path, recipe: Recipe, base: Path, max_length: int, **rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """What two steps on a base model need."""
    return {
        "recipe": recipe.name,
        "spec": {"max_steps": 2, "batch_size": 2, "max_length": max_length, "evaluations": 1},
        "columns": recipe.recognise(recipe.example[0]),
        "base_model": base,
    } | {name: parquet(folder / f"{name}.parquet", of) for name, of in rows.items()}


@EVERY
def test_a_held_out_row_that_the_model_cannot_be_asked_stops_nothing(recipe: Recipe, tmp_path: Path):
    held = [*recipe.example[:2], LONG[recipe.name]]
    given = attempt(tmp_path, recipe, small(tmp_path, recipe), 64, train=recipe.example, valid=held)
    folder = write_attempt(tmp_path / "attempt", **given)
    assert run_here(folder) == 0, events(folder, "error")
    shown = events(folder, "sample")[-1]["data"]["samples"]
    assert shown
    assert all(sample["prompt"] for sample in shown)


@EVERY
def test_rows_are_cut_to_what_the_base_model_reads(recipe: Recipe, tmp_path: Path):
    rows = [*recipe.example, LONG[recipe.name]]
    given = attempt(tmp_path, recipe, small(tmp_path, recipe), 131_072, train=rows, valid=rows)
    folder = write_attempt(tmp_path / "attempt", **given)
    assert run_here(folder) == 0, events(folder, "error")


@pytest.mark.parametrize("name", ["extractive_qa", "classification"])
def test_rows_are_cut_to_what_an_encoder_from_scratch_reads(name: str, tmp_path: Path):
    recipe, pretraining = get(name), get("masked_lm")
    scratch = write_attempt(
        tmp_path / "scratch",
        recipe="masked_lm",
        spec={"max_steps": 1, "max_length": 32, "tokenizer": "bytes", "valid_fraction": 0},
        columns={"text": "text"},
        preset={"architecture": "bert", "width": 32, "layers": 1, "heads": 2},
        train=parquet(tmp_path / "text.parquet", pretraining.example),
    )
    assert run_here(scratch) == 0
    base = checkpoints(scratch)[-1] / "servable"
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    assert tokenizer.model_max_length == 512
    rows = [*recipe.example, LONG[name]]
    folder = write_attempt(
        tmp_path / "attempt", **attempt(tmp_path, recipe, base, 1024, train=rows, valid=rows)
    )
    assert run_here(folder) == 0, events(folder, "error")


def test_items_of_a_base_model_that_reads_more_are_not_taken_for_another_ones(tmp_path: Path):
    recipe, text = get("causal_lm"), [{"text": WORDS}] * 4
    for positions in (256, 64):
        base = TINY["causal_lm"](tmp_path / f"base{positions}")
        config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": positions}
        (base / "config.json").write_text(json.dumps(config))
        given = attempt(tmp_path, recipe, base, 200, train=text) | {"cache": tmp_path / "cache"}
        folder = write_attempt(tmp_path / f"attempt{positions}", **given)
        assert run_here(folder) == 0, events(folder, "error")
    assert len([*(tmp_path / "cache" / "encoded").iterdir()]) == 4  # learned and held-out rows of each
