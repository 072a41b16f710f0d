"""Weights: load a base model, attach or continue an adapter, merge it, put it where it trains."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from transformers.pytorch_utils import Conv1D

from shared.errors import Refused
from shared.recipe import Learner, Recipe
from shared.spec import LoraSpec
from worker.engine.attempt import Attempt
from worker.engine.lora import quicken

ADAPTER = "adapter_config.json"
OURS = "burnish.json"


def device(attempt: Attempt, rank: int = 0) -> torch.device:
    """Where to compute. On a CPU also with how many threads: all, unless the attempt says, shared out among
    its processes. Of GPUs each process has one: its own of those that the attempt names, or from the one that
    it names on. Raises Refused where they are too few.
    """
    name, *others = attempt.device.split(",")
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        threads = attempt.threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, threads // attempt.processes))
        return torch.device(name)
    torch.backends.cuda.matmul.allow_tf32 = True
    there = torch.cuda.device_count()
    if attempt.processes > there:
        raise Refused(
            f"The job asks for {attempt.processes} processes, one on each GPU; this worker has {there}.",
            param="resources.processes",
        )
    own = torch.device([name, *others][rank % (1 + len(others))]).index or 0
    number = own if others else (own + rank) % there
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def source(attempt: Attempt) -> Path | None:
    """The folder that tokenizer and weights come from: a resumed checkpoint beats what it started from."""
    if attempt.resume:
        return attempt.resume / "servable"
    return attempt.adapter or attempt.base_model


def known(attempt: Attempt) -> dict[str, Any]:
    """What a checkpoint's burnish.json tells: recipe, spec, facts. Empty for a plain base model."""
    folder = source(attempt)
    path = folder / OURS if folder else None
    return json.loads(path.read_text()) if path and path.exists() else {}


def load(
    recipe: Recipe,
    learner: Learner,
    attempt: Attempt,
    where: torch.device,
    *,
    train: bool,
    merge: bool = False,
) -> None:
    """Set `learner.model`: on that device, its adapter attached, only what is trained with gradients.

    New weights (adapter, classification head) are drawn from the attempt's seed. `merge`: the adapter is worked
    into the weights, where they are float32; bf16 would lose some of it.
    """
    torch.manual_seed(attempt.seed)
    folder = source(attempt)
    adapted = folder is not None and (folder / ADAPTER).exists()
    lora = isinstance(learner.spec, LoraSpec) and learner.spec.method == "lora"
    start = attempt.base_model if adapted else folder
    if start is None and lora:
        raise Refused("An adapter stands on trained weights: from scratch, train «full».", param="method")
    learner.model = recipe.load_model(learner, start) if start else from_scratch(recipe, learner)
    if train and recipe.needs_reference and (attempt.adapter or not lora):
        learner.frozen = start_of_training(recipe, learner, attempt, where)
    if adapted:
        require_its_labels(learner, known(attempt).get("facts") or {})
        learner.model = PeftModel.from_pretrained(learner.model, str(folder), is_trainable=train and lora)
        if train and not lora:
            learner.model = learner.model.merge_and_unload().requires_grad_()
        elif merge and not computes_in_bf16(where):
            learner.model = learner.model.merge_and_unload()
    elif train and lora:
        learner.model = with_adapter(recipe, learner)
    place(learner, where, train=train, lora=lora)
    if train and lora:
        quicken(learner.model)
    learner.model.train(train)


def require_its_labels(learner: Learner, earlier: dict[str, Any]) -> None:
    """An adapter holds a head, a row for each of its labels. Raises Refused where there are others to learn."""
    if earlier.get("labels") != learner.facts.get("labels"):
        taught = earlier.get("labels") or []
        names = ", ".join(f"«{name}»" for name in taught[:5]) + (" …" if len(taught) > 5 else "")
        raise Refused(
            f"The adapter was trained for other labels ({names}). Start from the model that it stands on.",
            param="model",
        )


def from_scratch(recipe: Recipe, learner: Learner) -> Any:
    """New weights. Their tokenizer learns how many tokens they read, for those who download it."""
    model = recipe.build_model(learner)
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if learner.tokenizer is not None and longest:
        learner.tokenizer.model_max_length = longest
    return model


def with_adapter(recipe: Recipe, learner: Learner) -> PeftModel:
    """The model with a new adapter on it. Raises Refused for an architecture that can bear none."""
    adapter = recipe.lora(learner)
    adapter.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in learner.model.modules())
    try:
        return get_peft_model(learner.model, adapter)
    except NoMatchingPeftModuleError:
        raise Refused(
            f"A model of the kind «{learner.model.config.model_type}» has no layers for an adapter: train «full».",
            param="method",
        ) from None


def place(learner: Learner, where: torch.device, *, train: bool, lora: bool) -> None:
    """Move the model. On a GPU that computes in bf16 frozen weights are kept so; trained ones stay in float32."""
    if computes_in_bf16(where):
        for weight in learner.model.parameters():
            if not weight.requires_grad and (lora or not train):
                weight.data = weight.data.to(torch.bfloat16)
    learner.model.to(where)


def start_of_training(recipe: Recipe, learner: Learner, attempt: Attempt, where: torch.device) -> Any:
    """A second copy of the weights that training started from, whatever it is resumed from: the base model
    with the earlier adapter worked in. The one case that needs none is a new adapter, which can be switched off.
    """
    if attempt.base_model is None:
        raise Refused("There are no weights to compare with: start from learned ones.", param="model")
    model = recipe.load_model(learner, attempt.base_model)
    if attempt.adapter:
        model = PeftModel.from_pretrained(model, str(attempt.adapter)).merge_and_unload()
    kind = torch.bfloat16 if where.type == "cuda" else torch.float32
    return model.requires_grad_(requires_grad=False).eval().to(where, kind)


def computes_in_bf16(where: torch.device) -> bool:
    """Whether the hardware trains faster in bf16: newer GPUs do. On a CPU with AMX the products are two to three times as
    fast and what stands around them is slower: a step took 0.88 to 1.07 times that of float32, for a higher loss.
    """
    return where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(where: torch.device) -> torch.autocast:
    """bf16 matrix products where the hardware has them, float32 as it stands elsewhere."""
    return torch.autocast(where.type, torch.bfloat16, enabled=computes_in_bf16(where))


def is_adapter(model: Any) -> bool:
    """Whether what is trained is an adapter on a base model."""
    return isinstance(model, PeftModel)


def merged(learner: Learner) -> dict[str, torch.Tensor]:
    """Full weights with the adapter worked in; `learner.model` becomes that plain model."""
    if is_adapter(learner.model):
        learner.model = learner.model.merge_and_unload()
    return learner.model.state_dict()


def reopened(attempt: Attempt, recipe: Recipe, *, merge: bool = False) -> Learner:
    """A learner with weights for answering: a base model, an adapter on it (see `load`), or a full checkpoint.

    Raises Refused if it is no checkpoint of this recipe and the recipe cannot answer without one.
    """
    told, folder = known(attempt), source(attempt)
    if folder is None:
        raise Refused("A model from scratch has learned nothing yet: train it first.", param="model")
    spec = recipe.spec.model_validate(told.get("spec") or attempt.spec)
    learner = Learner(spec=spec, facts=told.get("facts", {}), source=attempt.base_model)
    if recipe.needs_facts and not learner.facts:
        raise Refused(
            f"This base model has not been trained by {recipe.title} yet: answer with one of its checkpoints.",
            param="model",
        )
    learner.tokenizer = recipe.load_tokenizer(folder, [], spec)
    load(recipe, learner, attempt, device(attempt), train=False, merge=merge)
    return learner
