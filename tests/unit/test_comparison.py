"""Models side by side: verdicts from paired draws, the rows on which models differ, places on a line."""

import json
from typing import Any

import numpy as np
import pytest

from shared.recipe import Metric
from web import comparison

F1, LOSS = Metric("f1", "F1", "higher"), Metric("loss", "Loss", "lower")


def told(name: str, value: float, resampled: list[float | None]) -> dict[str, Any]:
    return {"metrics": {name: value}, "resampled": {name: resampled}}


def draws(centre: float, spread: float, seed: int = 0) -> list[float | None]:
    return list(np.random.default_rng(seed).normal(centre, spread, 1000))


def test_a_quantile_is_numpy_s():
    values = sorted(np.random.default_rng(1).normal(size=997))
    for share in (0, 0.025, 0.5, 0.975, 1):
        assert comparison.quantile(values, share) == pytest.approx(np.quantile(values, share))


@pytest.mark.parametrize(
    ("metric", "moved", "verdict"),
    [(F1, 0.1, "better"), (F1, -0.1, "worse"), (LOSS, 0.1, "worse"), (LOSS, -0.1, "better")],
)
def test_paired_draws_tell_a_difference_that_is_smaller_than_either_interval(
    metric: Metric, moved: float, verdict: str
):
    first = draws(0.5, 0.3)
    noise = draws(moved, 0.01, seed=1)
    other: list[float | None] = [(a or 0) + (b or 0) for a, b in zip(first, noise, strict=True)]
    found = comparison.difference(
        metric, told(metric.name, 0.5, first), told(metric.name, 0.5 + moved, other)
    )
    assert found is not None
    assert found.verdict == verdict
    assert found.low is not None
    assert found.high is not None
    assert found.low <= moved <= found.high
    assert found.high - found.low < 0.1


def test_an_interval_that_holds_zero_is_no_clear_difference():
    found = comparison.difference(F1, told("f1", 0.5, draws(0.5, 0.1)), told("f1", 0.52, draws(0.52, 0.1, 1)))
    assert found is not None
    assert found.verdict == "unclear"
    same = told("f1", 0.5, draws(0.5, 0.1))
    alike = comparison.difference(F1, same, same)
    assert alike == comparison.Difference(0, 0, 0, "unclear")


def test_without_enough_draws_there_is_a_difference_and_no_verdict():
    few = told("f1", 0.5, [None] * 950 + [0.5] * 50)
    assert comparison.difference(F1, few, told("f1", 0.7, draws(0.7, 0.1))) == comparison.Difference(
        pytest.approx(0.2),  # ty: ignore[invalid-argument-type] - compares like the number
        None,
        None,
        "",
    )
    assert comparison.difference(F1, told("f1", 0.5, []), told("loss", 0.5, [])) is None


def line(row: int, score: float | None, **more: Any) -> str:
    return json.dumps({"row": row, "score": score, "judged": {}} | more)


def test_rows_that_all_have_come_answered_first_and_by_how_far_they_lie_apart():
    asked = {"prompt": "p", "expected": "e"}
    first = [line(1, 0.5, answer="a", **asked), line(2, 0.5, answer="a", **asked), line(3, 0.1), line(5, 0.5)]
    other = [line(1, 0.5, answer="a", **asked), line(2, 0.9, answer="b", **asked), line(3, 0.9), line(4, 0.5)]
    found = comparison.rows([first, other])
    assert [row.number for row in found] == [2, 1, 3]
    assert [row.differs for row in found] == [True, False, True]
    assert found[0].answers == ["a", "b"]
    assert (found[0].prompt, found[0].expected, found[2].answers) == ("p", "e", [None, None])
    assert found[0].apart == pytest.approx(0.4)


def test_messages_are_spoken_and_a_score_that_is_missing_breaks_nothing():
    prompt = [{"role": "user", "content": "hello"}]
    [row] = comparison.rows(
        [[line(1, None, prompt=prompt, expected="x", answer="")], [line(1, None, answer="y")]]
    )
    assert (row.prompt, row.answers, row.apart) == ("user: hello", ["", "y"], 0)


def test_shares_stand_between_zero_and_one_and_losses_as_far_as_they_reach():
    [share] = comparison.marks([(0.5, [0.4, 0.6])], whole=True)
    assert share == comparison.Mark(50, 40, 60)
    [loss] = comparison.marks([(2.0, [1.0, 4.0])], whole=True)
    assert loss is not None
    assert loss.high == pytest.approx(100 / 1.05, abs=0.01)
    below = comparison.marks([(-1.0, None), (1.0, None), (None, None)], whole=False)
    assert [mark.at if mark else None for mark in below] == [pytest.approx(8.33), pytest.approx(91.67), None]
    assert comparison.marks([(3.0, None)], whole=False) == [comparison.Mark(50, None, None)]
    assert comparison.marks([(None, None)], whole=True) == [None]
