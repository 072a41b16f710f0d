"""Chat fine-tuning learns: the loss of held-out answers falls, beside the base model's own."""

from pathlib import Path

import pytest

from tests.attempts import events, parquet, run_here
from tests.proofs.conftest import Found
from tests.proofs.smollm2 import attempt, exchanges

pytestmark = pytest.mark.slow
LEARNED, HELD_OUT = 256, 48


def test_held_out_answers_become_likelier(tmp_path: Path, found: Found):
    rows = [{"prompt": one.question, "completion": one.answer} for one in exchanges()]
    learned, held = rows[HELD_OUT:][:LEARNED], rows[:HELD_OUT]
    assert len(learned) == LEARNED
    train, valid = parquet(tmp_path / "train.parquet", learned), parquet(tmp_path / "valid.parquet", held)
    folder = attempt(tmp_path, "sft", {"epochs": 1}, train, valid)  # everything else as it is by default
    assert run_here(folder) == 0, events(folder, "error")
    base, tuned = (event["data"]["metrics"] for event in events(folder, "eval"))
    found(f"loss of held-out answers: base {base['loss']:.3f}, tuned {tuned['loss']:.3f}")
    assert tuned["loss"] <= 0.8 * base["loss"]
