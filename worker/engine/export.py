"""Other forms of a checkpoint: the full model with its adapter worked in, as a folder or as one GGUF file.

Each is read back as its user would read it, and asked what the trained model was asked.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shared.errors import Refused
from shared.learning.card import card
from shared.recipe import Learner
from worker.engine import gguf_file, llama_cpp_file, weights
from worker.engine.attempt import DONE, Attempt
from worker.engine.checkpoint import copied
from worker.engine.events import Events

LEAST = 0.9  # share of the trained model's answers that rounding may leave as they were


class Form(NamedTuple):
    """How a form is written and opened again. Where writing rounds the weights: how it does, and who else reads it."""

    write: Callable[[Attempt, Learner, Path], None]
    opened: Callable[[Attempt, Learner, Path], Learner]
    rounded: Callable[[Any], None] | None = None
    beside: Callable[[Path, list[dict[str, Any]], list[Any]], str] | None = None


def export(attempt: Attempt, events: Events) -> int:
    """Write artifacts/<form> and compare it with the trained model. Returns the exit code.

    `merged`: weights, tokenizer, card, as plain `from_pretrained` takes them; `gguf`: one file for llama.cpp.
    Raises Refused for a form or model that cannot be written, and for an export that answers otherwise.
    """
    if attempt.form not in FORMS:
        known = " and ".join(f"«{form}»" for form in FORMS)
        raise Refused(f"There is no form «{attempt.form}» of a checkpoint; there are {known}.", param="form")
    events.stage("preparing")
    attempt = attempt.model_copy(update={"device": "cpu"})  # in float32: a GPU would hold the weights in bf16
    learner = weights.reopened(attempt, attempt.method)
    probes = attempt.method.probes(learner)
    trained = shown(attempt, learner, probes)
    events.stage("packaging")
    half, whole = attempt.artifacts / f"tmp-{attempt.form}", attempt.artifacts / attempt.form
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    FORMS[attempt.form].write(attempt, learner, half)
    events.stage("evaluating", detail="comparing with the trained model")
    compared = agreement(attempt, learner, probes, trained, half)
    (attempt.artifacts / "agreement.json").write_text(json.dumps(compared, ensure_ascii=False))
    shutil.rmtree(whole, ignore_errors=True)
    half.rename(whole)
    events.stage("done")
    return DONE


def merged(attempt: Attempt, learner: Learner, folder: Path) -> None:
    """The full model as a folder."""
    recipe, told = attempt.method, weights.known(attempt)
    full = copied(weights.merged(learner))
    recipe.save(learner, full, folder)
    if learner.tokenizer is not None:
        learner.tokenizer.save_pretrained(folder)
    facts = {
        "title": recipe.title,
        "recipe": recipe.name,
        "step": told.get("step", 0),
        "epoch": told.get("epoch", 0),
        "spec": told.get("spec"),
        "usage": recipe.usage(learner),
    }
    (folder / "README.md").write_text(card(attempt.card | facts))
    (folder / weights.OURS).write_text(json.dumps(told, indent=1, ensure_ascii=False))


def opened(attempt: Attempt, learner: Learner, folder: Path) -> Learner:
    """That folder as its user opens it."""
    return attempt.method.opened(folder, learner)


def gguf(attempt: Attempt, learner: Learner, folder: Path) -> None:
    """The full model as one file."""
    config = getattr(learner.model, "config", None)
    gguf_file.require_llama(config, learner.tokenizer)
    full = copied(weights.merged(learner))
    name = attempt.card.get("name") or "model"
    gguf_file.write(folder / gguf_file.NAME, config, learner.tokenizer, full, name)


def read_by_transformers(_: Attempt, learner: Learner, folder: Path) -> Learner:
    """That file as transformers opens it."""
    return gguf_file.opened(folder, learner)


def read_by_llama_cpp(folder: Path, probes: list[dict[str, Any]], expected: list[Any]) -> str:
    """What is to be said of how llama.cpp reads that file."""
    return llama_cpp_file.said(folder / gguf_file.NAME, probes, expected)


FORMS = {
    "merged": Form(merged, opened),
    "gguf": Form(gguf, read_by_transformers, gguf_file.rounded, read_by_llama_cpp),
}


# --- is it the same model? --------------------------------------------------------------------------


def shown(attempt: Attempt, learner: Learner, probes: list[dict[str, Any]]) -> list[Any]:
    """What a model makes of the probes."""
    with torch.no_grad():
        return attempt.method.shown(learner, probes)


def agreement(
    attempt: Attempt, learner: Learner, probes: list[dict[str, Any]], trained: list[Any], folder: Path
) -> dict[str, Any]:
    """{said, equal, largest_difference} between the trained model and its export. Raises Refused where they differ.

    What was written must be the weights that writing was to leave, to the precision of float32; those may
    differ from the trained ones by their rounding. `learner.model` is given up.
    """
    recipe, form = attempt.method, FORMS[attempt.form]
    expected = trained
    if form.rounded:
        form.rounded(learner.model)
        expected = shown(attempt, learner, probes)
    learner.model = None  # makes room for its export
    export = shown(attempt, form.opened(attempt, learner, folder), probes)
    written, whole = recipe.agreement(expected, export), recipe.agreement(trained, export)
    if not written.same or not whole.equal >= LEAST:
        raise Refused(
            f"The {attempt.form} export answers otherwise than the trained model, so it is not offered; the"
            f" checkpoint itself is whole. {whole.said}",
            param="form",
            code="export_disagrees",
        )
    beside = [form.beside(folder, probes, expected)] if form.beside else []
    return {
        "said": " ".join([whole.said, *beside]),
        "equal": whole.equal,
        "largest_difference": whole.largest_difference,
    }
