"""Confidence intervals by the bootstrap: the metrics of as many rows, drawn from the rows with replacement,
again and again (Efron, 1979, https://doi.org/10.1214/aos/1176344552); an interval is what 95 % of them hold.

The draws depend on the rows alone. Two models that were judged on the same rows were so on the same draws, and
the difference of their metrics in each draw is the paired bootstrap of the difference.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.recipe import Judged, Recipe

MOST = 1000  # resamples
SECONDS = 60.0  # where a metric takes long, fewer are made
LEAST = 100  # fewer say nothing about the ends of an interval
SHARE = 0.95

Tell = Callable[[int, int], None]  # (done, total)


def digest(rows: Sequence[int]) -> str:
    """A hash of the numbers of the rows that were judged: the same rows, the same draws."""
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def resampled(
    recipe: Recipe, found: list[Judged], facts: dict[str, Any], seed: str, tell: Tell
) -> dict[str, list[float | None]]:
    """{metric: its value in each resample} of what was found of the rows; `seed` is their `digest`."""
    dice = np.random.default_rng(int(seed[:16], 16))
    measure, until = measurer(recipe, found, facts), time.monotonic() + SECONDS
    values: dict[str, list[float | None]] = {metric.name: [] for metric in recipe.metrics}
    for number in range(MOST):
        if time.monotonic() > until:
            break
        metrics = measure(dice.integers(len(found), size=len(found)))
        for name, kept in values.items():
            kept.append(float(metrics[name]) if math.isfinite(metrics[name]) else None)
        tell(number + 1, MOST)
    return values


def measurer(
    recipe: Recipe, found: list[Judged], facts: dict[str, Any]
) -> Callable[[np.ndarray], dict[str, float]]:
    """The metrics of the rows at given places; where they follow from sums, those are added up at once."""
    if type(recipe).measure is not Recipe.measure:
        return lambda drawn: recipe.measure([found[place] for place in drawn], facts).metrics
    names = list(found[0])
    table = np.array([[judged[name] for name in names] for judged in found], np.float64)

    def by_sums(drawn: np.ndarray) -> dict[str, float]:
        counts = np.bincount(drawn, minlength=len(table)).astype(np.float64)
        return recipe.scored(dict(zip(names, (counts @ table).tolist(), strict=True)))

    return by_sums


def intervals(values: dict[str, list[float | None]]) -> dict[str, list[float]]:
    """{metric: [low, high]}, the middle 95 % of its resamples; left out where there are too few."""
    ends = ((1 - SHARE) / 2, (1 + SHARE) / 2)
    finite = {name: [one for one in kept if one is not None] for name, kept in values.items()}
    return {
        name: [float(end) for end in np.quantile(kept, ends)]
        for name, kept in finite.items()
        if len(kept) >= LEAST
    }
