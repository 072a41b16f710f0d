"""Checkpoints: `servable/` is what users download, `state/` what training needs to go on exactly.

Safetensors and JSON alone. A checkpoint is written beside its place and renamed into it, so that one
that can be seen is whole. Training goes on while it is written: the tensors are copied first.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from shared.recipe import Learner, Recipe
from worker.engine import optim
from worker.engine.attempt import Attempt
from worker.engine.weights import OURS, is_adapter


@dataclass
class Snapshot:
    """Copies in main memory of everything that a checkpoint holds."""

    name: str
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    loop: dict[str, Any]  # counters of the loop, JSON
    card: str
    ours: dict[str, Any]  # burnish.json


def copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in main memory; tensors that share memory (tied weights) still do."""
    seen: dict[int, torch.Tensor] = {}
    for value in weights.values():
        if value.data_ptr() not in seen:
            seen[value.data_ptr()] = value.detach().to("cpu", copy=True).contiguous()
    return {name: seen[value.data_ptr()] for name, value in weights.items()}


def are_finite(weights: dict[str, torch.Tensor]) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(value.isfinite().all()) for value in weights.values())


def live_weights(learner: Learner) -> dict[str, torch.Tensor]:
    """What is saved of the model: the adapter's tensors, or all."""
    if is_adapter(learner.model):
        return get_peft_model_state_dict(learner.model)
    return learner.model.state_dict()


class Writer:
    """Writes one checkpoint at a time in a thread of its own."""

    def __init__(self, recipe: Recipe, learner: Learner, attempt: Attempt) -> None:
        self.recipe, self.learner, self.attempt = recipe, learner, attempt
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    def write(self, snapshot: Snapshot, done: Callable[[], None]) -> None:
        """Start writing; `done` is called once the checkpoint is in its place. Waits for the one before."""
        self.wait()
        self.thread = threading.Thread(target=self.work, args=(snapshot, done), name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong in writing."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.failure is not None:
            raise self.failure

    def work(self, snapshot: Snapshot, done: Callable[[], None]) -> None:
        """The thread's task; its error is raised by `wait`."""
        try:
            self.put(snapshot)
            done()
        except BaseException as wrong:  # noqa: BLE001 - raised again in the main thread
            self.failure = wrong

    def put(self, snapshot: Snapshot) -> None:
        """Write the folder and rename it into place."""
        folder = self.attempt.folder / "checkpoints"
        half, whole = folder / f"tmp-{snapshot.name}", folder / snapshot.name
        shutil.rmtree(half, ignore_errors=True)
        servable, state = half / "servable", half / "state"
        servable.mkdir(parents=True)
        state.mkdir()
        serve(self.recipe, self.learner, snapshot, servable, self.attempt)
        save_file(snapshot.optimizer, state / "optimizer.safetensors")
        (state / "loop.json").write_text(json.dumps(snapshot.loop))
        sync(half)
        shutil.rmtree(whole, ignore_errors=True)
        half.rename(whole)
        sync_one(folder)


def serve(recipe: Recipe, learner: Learner, snapshot: Snapshot, folder: Path, attempt: Attempt) -> None:
    """Write what `from_pretrained` of peft or transformers reads, the tokenizer, and the card."""
    if is_adapter(learner.model):
        config = copy(learner.model.peft_config["default"])
        config.inference_mode = True
        told = attempt.card.get("stands_on") or attempt.card.get("base_model")
        config.base_model_name_or_path = told or str(attempt.base_model)
        config.save_pretrained(str(folder))
        save_file(snapshot.weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        recipe.save(learner, snapshot.weights, folder)
    if learner.tokenizer is not None:
        learner.tokenizer.save_pretrained(folder)
    (folder / OURS).write_text(json.dumps(snapshot.ours, indent=1, ensure_ascii=False))
    (folder / "README.md").write_text(snapshot.card)


def loop_state(folder: Path) -> dict[str, Any]:
    """The loop's counters of a checkpoint."""
    return json.loads((folder / "state" / "loop.json").read_text())


def restore_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's optimizer state back."""
    optim.restore(optimizer, load_file(folder / "state" / "optimizer.safetensors"))


def sync(folder: Path) -> None:
    """Bring a folder and all below it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync_one(path)


def sync_one(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
