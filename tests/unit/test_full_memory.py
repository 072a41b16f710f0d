"""When memory runs out: smaller batches, then layers that are computed again, then a sentence. A GPU says so by an
error of its own, a CPU by one of many.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.recipe import Learner, Loss, Recipe, get
from tests import generators
from tests.attempts import TINY, checkpoints, events, json_lines, parquet, run_here, write_attempt
from worker.engine.checkpoint import copied

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 GiB"
FULL = pytest.mark.parametrize(
    "full", [RuntimeError(CPU), torch.OutOfMemoryError("CUDA out of memory")], ids=["cpu", "gpu"]
)
LSTM = {"architecture": "lstm", "width": 24, "layers": 1}


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """An attempt at a classifier."""
    recipe = get("classification")
    return {
        "recipe": recipe.name,
        "spec": {"max_steps": 2, "batch_size": 4, "evaluations": 1, "valid_fraction": 0.25},
        "columns": recipe.recognise(recipe.example[0]),
        "base_model": TINY["encoder"](tmp_path / "base"),
        "train": parquet(tmp_path / "rows.parquet", recipe.example),
    }


def narrow(monkeypatch: pytest.MonkeyPatch, hook: str, full: Exception, most: int = 1) -> None:
    """Memory that runs out in a classifier's hook where it is given more than `most` rows."""
    recipe = type(get("classification"))
    honest = getattr(recipe, hook)

    def greedy(self: Recipe, learner: Learner, given: Any, *more: Any) -> Any:
        if len(given["labels"] if isinstance(given, dict) else given) > most:
            raise full
        return honest(self, learner, given, *more)

    monkeypatch.setattr(recipe, hook, greedy)


@FULL
@pytest.mark.parametrize("hook", ["loss", "judged", "predict"])
def test_a_training_goes_on_in_smaller_batches(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, full: Exception
):
    narrow(monkeypatch, hook, full)
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 0, events(folder, "error")
    assert len(events(folder, "sample")[-1]["data"]["samples"]) == 4


@FULL
@pytest.mark.parametrize("kind", ["evaluate", "infer"])
def test_evaluations_and_answers_go_on_in_smaller_batches(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, full: Exception
):
    trained = write_attempt(tmp_path / "trained", **fields | {"spec": fields["spec"] | {"method": "full"}})
    assert run_here(trained) == 0
    asked = tmp_path / "requests.jsonl"
    asked.write_text('{"row": 1, "input": {"text": "Good."}}\n' * 3)
    given = {"kind": kind, "recipe": "classification", "base_model": checkpoints(trained)[-1] / "servable"}
    given |= {"valid": fields["train"], "columns": fields["columns"], "requests": asked}
    narrow(monkeypatch, "judged", full)
    narrow(monkeypatch, "predict", full)
    folder = write_attempt(tmp_path / kind, **given)
    assert run_here(folder) == 0, events(folder, "error")
    if kind == "evaluate":
        assert all(
            "answer" in one for one in json_lines((folder / "artifacts" / "results.jsonl").read_text())
        )


@FULL
def test_what_no_batch_fits_in_is_told_with_a_way_out(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Exception
):
    narrow(monkeypatch, "judged", full, most=0)
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 20
    assert "max_length" in events(folder, "error")[0]["data"]["message"]


def test_smaller_micro_batches_are_announced_once_by_all_attempts(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fields["spec"] |= {"checkpoints": 2}
    full = torch.OutOfMemoryError("CUDA out of memory")
    with monkeypatch.context() as patch:
        narrow(patch, "loss", full, most=2)
        first = write_attempt(tmp_path / "first", **fields)
        assert run_here(first) == 0
    narrow(monkeypatch, "loss", full)
    second = write_attempt(tmp_path / "second", **fields, resume=checkpoints(first)[0])
    assert run_here(second) == 0
    said = [
        [event for event in events(folder, "log") if "Memory ran out" in event["data"]["message"]]
        for folder in (first, second)
    ]
    assert [len(one) for one in said] == [1, 0]


def test_an_lstm_whose_rows_do_not_fit_is_told_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = get("causal_lm")

    def greedy(*_: Any) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(recipe), "loss", greedy)
    folder = write_attempt(
        tmp_path / "attempt",
        recipe="causal_lm",
        spec={"max_steps": 2, "max_length": 32},
        columns={"text": "text"},
        preset=LSTM,
        train=parquet(tmp_path / "rows.parquet", recipe.example),
    )
    assert run_here(folder) == 20, events(folder, "error")
    assert "max_length" in events(folder, "error")[0]["data"]["message"]


def test_a_generator_whose_pictures_do_not_fit_computes_its_layers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = get("text_to_image")
    honest, helped = type(recipe).loss, []

    def greedy(self: Recipe, learner: Learner, batch: Any) -> Loss:
        if not learner.model["transformer"].is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        helped.append(batch)
        return honest(self, learner, batch)

    monkeypatch.setattr(type(recipe), "loss", greedy)
    generators.trained(tmp_path / "attempt", "text_to_image", recipe.example, max_steps=2)
    assert helped


def test_weights_that_are_tied_are_copied_once(monkeypatch: pytest.MonkeyPatch):
    weight, copies = torch.ones(3), []
    honest = torch.Tensor.to

    def counted(self: torch.Tensor, *how: Any, **more: Any) -> torch.Tensor:
        copies.append(self)
        return honest(self, *how, **more)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    found = copied({"read": weight, "written": weight})
    assert len(copies) == 1
    assert found["read"] is found["written"]
