"""Cells that nobody would write: each is a finding with its row, and never an error."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.recipe import Recipe, get, recipes

EVERY = pytest.mark.parametrize("recipe", recipes().values(), ids=lambda recipe: recipe.name)
NAMES = ("role", "from", "content", "value", "weight", "messages", "text", "answer_start", "en", "de")
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
WORDS = st.sampled_from(["user", "assistant", "system", "[", "{", "[" * 100_000, '{"text": 1}', "heavy"])
CELLS = st.recursive(
    PLAIN | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
        | st.fixed_dictionaries({"role": st.just("user"), "content": inner, "weight": inner}).map(
            lambda one: [one]
        )
    ),
    max_leaves=8,
)


@EVERY
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_cell_breaks_the_findings(recipe: Recipe, data: st.DataObject):
    columns = recipe.recognise(recipe.example[0]) or {}
    text = {one.name for one in recipe.columns if one.kind not in ("image", "audio")}
    cells = {theirs: data.draw(CELLS) for mine, theirs in columns.items() if mine in text}
    list(recipe.findings([recipe.example[0], recipe.example[1] | cells], columns))


def test_a_weight_that_is_no_number_is_named_with_its_row():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": [talk[0], talk[1] | weight]} for weight in ({}, {"weight": "heavy"})]
    (found,) = get("sft").check(rows, {"messages": "messages"})
    assert (found.row, found.fatal) == (2, True)
    assert "The weight of message 2 must be a number" in found.message


def test_a_row_that_nobody_thought_of_is_a_finding_with_its_number(monkeypatch: pytest.MonkeyPatch):
    recipe = get("seq2seq")
    honest = recipe.canonical

    def breaks(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        if row["source"] == "bad":
            raise RecursionError
        return honest(row, columns)

    monkeypatch.setattr(recipe, "canonical", breaks)
    rows = [{"source": "good", "target": "a"}, {"source": "bad", "target": "b"}]
    (found,) = recipe.check(rows, {"source": "source", "target": "target"})
    assert (found.row, found.fatal) == (2, True)
    assert "RecursionError" in found.message
