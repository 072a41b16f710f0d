"""A model judged on every row of a dataset: metrics with intervals, what was found of each row, the worst and
the best of them, answers to look at.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shared.errors import Refused
from shared.recipe import Batch, Item, Judged, Learner, Recipe, Scores
from worker.engine import bootstrap, weights
from worker.engine.attempt import DONE, Attempt
from worker.engine.data import Rows, View, encode, joins_rows
from worker.engine.evaluation import HeldOut, declared, kept, quiet
from worker.engine.events import Events, finite
from worker.engine.items import Items
from worker.engine.memory import recall
from worker.engine.run import BUDGET, architecture

SHOWN = 20  # rows among the worst, and among the best
MOST_LISTED = 100  # rows that are left out, with their reasons
MOST_ANSWERED = 1000  # rows whose answer is kept
ANSWER_SECONDS = 120.0  # for answers to rows that are neither among the worst nor the best
AT_ONCE = 8  # rows answered together
LONGEST = 2000  # characters of a text in the results
LONGEST_SHOWN = 600  # and in the report
MOST_DETAIL = 256 * 1024  # bytes of the detail that pages draw
PAUSE = 1.0  # seconds between two words about how far it is


@dataclass
class Evaluation:
    """What an evaluation works on. `held.rows` are the rows that are judged, by place."""

    attempt: Attempt
    events: Events
    recipe: Recipe
    learner: Learner
    rows: Rows
    items: Items
    held: HeldOut

    def number(self, place: int) -> int:
        """The number of a judged row in the user's file."""
        return self.rows.in_file(self.rows.numbers[self.held.rows.places[place]])


