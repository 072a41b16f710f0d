"""Models side by side: how far metrics lie apart, which rows they differ on, where a value stands on a line.

Pure functions over what evaluations have stored; the draws of their bootstrap depend on the rows alone, so
that the differences of two models in each draw are the paired bootstrap of the difference.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.recipe import Metric
from web.words import known, spoken

LEAST = 100  # resamples; fewer say nothing about the ends of an interval
SHARE = 0.95


@dataclass(frozen=True)
class Difference:
    """How far a model lies from the first one. `low` and `high` are the ends of its interval, where known;
    `verdict` is better, worse, unclear, or empty where nothing can be said.
    """

    value: float
    low: float | None
    high: float | None
    verdict: str


def difference(metric: Metric, first: dict[str, Any], other: dict[str, Any]) -> Difference | None:
    """Of two reports of evaluations; None where one of them lacks the metric."""
    name = metric.name
    before, after = first["metrics"].get(name), other["metrics"].get(name)
    if not known(before) or not known(after):
        return None
    drawn = zip(first["resampled"].get(name, ()), other["resampled"].get(name, ()), strict=False)
    moved = sorted(b - a for a, b in drawn if a is not None and b is not None)
    if len(moved) < LEAST:
        return Difference(after - before, None, None, "")
    low, high = quantile(moved, (1 - SHARE) / 2), quantile(moved, (1 + SHARE) / 2)
    if low <= 0 <= high:
        return Difference(after - before, low, high, "unclear")
    return Difference(
        after - before, low, high, "better" if (low > 0) == (metric.better == "higher") else "worse"
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share of the ordered values lies, between two of them by their distance."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


# --- rows -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row that every model was judged on; scores and answers in the order of the models, an answer None where
    that model was not asked.
    """

    number: int
    prompt: Any
    expected: Any
    scores: list[float | None]
    answers: list[Any]

    @property
    def apart(self) -> float:
        """How far the scores lie from the first one's, at most."""
        told = [score for score in self.scores if score is not None]
        return max(abs(score - told[0]) for score in told) if told else 0.0

    @property
    def differs(self) -> bool:
        """Whether the answers are not all the same; where a model was not asked, the scores."""
        if all(answer is not None for answer in self.answers):
            return any(answer != self.answers[0] for answer in self.answers)
        return self.apart > 0


def rows(results: Sequence[Iterable[str]]) -> list[Row]:
    """The rows that all of the results (lines of JSON, one list a model) have; those that every model has answered
    before others, then by how far their scores lie apart.
    """
    found: list[dict[int, dict[str, Any]]] = [
        {line["row"]: line for line in map(json.loads, lines)} for lines in results
    ]
    common = set(found[0]).intersection(*found[1:]) if found else set()
    made = [row(number, [lines[number] for lines in found]) for number in common]
    return sorted(made, key=lambda one: (None in one.answers, -one.apart, one.number))


def row(number: int, lines: Sequence[dict[str, Any]]) -> Row:
    """One row of all results."""
    asked = next((line for line in lines if "answer" in line), lines[0])
    return Row(
        number,
        spoken(asked.get("prompt")),
        spoken(asked.get("expected")),
        [line.get("score") for line in lines],
        [spoken(line["answer"]) if "answer" in line else None for line in lines],
    )


# --- drawing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A value and its interval on a line from 0 to 100; `low` and `high` are None where there is no interval."""

    at: float
    low: float | None
    high: float | None


def marks(told: Sequence[tuple[Any, Sequence[float] | None]], *, whole: bool) -> list[Mark | None]:
    """Where [(value, [low, high])] stand on one line. It begins at 0 where that is `whole` or no value is far
    from 0; shares reach to 1.
    """
    ends = [end for value, interval in told for end in (value, *(interval or ())) if known(end)]
    if not ends:
        return [None] * len(told)
    low, high = min(ends), max(ends)
    if whole:
        low, high = min(0.0, low), 1.0 if low >= 0 and 0.2 < high <= 1 else high * 1.05
    else:
        room = 0.1 * (high - low) or abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return [
        Mark(place(value), *(map(place, interval) if interval else (None, None))) if known(value) else None
        for value, interval in told
    ]
