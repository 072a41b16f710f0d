"""A model judged on every row of a dataset, by the engine alone, on tiny models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.formats import ROW
from shared.recipe import Judged, get
from tests.attempts import TINY, checkpoints, events, json_lines, parquet, run_here, write_attempt
from worker.engine import bootstrap
from worker.engine.evaluate import ranked

WORDS = ["rain", "snow", "sun", "wind"]
LABELLED = [
    {ROW: n + 2, "text": f"{WORDS[n % 4]} number {n}", "label": "wet" if n % 4 < 2 else "dry"}
    for n in range(40)
]
CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"What is {word}?"},
            {"role": "assistant", "content": f"{word} is weather"},
        ]
    }
    for word in WORDS * 3
]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "artifacts" / "report.json").read_text())


def results(folder: Path) -> list[dict[str, Any]]:
    return json_lines((folder / "artifacts" / "results.jsonl").read_text())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a classifier that has learned the forty rows a little."""
    folder = tmp_path_factory.mktemp("classifier")
    base = TINY["encoder"](folder / "tiny")
    spec = {"epochs": 4, "batch_size": 8, "learning_rate": 0.01, "checkpoints": 1, "evaluations": 1}
    train = write_attempt(folder / "train", recipe="classification", spec=spec, base_model=base,
                          columns={"text": "text", "label": "label"}, train=parquet(folder / "rows.parquet", LABELLED))  # fmt: skip
    assert run_here(train) == 0
    return checkpoints(train)[-1] / "servable"


def evaluated(folder: Path, rows: list[dict[str, Any]], base: Path, **fields: Any) -> Path:
    """An evaluation of a classifier, done."""
    data = parquet(folder.with_suffix(".parquet"), rows)
    told = {"recipe": "classification", "columns": {"text": "text", "label": "label"}} | fields
    attempt = write_attempt(folder, kind="evaluate", valid=data, base_model=base, **told)
    assert run_here(attempt) == 0, events(attempt, "error")
    return attempt