def evaluate(attempt: Attempt, events: Events) -> int:
    """Judge the rows of `attempt.valid`: artifacts/results.jsonl has a line a row, in the order of the file,
    artifacts/report.json everything else. Returns the exit code. Raises Refused.
    """
    began = time.monotonic()
    events.stage("preparing")
    weights.device(attempt)
    run = prepared(attempt, events)
    found = judged(run, BUDGET[run.learner.device.type])
    listed = [found[place] for place in sorted(found)]
    scores = declared(run.recipe, run.recipe.measure(listed, run.learner.facts))
    lines = scored(run, found)
    seed = bootstrap.digest([line["row"] for line in lines])
    values = bootstrap.resampled(run.recipe, listed, run.learner.facts, seed, teller(events, "resampling"))
    report: dict[str, Any] = told(run, scores, lines, values) | {"rows_digest": seed}
    report["seconds"] = round(time.monotonic() - began, 1)
    events.log(
        f"{report['rows']} rows are judged and {report['left_out']['count']} left out; {report['answered']} answers"
        f" are kept; {report['resamples']} resamples."
    )
    events.stage("saving")
    with (attempt.artifacts / "results.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)
    (attempt.artifacts / "report.json").write_text(json.dumps(finite(report), ensure_ascii=False))
    events.stage("done")
    return DONE


# --- before -----------------------------------------------------------------------------------------


def prepared(attempt: Attempt, events: Events) -> Evaluation:
    """The model loaded and the rows encoded. Raises Refused where no row can be used."""
    recipe = attempt.method
    if attempt.valid is None:
        raise Refused("An evaluation needs rows.", param="dataset")
    rows = Rows(attempt.valid, recipe, attempt.columns)
    learner = opened(attempt)
    try:
        items = encode(rows, learner, recipe, attempt.cache, events)
    except Refused as wrong:
        raise Refused(wrong.message, param="dataset", code=wrong.code) from None
    held = HeldOut(rows, items, sorted(set(items.rows)), most=len(rows))
    return Evaluation(attempt, events, recipe, learner, rows, items, held)


def opened(attempt: Attempt) -> Learner:
    """The model to be judged; beside it what it is compared with, where the recipe does that: the weights that
    its training started from, or the model itself where it is a base model.
    """
    recipe = attempt.method
    learner = weights.reopened(attempt, recipe)
    learner.packs = recall(attempt.cache, "packs", architecture(attempt, learner))
    if recipe.needs_reference:
        adapted, before = weights.is_adapter(learner.model), attempt.reference
        if before and (before.adapter or not adapted):
            started = attempt.model_copy(update=before.model_dump())
            learner.frozen = weights.start_of_training(recipe, learner, started, learner.device)
        elif not adapted:
            learner.frozen = learner.model
    return learner


def left_out(run: Evaluation) -> list[dict[str, Any]]:
    """[{row, reason}] of the rows that cannot be used, in the order of the file."""
    refused = list(run.rows.refused)
    if not joins_rows(run.recipe):
        for place in sorted(set(range(len(run.rows))) - set(run.items.rows)):
            try:
                run.recipe.encode(run.rows[place], run.learner)
            except Refused as wrong:
                refused.append((run.rows.in_file(run.rows.numbers[place]), wrong.message))
    return [{"row": row, "reason": reason} for row, reason in sorted(refused)]


# --- judging ----------------------------------------------------------------------------------------


def teller(events: Events, detail: str) -> Callable[[int, int], None]:
    """Says how far it is, about once a second."""
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PAUSE or done == total:
            last = time.monotonic()
            events.stage("evaluating", detail=detail, done=done, total=total)

    return tell


def judged(run: Evaluation, budget: int) -> dict[int, Judged]:
    """{place: what was found of the row}; where memory runs out, in smaller batches."""
    batches = counted(run, run.held.batches(run.recipe, run.learner, budget))
    try:
        with quiet(run.learner, run.attempt.seed):
            return run.recipe.judge(run.learner, run.held.rows, batches)
    except torch.OutOfMemoryError:
        if budget < max(run.items.lengths):
            raise
    torch.cuda.empty_cache()
    return judged(run, budget // 2)


def counted(
    run: Evaluation, batches: Iterator[tuple[list[Item], Batch]]
) -> Iterator[tuple[list[Item], Batch]]:
    """The same batches, with word of how far they are."""
    tell, done = teller(run.events, "judging rows"), 0
    for items, batch in batches:
        yield items, batch
        done += len(items)
        tell(done, len(run.held.order))


def scored(run: Evaluation, found: dict[int, Judged]) -> list[dict[str, Any]]:
    """[{row, score, judged, prompt, expected, answer}] in the order of the file; the last three where the
    model was asked.
    """
    lines = {
        place: {
            "row": run.number(place),
            "score": run.recipe.row_score(found[place], run.learner.facts),
            "judged": found[place],
        }
        for place in sorted(found)
    }
    for place, sample in answered(run, list(lines), ranked(run.recipe, list(lines.values()))).items():
        lines[place] |= sample
    return list(lines.values())


def ranked(recipe: Recipe, lines: Sequence[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Places in `lines` of the worst rows, the worst first, and of the best, the best first; none is in both."""
    sign = 1 if recipe.metrics[0].better == "higher" else -1
    worth = [sign * line["score"] if math.isfinite(line["score"]) else -math.inf for line in lines]
    order = sorted(range(len(lines)), key=lambda n: (worth[n], lines[n]["row"]))
    half = (len(order) + 1) // 2
    return order[: min(SHOWN, half)], order[: half - 1 : -1][:SHOWN]


# --- answers ----------------------------------------------------------------------------------------


def answered(
    run: Evaluation, places: list[int], extremes: tuple[list[int], list[int]]
) -> dict[int, dict[str, Any]]:
    """{place: {prompt, expected, answer}}: of the worst and best rows always, of others as time allows. Those
    others come in the same order for every model, so that comparisons find answers to the same rows.
    """
    if type(run.recipe).sample is Recipe.sample:
        return {}
    first = [places[n] for part in extremes for n in part]
    others = random.Random(0).sample(places, len(places))
    order = list(dict.fromkeys(first + others))[:MOST_ANSWERED]
    tell, until, found = teller(run.events, "asking for answers"), time.monotonic() + ANSWER_SECONDS, {}
    with quiet(run.learner, run.attempt.seed):
        for start in range(0, len(order), AT_ONCE):
            if start >= len(first) and (time.monotonic() > until or any(map(has_media, found.values()))):
                break
            part = order[start : start + AT_ONCE]
            samples = [kept(one, run.attempt.media) for one in sampled(run, part)]
            found |= {place: cut(one, LONGEST) for place, one in zip(part, samples, strict=True) if one}
            tell(start + len(part), len(order))
    return found


def sampled(run: Evaluation, places: list[int]) -> list[dict[str, Any]]:
    """An answer for each of the rows; {} where the model cannot be asked that."""
    try:
        samples = run.recipe.sample(run.learner, View(run.held.rows, places))
        return samples if len(samples) == len(places) else [{}] * len(places)
    except (Refused, torch.OutOfMemoryError):
        return [{}] if len(places) == 1 else [one for place in places for one in sampled(run, [place])]


def has_media(sample: dict[str, Any]) -> bool:
    """Whether it holds a picture or a sound."""
    return any(isinstance(value, dict) and "media" in value for value in sample.values())


def cut(value: Any, longest: int) -> Any:
    """The same with long texts cut off."""
    if isinstance(value, str):
        return value if len(value) <= longest else value[: longest - 1] + "…"
    if isinstance(value, dict):
        return {name: cut(one, longest) for name, one in value.items()}
    return [cut(one, longest) for one in value[:longest]] if isinstance(value, list) else value


# --- the report -------------------------------------------------------------------------------------


def told(
    run: Evaluation, scores: Scores, lines: list[dict[str, Any]], values: dict[str, list[float | None]]
) -> dict[str, Any]:
    """The report: metrics, intervals and their resamples, rows that were left out, the worst and the best."""
    refused = left_out(run)
    worst, best = ([shown(lines[n]) for n in part] for part in ranked(run.recipe, lines))
    resamples = len(values[run.recipe.metrics[0].name])
    if resamples < bootstrap.LEAST:
        run.events.log(
            f"The metrics take so long to compute that only {resamples} resamples were made: there are no"
            " confidence intervals.",
            "warn",
        )
    return {
        "metrics": scores.metrics,
        "intervals": bootstrap.intervals(values),
        "resamples": resamples,
        "resampled": values,
        "rows": len(lines),
        "answered": sum("answer" in line for line in lines),
        "left_out": {"count": len(refused), "rows": refused[:MOST_LISTED]},
        "detail": bounded(scores.detail),
        "worst": worst,
        "best": best,
    }


def shown(line: dict[str, Any]) -> dict[str, Any]:
    """A row as a page shows it: its number and score, and the answer where there is one."""
    return cut({name: value for name, value in line.items() if name != "judged"}, LONGEST_SHOWN)


def bounded(detail: dict[str, Any]) -> dict[str, Any]:
    """The detail without what is too large to be drawn."""
    return {name: value for name, value in detail.items() if len(json.dumps(value)) <= MOST_DETAIL}
