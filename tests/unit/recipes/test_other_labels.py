"""A classifier that is trained on for other labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared.recipe import Learner, get
from tests.attempts import TINY, checkpoints, events, parquet, run_here, write_attempt

RECIPE = get("classification")


def fields(folder: Path, labels: str, base: Path, **more: Any) -> dict[str, Any]:
    """Two steps on rows of these labels, a letter each."""
    rows = [{"text": f"text {n}", "label": labels[n % len(labels)]} for n in range(16)]
    return {
        "recipe": "classification",
        "spec": {"max_steps": 2} | more,
        "columns": {"text": "text", "label": "label"},
        "base_model": base,
        "train": parquet(folder / f"{labels}.parquet", rows),
    }


def trained(folder: Path, method: str) -> tuple[Path, Path]:
    """(a base model, the servable folder of a classifier of x and y)."""
    base = TINY["encoder"](folder / "base")
    attempt = write_attempt(folder / "xy", **fields(folder, "xy", base, method=method))
    assert run_here(attempt) == 0, events(attempt, "error")
    return base, checkpoints(attempt)[-1] / "servable"


@pytest.mark.parametrize(("labels", "kept"), [("xy", True), ("ab", False), ("yz", False)])
def test_the_rows_of_the_head_stay_with_their_labels(tmp_path: Path, labels: str, kept: bool):
    _, servable = trained(tmp_path, "full")
    facts = {"labels": list(labels), "multi_label": False, "weights": [1, 1]}
    learner = Learner(spec=RECIPE.spec(), facts=facts)
    learner.tokenizer = RECIPE.load_tokenizer(servable, [], learner.spec)
    torch.manual_seed(3)
    head = RECIPE.load_model(learner, servable).requires_grad_(requires_grad=False).classifier
    saved = load_file(servable / "model.safetensors")
    assert torch.equal(head.weight, saved["classifier.weight"]) is kept
    assert kept or (0.01 < float(head.weight.std()) < 0.03 and not head.bias.any())


@pytest.mark.parametrize("labels", ["ab", "abc"])
def test_an_adapter_of_other_labels_is_refused_with_a_sentence(tmp_path: Path, labels: str):
    base, servable = trained(tmp_path, "lora")
    again = write_attempt(tmp_path / "again", **fields(tmp_path, labels, base), adapter=servable)
    assert run_here(again) == 10
    assert "trained for other labels («x», «y»" in events(again, "error")[0]["data"]["message"]
    same = write_attempt(tmp_path / "same", **fields(tmp_path, "xy", base), adapter=servable)
    assert run_here(same) == 0, events(same, "error")
