"""Answers to requests: in batches of like length, written in the order they came, resumable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shared.errors import Refused
from shared.recipe import Item, Learner, Recipe, Sampling
from worker.engine import weights
from worker.engine.attempt import DONE, Attempt
from worker.engine.evaluation import kept
from worker.engine.events import Events, drop_half_line

WINDOW = 256  # requests read, sorted and answered together
AT_ONCE = {"cpu": 16, "cuda": 128}  # in one batch
BUDGET = {"cpu": 4096, "cuda": 65_536}  # tokens in one batch


def infer(attempt: Attempt, events: Events) -> int:
    """Answer every request in `attempt.requests` into artifacts/predictions.jsonl. Returns the exit code.

    Goes on after the last whole line of an earlier attempt in the same folder. A request that cannot
    be answered gets its error; the others go on.
    """
    if attempt.requests is None:
        raise Refused("An inference job needs requests.", param="input_file_id")
    events.stage("preparing")
    where = weights.device(attempt)
    learner = weights.reopened(attempt, attempt.method)
    path, media = attempt.artifacts / "predictions.jsonl", attempt.artifacts / "media"
    media.mkdir(exist_ok=True)
    done, total = drop_half_line(path), count_lines(attempt.requests)
    with path.open("a", encoding="utf-8") as out, torch.no_grad(), weights.autocast(where):
        for window in windows(attempt.requests, skip=done):
            events.stage("evaluating", detail="answering requests", done=done, total=total)
            for line in answered(attempt.method, learner, window, media):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            done += len(window)
    events.stage("done", done=done, total=total)
    return DONE


def count_lines(path: Path) -> int:
    """How many requests there are."""
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def windows(path: Path, skip: int) -> Iterator[list[dict[str, Any]]]:
    """The requests from number `skip` on, some hundreds at a time."""
    window: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        lines = (line for line in file if line.strip())
        for number, line in enumerate(lines):
            if number >= skip:
                window.append(json.loads(line))
            if len(window) == WINDOW:
                yield window
                window = []
    if window:
        yield window


def answered(
    recipe: Recipe, learner: Learner, window: list[dict[str, Any]], media: Path
) -> list[dict[str, Any]]:
    """{"row", "output"} or {"row", "error": {message, code, param}} for each request, in their order.

    Pictures and sounds go to the folder `media`; an output names them as {"media": name}.
    """
    lines: dict[int, dict[str, Any]] = {}
    asked: list[tuple[int, Item, Sampling]] = []
    for place, request in enumerate(window):
        if "error" in request:  # it was wrong before it came here
            lines[place] = {"row": request["row"], "error": request["error"]}
            continue
        try:
            way = Sampling(**(request.get("sampling") or {}))
            asked.append((place, recipe.encode_input(request["input"], learner), way))
        except Refused as wrong:
            told = {"message": wrong.message, "code": wrong.code, "param": wrong.param}
            lines[place] = {"row": request["row"], "error": told}
    for batch in batches(recipe, asked, learner.device.type):
        outputs = recipe.predict(learner, [item for _, item, _ in batch], [way for _, _, way in batch])
        for (place, _, _), output in zip(batch, outputs, strict=True):
            lines[place] = {"row": window[place]["row"], "output": kept(output, media)}
    return [lines[place] for place in range(len(window))]


def batches(
    recipe: Recipe, asked: list[tuple[int, Item, Sampling]], device: str
) -> Iterator[list[tuple[int, Item, Sampling]]]:
    """Requests of like length, and that may write about as much, together; the longest first."""
    batch: list[tuple[int, Item, Sampling]] = []
    longest = 0
    for one in sorted(asked, key=lambda one: (-one[2].max_tokens, -recipe.length(one[1]))):
        cost = recipe.length(one[1]) + one[2].max_tokens
        if batch and (
            len(batch) == AT_ONCE[device] or max(longest, cost) * (len(batch) + 1) > BUDGET[device]
        ):
            yield batch
            batch, longest = [], 0
        batch.append(one)
        longest = max(longest, cost)
    if batch:
        yield batch
