"""Other forms of a checkpoint: the full model with its adapter worked in, as a folder or as one GGUF file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from shared.errors import Refused
from shared.learning.card import card
from shared.recipe import Learner
from worker.engine import gguf_file, weights
from worker.engine.attempt import DONE, Attempt
from worker.engine.checkpoint import copied
from worker.engine.events import Events

PROMPTS = ("Hello!", "What is the capital of France?", "Once upon a time", "1, 2, 3,")
TOKENS = 24  # that the trained model writes after each
LEAST = {"merged": 0.98, "gguf": 0.9}  # share of equal likeliest tokens; float16 moves near-ties


def export(attempt: Attempt, events: Events) -> int:
    """Write artifacts/<form> and compare it with the trained model. Returns the exit code.

    `merged`: weights, tokenizer, card, as plain `from_pretrained` takes them; `gguf`: one file for llama.cpp.
    Raises Refused for a form or model that cannot be written, and for an export that answers otherwise.
    """
    if attempt.form not in FORMS:
        known = " and ".join(f"«{form}»" for form in FORMS)
        raise Refused(f"There is no form «{attempt.form}» of a checkpoint; there are {known}.", param="form")
    events.stage("preparing")
    learner = weights.reopened(attempt, attempt.method)
    before = written(learner)
    events.stage("packaging")
    half, whole = attempt.artifacts / f"tmp-{attempt.form}", attempt.artifacts / attempt.form
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    FORMS[attempt.form](attempt, learner, half)
    if before:
        events.stage("evaluating", detail="comparing with the trained model")
        compared = agreement(before, reopened(attempt.form, half))
        require_agreement(attempt.form, compared)
        (attempt.artifacts / "agreement.json").write_text(json.dumps(compared))
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


def gguf(attempt: Attempt, learner: Learner, folder: Path) -> None:
    """The full model as one file."""
    config = getattr(learner.model, "config", None)
    gguf_file.require_llama(config, learner.tokenizer)
    full = copied(weights.merged(learner))
    name = attempt.card.get("name") or "model"
    gguf_file.write(folder / "model.gguf", config, learner.tokenizer, full, name)


FORMS = {"merged": merged, "gguf": gguf}


# --- is it the same model? --------------------------------------------------------------------------


def written(learner: Learner) -> list[tuple[list[int], Any]]:
    """[(tokens, logits [tokens, words])] of what a causal language model writes greedily after some prompts;
    nothing for other models.
    """
    if "CausalLM" not in type(base_of(learner.model)).__name__ and not hasattr(learner.model, "generate"):
        return []
    if learner.tokenizer is None or getattr(learner.model.config, "is_encoder_decoder", False):
        return []
    if learner.model.get_output_embeddings() is None or not learner.model.can_generate():
        return []
    found = []
    with torch.no_grad():
        for prompt in PROMPTS:
            tokens = learner.tokenizer(prompt)["input_ids"] or [0]
            for _ in range(TOKENS):
                logits = logits_of(learner.model, tokens)
                tokens = [*tokens, int(logits[-1].argmax())]
            found.append((tokens, logits_of(learner.model, tokens)))
    return found


def base_of(model: Any) -> Any:
    """The model below an adapter."""
    return model.get_base_model() if weights.is_adapter(model) else model


def logits_of(model: Any, tokens: list[int]) -> Any:
    """[tokens, words], float32."""
    where = next(model.parameters()).device
    return model(input_ids=torch.tensor([tokens], device=where)).logits[0].float().cpu()


def reopened(form: str, folder: Path) -> Any:
    """The export as plain transformers reads it."""
    from transformers import AutoModelForCausalLM

    known = {"gguf_file": "model.gguf"} if form == "gguf" else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **known).eval()


def agreement(before: list[tuple[list[int], Any]], model: Any) -> dict[str, Any]:
    """{tokens, equal, largest_difference}: over the same tokens the share of equal likeliest ones, and the
    largest difference between two logits.
    """
    equal = count = 0
    largest = 0.0
    with torch.no_grad():
        for tokens, logits in before:
            again = logits_of(model, tokens)
            equal += int((again.argmax(-1) == logits.argmax(-1)).sum())
            largest = max(largest, float((again - logits).abs().max()))
            count += len(tokens)
    return {"tokens": count, "equal": equal / count, "largest_difference": largest}


def require_agreement(form: str, compared: dict[str, Any]) -> None:
    """Refuses an export that answers otherwise."""
    if not compared["equal"] >= LEAST[form]:
        raise Refused(
            f"The {form} export answers otherwise than the trained model: only {100 * compared['equal']:.0f} % of"
            " the likeliest tokens are equal. It is not offered; the checkpoint itself is whole.",
            param="form",
            code="export_disagrees",
        )
