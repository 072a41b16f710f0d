"""What a training is made of, and how it is laid out before the first step."""

from __future__ import annotations

import hashlib
import json
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from shared.errors import Refused
from shared.recipe import Learner, Recipe
from worker.engine import checkpoint, optim, weights
from worker.engine.attempt import Attempt
from worker.engine.data import Both, Plan, Rows, View, code_of, encode, joins_rows
from worker.engine.evaluation import HeldOut
from worker.engine.events import Events
from worker.engine.items import Items
from worker.engine.memory import keep, recall
from worker.engine.ranks import ALONE, Ranks

BUDGET = {"cpu": 2048, "cuda": 16_384}  # tokens in a micro-batch, until the memory says otherwise
CALL = {
    "cpu": 9_400_000,
    "cuda": 600_000_000,
}  # multiplications in whose time one of a matrix can be called, about


@dataclass
class Progress:
    """Where training is: all that a checkpoint must tell of the loop, as JSON."""

    step: int = 0
    tokens: int = 0
    budget: int = 0  # tokens in a micro-batch; halved when memory runs out
    halved: bool = False  # micro-batches, and it was said
    checkpointing: bool = False  # gradient checkpointing, the last resort against a full memory
    loss_sum: float = 0.0  # since the last evaluation
    loss_weight: float = 0.0
    judged_at: int = -1  # the step of the last evaluation
    metrics: dict[str, float] = field(default_factory=dict)  # its result
    best: float | None = None  # of the evaluations, by the first metric
    best_saved: float | None = None  # of the checkpoints
    best_step: int | None = None
    worse: int = 0  # evaluations since the best
    unsteady: int = 0  # steps in a row whose loss or gradient was not finite


