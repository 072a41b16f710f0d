"""How well the model does on held-out rows: the declared metrics, and a few answers to look at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shared.errors import Refused
from shared.recipe import Batch, Item, Learner, Media, Recipe, Scores
from worker.engine import exhausted
from worker.engine.attempt import Attempt
from worker.engine.data import MOST_EVALUATED, NOT_ENCODED_WITH, View, code_of, portions, seed_of
from worker.engine.items import Items
from worker.engine.memory import keep, recall
from worker.engine.weights import autocast, source

SAMPLES = 4


class HeldOut:
    """The rows that are kept from training, and their items; at most `most` rows are read."""

    def __init__(
        self, rows: Sequence[dict[str, Any]], items: Items, held: list[int], most: int = MOST_EVALUATED
    ) -> None:
        usable = set(items.rows)
        shown = spread([place for place in held if place in usable], most)
        self.renumbered = {place: number for number, place in enumerate(shown)}
        self.rows = View(rows, shown)
        self.items = items
        chosen = [place for place, row in enumerate(items.rows) if row in self.renumbered]
        self.order = sorted(chosen, key=lambda place: items.lengths[place])
        self.samples = View(rows, spread(shown, SAMPLES))

    def batches(self, recipe: Recipe, learner: Learner, budget: int) -> Iterator[tuple[list[Item], Batch]]:
        """Items of like length together, on the model's device; `row` counts through `rows`."""
        for places in portions(self.order, self.items.lengths, budget):
            yield self.batch(places, recipe, learner)

    def batch(self, places: list[int], recipe: Recipe, learner: Learner) -> tuple[list[Item], Batch]:
        """These items, and the batch that they make."""
        items = [self.items[place] | {"seed": seed_of(0, 0, place)} for place in places]
        for item in items:
            item["row"] = self.renumbered[item["row"]]
        batch = recipe.collate(items, learner)
        return items, {name: value.to(learner.device) for name, value in batch.items()}


def spread(places: list[int], most: int) -> list[int]:
    """At most `most` of the places, evenly spread."""
    if len(places) <= most:
        return places
    return [places[number * len(places) // most] for number in range(most)]


def evaluate(recipe: Recipe, learner: Learner, held: HeldOut, budget: int, seed: int) -> Scores:
    """The recipe's metrics. Draws nothing from the training's random numbers. Raises on undeclared ones."""
    with quiet(learner, seed):
        scores = recipe.evaluate(learner, held.rows, held.batches(recipe, learner, budget))
    return declared(recipe, scores)


def declared(recipe: Recipe, scores: Scores) -> Scores:
    """The scores in the order of the recipe's metrics. Raises TypeError where they are not those it declares."""
    names = {metric.name for metric in recipe.metrics}
    if set(scores.metrics) != names:
        raise TypeError(f"«{recipe.name}» declares the metrics {names} and reports {set(scores.metrics)}.")
    return Scores(
        {metric.name: float(scores.metrics[metric.name]) for metric in recipe.metrics}, scores.detail
    )


class Judgement(NamedTuple):
    """What an evaluation said: scores, and a few answers."""

    scores: Scores
    samples: list[dict[str, Any]]


def judge(recipe: Recipe, learner: Learner, held: HeldOut, budget: int, seed: int) -> Judgement:
    """The declared metrics and a few answers on the held-out rows; where memory runs out, in smaller batches."""
    try:
        scores = evaluate(recipe, learner, held, budget, seed)
    except RuntimeError as wrong:
        if not exhausted.memory(wrong) or budget < max(held.items.lengths):
            raise
    else:
        return Judgement(scores, samples(recipe, learner, held, seed))
    torch.cuda.empty_cache()
    return judge(recipe, learner, held, budget // 2, seed)


def judge_base(attempt: Attempt, learner: Learner, held: HeldOut, budget: int, seed: int) -> Judgement:
    """The same before the first step. The same weights on the same rows are judged once on a machine."""
    key = weights_and_rows(attempt, learner, held, budget)
    if known := recall(attempt.cache, "judged", key):
        metrics, detail, shown = known
        return Judgement(Scores(metrics, detail), shown)
    judged = judge(attempt.method, learner, held, budget, seed)
    if any(isinstance(value, Media) for sample in judged.samples for value in sample.values()):
        return judged  # its pictures belong to this job
    keep(attempt.cache, "judged", key, [judged.scores.metrics, judged.scores.detail, judged.samples])
    return judged


def weights_and_rows(attempt: Attempt, learner: Learner, held: HeldOut, budget: int) -> str:
    """A hash of all that the judgement of an untrained model depends on: the files of its weights, the seed
    of what is drawn anew, the held-out items, the knobs that are no knobs of the training, the code.
    """
    digest = hashlib.sha256(code_of(attempt.method))
    for folder in filter(None, (attempt.base_model, source(attempt))):
        files = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in folder.iterdir())
        digest.update(json.dumps([str(folder.resolve()), files]).encode())
    spec = learner.spec.model_dump()
    knobs = {name: value for name, value in spec.items() if name not in NOT_ENCODED_WITH}
    told = [attempt.recipe, attempt.seed, str(learner.device), budget, knobs, learner.facts]
    items = [held.items[place] for place in held.order]
    digest.update(json.dumps([told, items, list(held.samples)], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:40]


def samples(recipe: Recipe, learner: Learner, held: HeldOut, seed: int) -> list[dict[str, Any]]:
    """What the model makes of up to four held-out rows; those that it cannot be asked are left out."""
    with quiet(learner, seed):
        return [sample for sample in sampled(recipe, learner, held.samples) if sample]


def sampled(recipe: Recipe, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the model makes of the rows: of all together or, where that cannot be, row by row; {} for those that
    it cannot be asked.
    """
    try:
        return recipe.sample(learner, rows)
    except (Refused, RuntimeError) as wrong:
        if not (isinstance(wrong, Refused) or exhausted.memory(wrong)):
            raise
        if len(rows) == 1:
            return [{}]
    return [one for place in range(len(rows)) for one in sampled(recipe, learner, View(rows, [place]))]


def kept(value: Any, folder: Path) -> Any:
    """The same JSON with every picture and sound as {"media": name}, its bytes in `folder` under that name."""
    if isinstance(value, Media):
        name = f"{hashlib.sha256(value.content).hexdigest()[:32]}.{value.suffix}"
        (folder / name).write_bytes(value.content)
        return {"media": name}
    if isinstance(value, dict):
        return {name: kept(one, folder) for name, one in value.items()}
    return [kept(one, folder) for one in value] if isinstance(value, list) else value


class quiet:  # noqa: N801 - used as a with-statement's word
    """Inside: no gradients, no dropout, the GPU's number format, and a seed of its own."""

    def __init__(self, learner: Learner, seed: int) -> None:
        self.learner, self.seed = learner, seed

    def __enter__(self) -> None:
        self.entered = [torch.no_grad(), autocast(self.learner.device)]
        for context in self.entered:
            context.__enter__()
        self.learner.model.eval()
        torch.manual_seed(self.seed)

    def __exit__(self, *wrong: Any) -> None:
        self.learner.model.train()
        for context in reversed(self.entered):
            context.__exit__(*wrong)
