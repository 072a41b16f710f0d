"""How well the model does on held-out rows: the declared metrics, and a few answers to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from shared.recipe import Batch, Item, Learner, Recipe, Scores
from worker.engine.data import MOST_EVALUATED, View, portions
from worker.engine.items import Items
from worker.engine.weights import autocast

SAMPLES = 4


class HeldOut:
    """The rows that are kept from training, and their items; at most 512 rows are read."""

    def __init__(self, rows: Sequence[dict[str, Any]], items: Items, held: list[int]) -> None:
        usable = set(items.rows)
        shown = spread([place for place in held if place in usable], MOST_EVALUATED)
        self.renumbered = {place: number for number, place in enumerate(shown)}
        self.rows = View(rows, shown)
        self.items = items
        chosen = [place for place, row in enumerate(items.rows) if row in self.renumbered]
        self.order = sorted(chosen, key=lambda place: items.lengths[place])
        self.samples = View(rows, spread(shown, SAMPLES))

    def batches(self, recipe: Recipe, learner: Learner, budget: int) -> Iterator[tuple[list[Item], Batch]]:
        """Items of like length together, on the model's device; `row` counts through `rows`."""
        for places in portions(self.order, self.items.lengths, budget):
            items = [self.items[place] for place in places]
            for item in items:
                item["row"] = self.renumbered[item["row"]]
            batch = recipe.collate(items, learner)
            yield items, {name: value.to(learner.device) for name, value in batch.items()}


def spread(places: list[int], most: int) -> list[int]:
    """At most `most` of the places, evenly spread."""
    if len(places) <= most:
        return places
    return [places[number * len(places) // most] for number in range(most)]


def evaluate(recipe: Recipe, learner: Learner, held: HeldOut, budget: int, seed: int) -> Scores:
    """The recipe's metrics. Draws nothing from the training's random numbers. Raises on undeclared ones."""
    with quiet(learner, seed):
        scores = recipe.evaluate(learner, held.rows, held.batches(recipe, learner, budget))
    declared = {metric.name for metric in recipe.metrics}
    if set(scores.metrics) != declared:
        raise TypeError(f"«{recipe.name}» declares the metrics {declared} and reports {set(scores.metrics)}.")
    return Scores(
        {metric.name: float(scores.metrics[metric.name]) for metric in recipe.metrics}, scores.detail
    )


def samples(recipe: Recipe, learner: Learner, held: HeldOut, seed: int) -> list[dict[str, Any]]:
    """What the model makes of up to four held-out rows."""
    with quiet(learner, seed):
        return recipe.sample(learner, held.samples)


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
