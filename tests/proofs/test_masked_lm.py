"""An encoder from scratch learns: it names 1.5 times as many hidden tokens as the most frequent token would.

The text is the beginning of the King James Bible, as one stream; the last tenth of its lines is held out.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared import presets
from shared.recipe import get
from tests.attempts import checkpoints, events, parquet, run_here, write_attempt
from tests.proofs.conftest import Found
from tests.proofs.texts import beginning

pytestmark = pytest.mark.slow
CHARACTERS = 600_000
SEED = 7


def test_it_names_more_hidden_tokens_than_the_most_frequent_one_would(tmp_path: Path, found: Found):
    from transformers import AutoTokenizer

    rows = [{"text": line} for line in beginning(CHARACTERS)]
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="masked_lm",
        columns={"text": "text"},
        preset=presets.preset("scratch/bert-tiny"),
        seed=SEED,
        threads=None,
        train=parquet(tmp_path / "rows.parquet", rows),
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    recipe = get("masked_lm")
    _, held = recipe.split(rows, recipe.spec().valid_fraction, SEED)
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoints(attempt)[-1] / "servable")
    text = "".join(rows[place]["text"] for place in held)
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    baseline = Counter(tokens).most_common(1)[0][1] / len(tokens)
    reached = events(attempt, "eval")[-1]["data"]["metrics"]["masked_accuracy"]
    found(f"bert-tiny: {reached:.3f} of the hidden tokens; the most frequent token: {baseline:.3f}")
    assert reached >= 1.5 * baseline
