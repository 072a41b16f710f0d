"""Answers to requests: many of like length together, kept in shards, never asked twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.errors import Refused
from shared.recipe import Item, Learner, Recipe, Sampling
from worker.engine import exhausted, weights
from worker.engine.attempt import DONE, Attempt, Stop
from worker.engine.events import Events
from worker.engine.shards import Shards

WINDOW = 4096  # requests that are read and sorted by length together
AT_ONCE = {"cpu": 32, "cuda": 128}  # in one batch
BUDGET = {"cpu": 8192, "cuda": 65_536}  # tokens in one batch
PAUSE = 1.0  # seconds between two words on how far it is

Answer = dict[str, Any]  # {"place", "output"} or {"place", "error"}


@dataclass
class Asked:
    """A request that can be answered. `cost`: tokens that it reads and may write."""

    place: int
    item: Item
    way: Sampling
    read: int
    cost: int


def infer(attempt: Attempt, events: Events, stop: Stop) -> int:
    """Answer every request in `attempt.requests` that no shard answers yet. Returns the exit code.

    A request that cannot be answered gets its error; the others go on.
    """
    if attempt.requests is None:
        raise Refused("An inference job needs requests.", param="input_file_id")
    events.stage("preparing")
    total = count_lines(attempt.requests)
    answers = Answers(Shards(attempt.artifacts / "shards", events), total)
    if answers.count < total:
        answer_rest(attempt, attempt.requests, answers, events, stop)
    events.stage("done", done=total, total=total)
    return DONE


class Answers:
    """The answers, in shards: lines {"place", "output"} or {"place", "error"}, whose place counts the requests
    from 0. What earlier attempts have answered is not asked again.
    """

    def __init__(self, shards: Shards, total: int) -> None:
        self.shards = shards
        self.done = bytearray(total)  # 1 for each place that is answered
        self.count = 0  # of them
        self.note(shards.lines())

    def add(self, answers: list[Answer]) -> None:
        """Some more."""
        self.note(answers)
        self.shards.add(answers)

    def note(self, answers: Iterable[Answer]) -> None:
        """Those places are answered."""
        for answer in answers:
            self.count += not self.done[answer["place"]]
            self.done[answer["place"]] = 1


def answer_rest(attempt: Attempt, requests: Path, answers: Answers, events: Events, stop: Stop) -> None:
    """Window by window, batch by batch. Whatever happens, what was answered is kept."""
    recipe, where = attempt.method, weights.device(attempt)
    learner = weights.reopened(attempt, recipe, merge=True)
    pace = Pace(answers, events)
    try:
        with torch.no_grad(), weights.autocast(where):
            for window in windows(requests, answers.done):
                asked, errors = encoded(recipe, learner, window, attempt.seed)
                with stop.later():
                    answers.add(errors)
                for batch in batches(asked, where.type):
                    fresh = answered(recipe, learner, batch)
                    with stop.later():
                        answers.add(fresh)
                    pace.tell(batch, fresh)
    finally:
        stop.patient = True
        answers.shards.close()


def count_lines(path: Path) -> int:
    """How many requests there are."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def windows(path: Path, done: bytearray) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """(place, request) of those that are not done, some thousands at a time."""
    window: list[tuple[int, dict[str, Any]]] = []
    with path.open(encoding="utf-8") as lines:
        for place, line in enumerate(lines):
            if not done[place]:
                window.append((place, json.loads(line)))
            if len(window) == WINDOW:
                yield window
                window = []
    if window:
        yield window


def encoded(
    recipe: Recipe, learner: Learner, window: list[tuple[int, dict[str, Any]]], seed: int
) -> tuple[list[Asked], list[Answer]]:
    """The requests that can be answered, and the errors of the others."""
    asked: list[Asked] = []
    errors: list[Answer] = []
    for place, request in window:
        if "error" in request:  # it was wrong before it came here
            errors.append({"place": place, "error": request["error"]})
            continue
        try:
            item = recipe.encode_input(request["input"], learner)
        except Refused as wrong:
            errors.append(refusal(place, wrong))
            continue
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as wrong:
            # an input is a stranger's JSON: one that nobody thought of is an error of its row alone
            errors.append(
                refusal(place, Refused(f"This input cannot be read: {wrong}.", code="invalid_input"))
            )
            continue
        # where no seed was asked for, each row draws by its own, the same in every attempt
        given: dict[str, Any] = {"seed": seed + place} | (request.get("sampling") or {})
        way = Sampling(**given)
        read = recipe.length(item)
        writes = way.max_tokens if "max_tokens" in recipe.samples_with else 0
        asked.append(Asked(place, item, way, read, (read + writes) * way.beams))
    return asked, errors


def refusal(place: int, wrong: Refused) -> Answer:
    """The answer to a request that is refused."""
    return {"place": place, "error": {"message": wrong.message, "code": wrong.code, "param": wrong.param}}


def batches(asked: list[Asked], device: str) -> Iterator[list[Asked]]:
    """Requests of like length, that may write about as much in the same number of beams, together; the
    dearest first.
    """
    batch: list[Asked] = []
    for one in sorted(asked, key=lambda one: (-one.way.beams, -one.way.max_tokens, -one.read)):
        full = len(batch) == AT_ONCE[device] or (len(batch) + 1) * dearest(batch, one) > BUDGET[device]
        if batch and (full or one.way.beams != batch[0].way.beams):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def dearest(batch: list[Asked], more: Asked) -> int:
    """What the dearest of them costs."""
    return max(one.cost for one in [*batch, more])


def answered(recipe: Recipe, learner: Learner, batch: list[Asked]) -> list[Answer]:
    """An answer to each; where memory runs out, in smaller batches. One that is refused has its error."""
    try:
        outputs = recipe.predict(learner, [one.item for one in batch], [one.way for one in batch])
    except (Refused, RuntimeError) as wrong:
        if not (isinstance(wrong, Refused) or exhausted.memory(wrong)):
            raise
        if len(batch) > 1:
            half = len(batch) // 2
            return answered(recipe, learner, batch[:half]) + answered(recipe, learner, batch[half:])
        if not isinstance(wrong, Refused):
            raise
        return [refusal(batch[0].place, wrong)]
    return [{"place": one.place, "output": output} for one, output in zip(batch, outputs, strict=True)]


class Pace:
    """Says how far it is and how fast, now and then."""

    def __init__(self, answers: Answers, events: Events) -> None:
        self.answers, self.events = answers, events
        self.before = answers.count
        self.began = self.said = time.monotonic()
        self.tokens = 0
        self.say()

    def tell(self, batch: list[Asked], answers: list[Answer]) -> None:
        """What was just answered."""
        self.tokens += sum(one.read for one in batch) + sum(written(one.get("output")) for one in answers)
        if time.monotonic() - self.said >= PAUSE:
            self.say()

    def say(self) -> None:
        """The line."""
        self.said = time.monotonic()
        done, total = self.answers.count, len(self.answers.done)
        told: dict[str, Any] = {"done": done, "total": total}
        if done > self.before:
            rate = (done - self.before) / (self.said - self.began)
            told |= {
                "rows_per_second": rate,
                "tokens_per_second": self.tokens / (self.said - self.began),
                "eta_seconds": (total - done) / rate,
            }
        self.events.stage("answering", **told)


def written(output: Any) -> int:
    """Tokens that an output took, where it was written token by token."""
    return output.get("completion_tokens", 0) if isinstance(output, dict) else 0
