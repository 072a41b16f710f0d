"""Preference optimization learns: which of two answers belongs to a question that it has never seen.

The questions are real, and so are all answers: the chosen one is the question's own, the rejected one was
given to another question.
"""

from pathlib import Path

import pytest

from tests.attempts import events, parquet, run_here
from tests.proofs.conftest import Found
from tests.proofs.smollm2 import attempt, exchanges

pytestmark = pytest.mark.slow
LEARNED, HELD_OUT = 192, 60


def test_the_fitting_answer_to_held_out_questions_is_preferred(tmp_path: Path, found: Found):
    talks = exchanges()
    held, learned = (
        [
            {"prompt": one.question, "chosen": one.answer, "rejected": other.answer}
            for one, other in zip(part, part[7:] + part[:7], strict=True)
            if one.answer != other.answer
        ]
        for part in (talks[:HELD_OUT], talks[HELD_OUT:][:LEARNED])
    )
    train, valid = parquet(tmp_path / "train.parquet", learned), parquet(tmp_path / "valid.parquet", held)
    folder = attempt(tmp_path, "dpo", {"epochs": 2}, train, valid)
    assert run_here(folder) == 0, events(folder, "error")
    base, tuned = (event["data"]["metrics"] for event in events(folder, "eval"))
    found(f"preference accuracy: base {base['accuracy']:.3f}, tuned {tuned['accuracy']:.3f}")
    assert base["accuracy"] == 0.5, "an adapter that has learned nothing ties every pair"
    assert tuned["accuracy"] >= 0.8
