"""Rows that are longer than the model reads, in every recipe over text."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.recipe import Recipe, recipes
from tests.attempts import TINY, events, parquet, run_here, write_attempt

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


def attempt(folder: Path, recipe: Recipe, max_length: int, **rows: list[dict[str, Any]]) -> Path:
    """Two steps on a tiny base model."""
    base = TINY[recipe.head](folder / "base")
    if recipe.name == "causal_lm":
        config = json.loads((base / "config.json").read_text()) | {"max_position_embeddings": 64}
        (base / "config.json").write_text(json.dumps(config))
    return write_attempt(
        folder / "attempt",
        recipe=recipe.name,
        spec={"max_steps": 2, "batch_size": 2, "max_length": max_length, "evaluations": 1},
        columns=recipe.recognise(recipe.example[0]),
        base_model=base,
        **{name: parquet(folder / f"{name}.parquet", of) for name, of in rows.items()},
    )


@EVERY
def test_a_held_out_row_that_the_model_cannot_be_asked_stops_nothing(recipe: Recipe, tmp_path: Path):
    held = [*recipe.example[:2], LONG[recipe.name]]
    folder = attempt(tmp_path, recipe, 64, train=recipe.example, valid=held)
    assert run_here(folder) == 0, events(folder, "error")
    shown = events(folder, "sample")[-1]["data"]["samples"]
    assert shown
    assert all(sample["prompt"] for sample in shown)
