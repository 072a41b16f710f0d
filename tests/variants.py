"""What every recipe is held to, it is held to in each of these forms: as it is by default, and on other models,
with other knobs and rows that make it compute something else.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shared import presets
from shared.recipe import Recipe, get, recipes
from tests.attempts import TINY, parquet
from tests.factories import tiny_bart

Row = dict[str, Any]
BASES = TINY | {"bart": tiny_bart}


@dataclass(frozen=True)
class Variant:
    """A recipe, and in which way it is not the default: a preset, one of `BASES`, knobs, another shape of rows."""

    recipe: Recipe
    name: str = ""
    preset: str = ""
    base: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    row: Callable[[Row], Row] = dict

    def __str__(self) -> str:
        return f"{self.recipe.name}-{self.name}" if self.name else self.recipe.name

    def fields(self, folder: Path, bases: dict[str, Path], copies: int = 1, **known: Any) -> dict[str, Any]:
        """What an attempt at training it on copies of its example needs, with those of the knobs that it has."""
        rows = [self.row(row) for row in self.recipe.example] * copies
        preset = presets.preset("" if self.base else self.preset or self.recipe.default_base_model)
        spec = {name: value for name, value in known.items() if name in self.recipe.spec.model_fields}
        return {
            "recipe": self.recipe.name,
            "spec": spec | self.spec,
            "columns": self.recipe.recognise(rows[0]),
            "base_model": None if preset else bases[self.base or self.recipe.head],
            "preset": preset,
            "train": parquet(folder / "rows.parquet", rows),
        }


def captioned(row: Row) -> Row:
    """The label as a caption."""
    return {("caption" if name == "label" else name): value for name, value in row.items()}


def listed(row: Row) -> Row:
    """Some rows with several labels."""
    return row | {"label": [row["label"], "short"] if len(row["text"]) < 36 else [row["label"]]}


EVERY = [
    *map(Variant, recipes().values()),
    Variant(get("causal_lm"), "llama", preset="scratch/llama-tiny"),
    Variant(get("causal_lm"), "lstm", preset="scratch/lstm-tiny"),
    Variant(get("causal_lm"), "adapter", base="causal_lm", spec={"method": "lora"}),
    Variant(get("masked_lm"), "next_sentence", spec={"next_sentence": True}),
    Variant(get("sft"), "full", spec={"method": "full"}),
    Variant(get("dpo"), "full", spec={"method": "full"}),
    Variant(get("classification"), "labels", row=listed),
    Variant(get("classification"), "adapter", spec={"method": "lora", "class_weights": True}),
    Variant(get("seq2seq"), "bart", base="bart"),
    Variant(get("text_to_image"), "captions", row=captioned),
    Variant(get("text_to_audio"), "captions", row=captioned),
]


def bases(folder: Path, *, calm: bool = False) -> dict[str, Path]:
    """A tiny base model of each kind; calm ones have no dropout."""
    made = {name: make(folder / name) for name, make in BASES.items()}
    for config in [base / "config.json" for base in made.values() if calm]:
        told = json.loads(config.read_text())
        config.write_text(
            json.dumps({name: 0.0 if "dropout" in name else value for name, value in told.items()})
        )
    return made


every = pytest.mark.parametrize("variant", EVERY, ids=str)