@pytest.fixture(scope="module")
def done(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier judged on the rows that it has learned."""
    return evaluated(tmp_path_factory.mktemp("done") / "evaluate", LABELLED, classifier)


def test_every_row_is_judged_and_the_metrics_are_those_of_the_rows(done: Path):
    lines, told = results(done), report(done)
    assert [line["row"] for line in lines] == [row[ROW] for row in LABELLED]
    assert told["rows"] == told["answered"] == 40
    right = sum(line["judged"]["truth"] == line["judged"]["guess"] for line in lines)
    assert told["metrics"]["accuracy"] == pytest.approx(right / 40)
    assert [line["expected"] for line in lines] == [row["label"] for row in LABELLED]
    agrees = [(line["answer"] == line["expected"]) for line in lines]
    assert sum(agrees) == right
    assert set(told["metrics"]) == {metric.name for metric in get("classification").metrics}
    assert sum(map(sum, told["detail"]["confusion"]["matrix"])) == 40


def test_each_metric_lies_in_its_interval_and_an_interval_is_the_middle_of_the_resamples(done: Path):
    told = report(done)
    assert told["resamples"] == bootstrap.MOST
    assert set(told["intervals"]) == set(told["metrics"])
    for name, (low, high) in told["intervals"].items():
        assert low <= told["metrics"][name] <= high
        inside = sum(low <= one <= high for one in told["resampled"][name]) / told["resamples"]
        assert (
            inside == pytest.approx(0.95, abs=0.01) or inside > 0.95
        )  # a metric of few rows takes few values


def test_the_worst_and_the_best_rows_are_shown_with_answers_and_none_is_in_both(done: Path):
    told = report(done)
    scores = [[line["score"] for line in told[part]] for part in ("worst", "best")]
    assert scores[0] == sorted(scores[0])
    assert scores[1] == sorted(scores[1], reverse=True)
    assert max(scores[0]) <= min(scores[1])
    rows = [line["row"] for part in ("worst", "best") for line in told[part]]
    assert len(rows) == len(set(rows)) == 40
    assert all({"prompt", "expected", "answer"} <= line.keys() for line in told["worst"])


def test_rows_that_cannot_be_used_are_listed_with_their_reason_also_from_the_cache(
    classifier: Path, tmp_path: Path
):
    rows = [*LABELLED[:6], {ROW: 90, "text": "hail", "label": "hard"}, {ROW: 95, "text": " ", "label": "wet"}]
    cache = tmp_path / "cache"
    for name in ("first", "again"):
        told = report(evaluated(tmp_path / name, rows, classifier, cache=cache))
        assert told["left_out"]["count"] == 2
        (first, why), (second, blank) = [(one["row"], one["reason"]) for one in told["left_out"]["rows"]]
        assert (first, second) == (90, 95)
        assert "«hard»" in why
        assert "empty" in blank
        assert told["rows"] == 6


def test_no_usable_row_is_a_refusal_that_names_the_dataset(classifier: Path, tmp_path: Path):
    data = parquet(tmp_path / "rows.parquet", [{"text": "hail", "label": "hard"}])
    attempt = write_attempt(tmp_path / "evaluate", kind="evaluate", recipe="classification", valid=data,
                            base_model=classifier, columns={"text": "text", "label": "label"})  # fmt: skip
    assert run_here(attempt) == 10
    assert events(attempt, "error")[0]["data"]["param"] == "dataset"


def test_a_base_model_and_a_checkpoint_of_it_are_judged_on_the_same_draws(tmp_path: Path):
    base = TINY["causal_lm"](tmp_path / "tiny")
    data = parquet(tmp_path / "rows.parquet", CHAT)
    common = {"recipe": "sft", "columns": {"messages": "messages"}, "base_model": base}
    spec = {"epochs": 6, "batch_size": 4, "learning_rate": 0.01, "max_length": 96, "evaluations": 1}
    train = write_attempt(tmp_path / "train", train=data, spec=spec, **common)
    assert run_here(train) == 0
    told = []
    for name, adapter in (("before", None), ("after", checkpoints(train)[-1] / "servable")):
        attempt = write_attempt(
            tmp_path / name, kind="evaluate", valid=data, adapter=adapter, spec=spec, **common
        )
        assert run_here(attempt) == 0
        told.append(report(attempt))
    before, after = told
    assert before["rows_digest"] == after["rows_digest"]
    assert after["metrics"]["loss"] < before["metrics"]["loss"]
    differences = np.array(after["resampled"]["loss"]) - np.array(before["resampled"]["loss"])
    assert np.quantile(differences, 0.975) < 0
    assert before["answered"] == len(CHAT)
    assert isinstance(before["worst"][0]["prompt"], list)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences_are_judged_against_what_the_training_started_from(tmp_path: Path, method: str):
    base = TINY["causal_lm"](tmp_path / "tiny")
    pairs = [
        {"prompt": f"What is {word}?", "chosen": f"{word} is weather", "rejected": "no"} for word in WORDS * 3
    ]
    data = parquet(tmp_path / "rows.parquet", pairs)
    common = {
        "recipe": "dpo",
        "columns": {name: name for name in pairs[0]},
        "base_model": base,
        "valid": data,
    }
    spec = {
        "method": method,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.005,
        "evaluations": 1,
        "checkpoints": 1,
    }
    train = write_attempt(tmp_path / "train", train=data, spec=spec, **common)
    assert run_here(train) == 0
    trained = checkpoints(train)[-1] / "servable"
    weights = {"adapter": trained} if method == "lora" else {"base_model": trained}
    after = write_attempt(
        tmp_path / "after", kind="evaluate", reference={"base_model": str(base)}, **common | weights
    )
    before = write_attempt(tmp_path / "before", kind="evaluate", **common)
    assert run_here(after) == run_here(before) == 0
    [last] = [
        event["data"]["metrics"] for event in events(train, "eval") if event["data"]["which"] == "tuned"
    ]
    assert report(after)["metrics"] == pytest.approx(last, rel=1e-4)
    assert report(before)["metrics"]["accuracy"] == 0.5  # a model is as likely as itself: all ties


def test_metrics_of_sums_are_resampled_as_if_each_row_were_added_up():
    recipe = get("sft")
    dice = np.random.default_rng(3)
    found: list[Judged] = [
        {"loss": float(a), "weight": float(b), "right": 1.0} for a, b in dice.uniform(1, 9, (30, 2))
    ]
    drawn = dice.integers(30, size=30)
    fast = bootstrap.measurer(recipe, found, {})(drawn)
    slow = recipe.measure([found[n] for n in drawn], {}).metrics
    assert fast == pytest.approx(slow)


def test_where_a_metric_takes_long_fewer_resamples_are_made_and_too_few_make_no_interval(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bootstrap, "SECONDS", 0.0)
    done = evaluated(tmp_path / "evaluate", LABELLED, classifier)
    assert report(done)["resamples"] < bootstrap.LEAST
    assert report(done)["intervals"] == {}
    assert any("no confidence intervals" in event["data"]["message"] for event in events(done, "log"))


def test_a_lower_loss_is_better_where_the_first_metric_says_so():
    lines = [{"row": n, "score": score} for n, score in enumerate([0.5, float("nan"), 3.0, 1.0])]
    assert ranked(get("sft"), lines) == ([1, 2], [0, 3])
    assert ranked(get("classification"), lines) == ([1, 0], [2, 3])


def test_how_far_it_is_is_told(done: Path):
    told = [event["data"] for event in events(done, "stage") if event["data"]["stage"] == "evaluating"]
    assert {"judging rows", "resampling", "asking for answers"} == {one["detail"] for one in told}
    assert all(one["done"] <= one["total"] for one in told)