@dataclass
class Run:
    """Everything that a step needs at hand."""

    attempt: Attempt
    events: Events
    recipe: Recipe
    learner: Learner
    items: Items
    plan: Plan
    held: HeldOut | None
    optimizer: torch.optim.Optimizer
    progress: Progress
    writer: checkpoint.Writer
    fixed: int  # tokens that a micro-batch costs beyond its own, about
    ranks: Ranks = ALONE
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    seconds: float = 0.0  # spent in steps by this process
    stepped: int = 0  # steps by this process
    read: int = 0  # items read by all processes meanwhile
    trained: int = 0  # tokens likewise

    @property
    def trained_weights(self) -> list[torch.Tensor]:
        """What the optimizer moves, in its order."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


def prepare(attempt: Attempt, events: Events, ranks: Ranks = ALONE) -> Run:
    """Encode rows, lay out the steps, load weights, and pick up the checkpoint to go on from. Raises Refused."""
    events.stage("preparing")
    recipe, spec = attempt.method, attempt.knobs
    where = weights.device(attempt, ranks.rank)
    rows, more = given(attempt)
    every = Both(rows, more) if more is not None else rows
    earlier = weights.known(attempt).get("facts") or {}
    facts = earlier if attempt.resume else recipe.facts(every, spec, earlier)
    learner = Learner(spec=spec, facts=facts, source=attempt.base_model, preset=attempt.preset)
    learner.tokenizer = tokenizer(attempt, rows, ranks)
    with ranks.one_after_the_other() if attempt.cache else nullcontext():
        items, learning, held = divided(attempt, learner, rows, more, events)
    plan = Plan(learning, [items.lengths[place] for place in learning], spec, attempt.seed)
    weights.load(recipe, learner, attempt, where, train=True)
    run = Run(
        attempt=attempt,
        events=events,
        recipe=recipe,
        learner=learner,
        items=items,
        plan=plan,
        held=held,
        optimizer=optim.build(learner.model, spec),
        progress=Progress(budget=BUDGET[where.type]),
        writer=checkpoint.Writer(recipe, learner, attempt),
        fixed=cost_of_a_call(learner),
        ranks=ranks,
    )
    if attempt.resume:
        pick_up(run, attempt.resume)
    find_out_packing(run)
    ranks.require_the_same("data or weights", digest(run))
    describe(run)
    return run


def given(attempt: Attempt) -> tuple[Rows, Rows | None]:
    """The rows to learn from, and those that are held out where that is known before they are encoded: they
    come as a file, or the recipe joins rows.
    """
    recipe, fraction = attempt.method, attempt.knobs.valid_fraction
    rows = Rows(required(attempt.train), recipe, attempt.columns)
    if attempt.valid:
        return rows, Rows(attempt.valid, recipe, attempt.columns)
    if not joins_rows(recipe) or len(rows) < 2 or fraction == 0:
        return rows, None
    learned, chosen = recipe.split(rows, fraction, attempt.seed)
    return rows.part(learned, refused=rows.refused), rows.part(chosen) if chosen else None


def tokenizer(attempt: Attempt, rows: Sequence[dict[str, Any]], ranks: Ranks) -> Any:
    """That of the checkpoint or base model; from scratch a new one, learned from `rows`, which the other ranks read from rank 0."""
    recipe, spec, folder = attempt.method, attempt.knobs, weights.source(attempt)
    if folder:
        return recipe.load_tokenizer(folder, rows, spec)
    shared, trained = attempt.folder / "tokenizer", None
    with ranks.one_after_the_other():
        if ranks.first:
            trained = recipe.train_tokenizer(rows, spec)
            if trained is not None and ranks.size > 1:
                trained.save_pretrained(shared)
        elif shared.exists():
            trained = recipe.load_tokenizer(shared, rows, spec)
    return trained


def required(path: Path | None) -> Path:
    """The training rows; an attempt without them is a mistake of whoever wrote it."""
    if path is None:
        raise Refused("A training job needs rows to train on.", param="training_file")
    return path


def divided(
    attempt: Attempt, learner: Learner, rows: Rows, more: Rows | None, events: Events
) -> tuple[Items, list[int], HeldOut | None]:
    """The encoded items, which of them to learn from, and what is held out: rows of their own, or a share."""
    recipe, spec = attempt.method, attempt.knobs

    def encoded(part: Rows) -> Items:
        return encode(part, learner, recipe, attempt.cache, events)

    items = encoded(rows)
    every = list(range(len(items)))
    if more is not None:
        return items, every, HeldOut(more, encoded(more), list(range(len(more))))
    usable = sorted(set(items.rows))
    if joins_rows(recipe) or len(usable) < 2 or spec.valid_fraction == 0:
        return items, every, None
    _, chosen = recipe.split(View(rows, usable), spec.valid_fraction, attempt.seed)
    held = {usable[number] for number in chosen}
    learning = [place for place in every if items.rows[place] not in held]
    return items, learning, HeldOut(rows, items, sorted(held)) if held else None


def cost_of_a_call(learner: Learner) -> int:
    """In tokens: the smaller a model's matrices, the more of a step's time is spent on calling them."""
    sizes = [
        weight.numel()
        for module in learner.model.modules()
        if not isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.ndim > 1
    ]
    return CALL[learner.device.type] // round(median(sizes))


def architecture(attempt: Attempt, learner: Learner) -> str:
    """A hash of what decides whether packed batches work: architecture, code, versions, device."""
    config = getattr(learner.model, "config", None)
    told = [
        config.to_json_string() if config is not None else "",
        getattr(learner.spec, "method", ""),
        learner.device.type,
        torch.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256(code_of(attempt.method) + json.dumps(told).encode()).hexdigest()[:40]


def find_out_packing(run: Run) -> None:
    """Whether batches are packed, before the first step, which is divided accordingly: as this machine has
    found before, or by making a batch.
    """
    learner, cache = run.learner, run.attempt.cache
    if learner.packs is not None:
        return
    known = architecture(run.attempt, learner)
    learner.packs = recall(cache, "packs", known)
    if learner.packs is None and len(run.items):
        run.recipe.collate([run.items[0] | {"seed": run.attempt.seed}], learner)
        if learner.packs is not None and run.ranks.first:
            keep(cache, "packs", known, learner.packs)


def pick_up(run: Run, folder: Path) -> None:
    """Counters and optimizer of a checkpoint of this job; its weights are loaded already."""
    run.progress = Progress(**checkpoint.loop_state(folder))
    run.saved_step = run.progress.step
    checkpoint.restore_optimizer(folder, run.optimizer)
    if run.progress.checkpointing:
        recompute(run.learner)
    run.events.log(f"Going on from step {run.progress.step}.")


def recomputing(model: Any) -> list[Any]:
    """The parts that know gradient checkpointing: a model of transformers as a whole, those of diffusers inside of
    one; an LSTM has none.
    """
    if getattr(model, "supports_gradient_checkpointing", False):
        return [model]
    return [part for part in model.modules() if getattr(part, "_supports_gradient_checkpointing", False)]


def recompute(learner: Learner) -> None:
    """Gradient checkpointing: layers are computed again in the backward pass, outside of the call that
    knows the layout of a packed batch, so batches are padded from here on.
    """
    for part in recomputing(learner.model):
        if hasattr(part, "activation_checkpointing_enable"):
            part.activation_checkpointing_enable({"use_reentrant": False})
        else:  # of diffusers
            part.enable_gradient_checkpointing()
    learner.packs = False


def digest(run: Run) -> int:
    """A number for what every rank must have alike: the steps' items and the weights that are trained."""
    if run.ranks.size == 1:
        return 0
    known = zlib.crc32(json.dumps([run.plan.places, run.plan.lengths, run.progress.step]).encode())
    for weight in run.trained_weights:
        known = zlib.crc32(struct.pack("d", weight.detach().double().sum().item()), known)
    return known


def describe(run: Run) -> None:
    """Say in the log what is about to happen."""
    every = list(run.learner.model.parameters())
    trained = sum(weight.numel() for weight in every if weight.requires_grad)
    share = 100 * trained / max(sum(weight.numel() for weight in every), 1)
    held = len(run.held.rows) if run.held else 0
    run.events.log(
        f"{len(run.plan.places)} examples to learn from, {held} held-out rows, {run.plan.total} steps; "
        f"{trained:,} weights are trained ({share:.1f} %) on {run.learner.device}"
        + (f", by {run.ranks.size} processes." if run.ranks.size > 1 else ".")
    )
