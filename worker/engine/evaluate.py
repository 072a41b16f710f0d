"""A model judged on every row of a dataset: metrics with intervals, what was found of each row, the worst and
the best of them, answers to look at. What was found is kept in shards, so that a kill costs little.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shared.errors import Refused
from shared.recipe import Judged, Learner, Recipe, Scores
from worker.engine import bootstrap, exhausted, weights
from worker.engine.attempt import DONE, Attempt, Stop
from worker.engine.data import Rows, View, encode, fingerprint, joins_rows, portions, seed_of
from worker.engine.evaluation import HeldOut, declared, quiet, sampled
from worker.engine.events import Events, finite
from worker.engine.findings import ByRow, Findings
from worker.engine.items import Items
from worker.engine.memory import recall
from worker.engine.run import BUDGET, architecture
from worker.engine.shards import Line, Shards

SHOWN = 20  # rows among the worst, and among the best
MOST_LISTED = 100  # rows that are left out, with their reasons
MOST_ANSWERED = 1000  # rows whose answer is kept
ANSWER_SECONDS = 120.0  # for answers to rows that are neither among the worst nor the best
AT_ONCE = 8  # rows answered together
WRITTEN_AT_ONCE = 64  # rows of those whose answers are judged
LONGEST = 2000  # characters of a text in the results
LONGEST_SHOWN = 600  # and in the report
MOST_DETAIL = 256 * 1024  # bytes of the detail that pages draw
PAUSE = 1.0  # seconds between two words about how far it is


@dataclass
class Evaluation:
    """What an evaluation works on, and what it has found. `held.rows` are the rows that are judged, by place."""

    attempt: Attempt
    events: Events
    recipe: Recipe
    learner: Learner
    rows: Rows
    items: Items
    held: HeldOut
    findings: Findings
    stop: Stop

    def number(self, place: int) -> int:
        """The number of a judged row in the user's file."""
        return self.rows.in_file(self.rows.numbers[self.held.rows.places[place]])

    def keep(self, lines: Sequence[Line]) -> None:
        """What was found; a stop waits until it is kept."""
        with self.stop.later():
            self.findings.add(lines)


def evaluate(attempt: Attempt, events: Events, stop: Stop) -> int:
    """Judge the rows of `attempt.valid`: artifacts/results.jsonl has a line a row, in the order of the file,
    artifacts/report.json everything else. What the shards of earlier attempts tell is not found out again.
    Returns the exit code. Raises Refused.
    """
    began = time.monotonic()
    events.stage("preparing")
    weights.device(attempt)
    run = prepared(attempt, events, stop)
    try:
        found = judged(run)
        lines = scored(run, found)
    finally:
        stop.patient = True
        run.findings.shards.close()
    stop.patient = False
    report(run, found, lines, began)
    events.stage("done")
    return DONE


def report(run: Evaluation, found: dict[int, Judged], lines: list[dict[str, Any]], began: float) -> None:
    """Writes what came out."""
    attempt, events = run.attempt, run.events
    listed = [found[place] for place in sorted(found)]
    scores = declared(run.recipe, run.recipe.measure(listed, run.learner.facts))
    seed = bootstrap.digest([line["row"] for line in lines])
    values = bootstrap.resampled(run.recipe, listed, run.learner.facts, seed, teller(events, "resampling"))
    summary: dict[str, Any] = told(run, scores, lines, values) | {"rows_digest": seed}
    summary["seconds"] = round(time.monotonic() - began, 1)
    events.log(
        f"{summary['rows']} rows are judged and {summary['left_out']['count']} left out; {summary['answered']}"
        f" answers are kept; {summary['resamples']} resamples."
    )
    events.stage("saving")
    with (attempt.artifacts / "results.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)
    (attempt.artifacts / "report.json").write_text(json.dumps(finite(summary), ensure_ascii=False))


# --- before -----------------------------------------------------------------------------------------


def prepared(attempt: Attempt, events: Events, stop: Stop) -> Evaluation:
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
    shards = Shards(attempt.artifacts / "shards", events, media=attempt.media)
    findings = Findings(shards, fingerprint(rows, learner, recipe)[:16])
    return Evaluation(attempt, events, recipe, learner, rows, items, held, findings, stop)


def opened(attempt: Attempt) -> Learner:
    """The model to be judged; beside it what it is compared with, where the recipe does that: the weights that
    its training started from, or the model itself where it is a base model.
    """
    recipe = attempt.method
    learner = weights.reopened(attempt, recipe, merge=not recipe.needs_reference)
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


def judged(run: Evaluation) -> dict[int, Judged]:
    """{place: what was found of the row}."""
    with quiet(run.learner, run.attempt.seed):
        judge_items(run, BUDGET[run.learner.device.type])
        found = run.recipe.settled(run.learner, run.held.rows, run.findings.judged)
        judge_answers(run)
    return {place: one | run.findings.answered.get(place, {}) for place, one in found.items()}


def judge_items(run: Evaluation, budget: int) -> None:
    """Batch by batch, those that are not judged; where memory runs out, in smaller batches."""
    tell = teller(run.events, "judging rows")
    rest = [place for place in run.held.order if place not in run.findings.items]
    try:
        for places in portions(rest, run.items.lengths, budget):
            torch.manual_seed(seed_of(run.attempt.seed, 0, places[0]))
            items, batch = run.held.batch(places, run.recipe, run.learner)
            told = zip(places, items, run.recipe.judged_items(run.learner, items, batch), strict=True)
            run.keep([{"item": place, "row": item["row"], "judged": one} for place, item, one in told])
            tell(len(run.findings.items), len(run.held.order))
        return
    except RuntimeError as wrong:
        if not exhausted.memory(wrong) or budget < max(run.items.lengths):
            raise
    torch.cuda.empty_cache()
    judge_items(run, budget // 2)


def judge_answers(run: Evaluation) -> None:
    """What the metrics need of the model's own answers: some rows at a time, always the same ones together."""
    rows, learner = run.held.rows, run.learner
    tell, places = teller(run.events, "judging answers"), run.recipe.asks(learner, rows)
    items = ByRow(run.items, run.held.order, run.held.renumbered)
    for start in range(0, len(places), WRITTEN_AT_ONCE):
        part = places[start : start + WRITTEN_AT_ONCE]
        if run.findings.answered.keys() >= set(part):
            continue
        torch.manual_seed(seed_of(run.attempt.seed, 0, part[0]))
        found = run.recipe.answered(learner, rows, items, part)
        run.keep([{"row": place, "answered": found.get(place, {})} for place in part])
        tell(start + len(part), len(places))


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
    tell, until = teller(run.events, "asking for answers"), time.monotonic() + ANSWER_SECONDS
    found = run.findings.samples
    with quiet(run.learner, run.attempt.seed):
        for start in range(0, len(order), AT_ONCE):
            part = order[start : start + AT_ONCE]
            if found.keys() >= set(part):
                continue
            if start >= len(first) and (time.monotonic() > until or any(map(has_media, found.values()))):
                break
            torch.manual_seed(seed_of(run.attempt.seed, 0, part[0]))
            samples = zip(part, samples_of(run, part), strict=True)
            run.keep([{"row": place, "sample": cut(one, LONGEST)} for place, one in samples])
            tell(start + len(part), len(order))
    return {place: sample for place, sample in found.items() if sample}


def samples_of(run: Evaluation, places: list[int]) -> list[dict[str, Any]]:
    """An answer for each of the rows; {} where the model cannot be asked that."""
    samples = sampled(run.recipe, run.learner, View(run.held.rows, places))
    return samples if len(samples) == len(places) else [{}] * len(places)


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
