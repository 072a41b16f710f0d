"""Language models from scratch learn: fewer bits for a character of held-out text than a character trigram needs.

The text is the beginning of the King James Bible, as one stream; the last tenth of its lines is held out.
"""

from pathlib import Path

import pytest

from shared import presets
from shared.recipe import get
from tests.attempts import events, parquet, run_here, write_attempt
from tests.proofs.conftest import Found
from tests.proofs.texts import beginning
from tests.proofs.trigram import trigram

pytestmark = pytest.mark.slow
CHARACTERS = 400_000
SEED = 7


@pytest.mark.parametrize("architecture", ["gpt", "llama", "lstm"])
def test_it_needs_fewer_bits_than_a_trigram(tmp_path: Path, architecture: str, found: Found):
    rows = [{"text": line} for line in beginning(CHARACTERS)]
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="causal_lm",
        columns={"text": "text"},
        preset=presets.preset(f"scratch/{architecture}-tiny"),
        seed=SEED,
        threads=None,
        train=parquet(tmp_path / "rows.parquet", rows),
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    recipe = get("causal_lm")
    parts = recipe.split(rows, recipe.spec().valid_fraction, SEED)
    baseline = trigram(*("".join(rows[place]["text"] for place in part) for part in parts))
    judged = events(attempt, "eval")
    reached = judged[-1]["data"]["metrics"]["bits_per_character"]
    found(f"{architecture}-tiny: {reached:.3f} bits per character; trigram: {baseline:.3f}")
    assert judged[0]["data"]["metrics"]["bits_per_character"] > baseline
    assert reached < baseline
