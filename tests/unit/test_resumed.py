"""A training that is cut off and resumed ends as if nothing had happened, bit for bit: weights, optimizer, scores.
On every kind of model that recipes train, since each keeps other things between two steps.
"""

from pathlib import Path
from typing import Any

import pytest

from tests import variants
from tests.attempts import checkpoints, events, run_here, tensors, write_attempt
from tests.variants import Variant

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny base model of each kind, with its dropout: what is drawn is drawn again."""
    return variants.bases(tmp_path_factory.mktemp("bases"))


@variants.every
def test_a_resumed_training_ends_like_an_uninterrupted_one(
    variant: Variant, bases: dict[str, Path], tmp_path: Path
):
    known: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 4,
        "valid_fraction": 0.25,
        "max_length": 96,
        "sampling_steps": 2,
    }
    fields = variant.fields(tmp_path, bases, **known)
    whole = write_attempt(tmp_path / "whole", **fields)
    assert run_here(whole) == 0, events(whole, "error")
    first, *_, last = checkpoints(whole)
    resumed = write_attempt(tmp_path / "resumed", **fields, resume=first)
    assert run_here(resumed) == 0, events(resumed, "error")
    assert tensors(checkpoints(resumed)[-1]) == tensors(last)
    assert tensors(first) != tensors(last)
    final = [events(folder, "eval")[-1]["data"]["metrics"] for folder in (whole, resumed)]
    assert final[0] == final[1]
