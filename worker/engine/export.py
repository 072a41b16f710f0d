"""Other forms of a checkpoint: the full model with its adapter worked in."""

from __future__ import annotations

import json
import shutil

from shared.errors import Refused
from shared.learning.card import card
from worker.engine import weights
from worker.engine.attempt import DONE, Attempt
from worker.engine.checkpoint import copied
from worker.engine.events import Events


def export(attempt: Attempt, events: Events) -> int:
    """Write artifacts/merged: weights, tokenizer, card, as plain `from_pretrained` takes them."""
    if attempt.form != "merged":
        raise Refused(f"There is no form «{attempt.form}» of a checkpoint; there is «merged».", param="form")
    events.stage("preparing")
    recipe, told = attempt.method, weights.known(attempt)
    learner = weights.reopened(attempt, recipe)
    events.stage("packaging")
    full = copied(weights.merged(learner))
    half, whole = attempt.artifacts / "tmp-merged", attempt.artifacts / "merged"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    recipe.save(learner, full, half)
    if learner.tokenizer is not None:
        learner.tokenizer.save_pretrained(half)
    facts = {
        "title": recipe.title,
        "recipe": recipe.name,
        "step": told.get("step", 0),
        "epoch": told.get("epoch", 0),
        "spec": told.get("spec"),
        "usage": recipe.usage(learner),
    }
    (half / "README.md").write_text(card(attempt.card | facts))
    (half / weights.OURS).write_text(json.dumps(told, indent=1, ensure_ascii=False))
    shutil.rmtree(whole, ignore_errors=True)
    half.rename(whole)
    events.stage("done")
    return DONE
