"""Any recipe's Spec as a form: what is drawn, what is read, what is refused. The folder is the list."""

import pytest

from shared.errors import Refused
from shared.recipe import recipes
from shared.spec import resolve
from web import forms

EVERY = list(recipes().values())


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_a_form_sent_as_drawn_asks_for_nothing(recipe):
    drawn = {
        knob.name: "" if knob.default is None else str(knob.default) for knob in forms.knobs(recipe.spec)
    }
    flags = {f"{knob.name}-shown": "1" for knob in forms.knobs(recipe.spec) if knob.kind == "check"}
    ticked = {name: value for name, value in drawn.items() if value != "False"}
    assert forms.read(recipe.spec, ticked | flags) == {}


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_every_knob_has_a_title_and_a_kind(recipe):
    for knob in forms.knobs(recipe.spec):
        assert knob.title != knob.name, f"{recipe.name}.{knob.name} has no title"
        assert knob.kind in ("number", "integer", "choice", "check", "text")
        assert (knob.kind == "choice") == bool(knob.options)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_what_a_form_reads_makes_the_same_spec(recipe):
    asked = forms.read(
        recipe.spec, {"epochs": "2", "learning_rate": "1e-3", "max_steps": "1,000", "batch_size": "4"}
    )
    spec = resolve(recipe, asked)
    assert (spec.epochs, spec.learning_rate, spec.max_steps, spec.batch_size) == (2, 0.001, 1000, 4)


def test_every_wrong_value_gets_its_own_sentence():
    recipe = EVERY[0]
    asked = forms.read(recipe.spec, {"epochs": "lots", "learning_rate": "1e9", "batch_size": "4"})
    wrong = forms.problems(recipe, asked)
    assert set(wrong) == {"epochs", "learning_rate"}
    assert "lots" in wrong["epochs"]


@pytest.mark.parametrize(
    ("param", "field"),
    [("method.supervised.hyperparameters.learning_rate", "learning_rate"), ("training_file", "dataset"),
     ("columns.text", "column-text"), ("columns", "columns"), (None, ""), ("model", "model")],
)  # fmt: skip
def test_a_refusal_lands_at_its_field(param, field):
    assert forms.field_of(Refused("no", param=param)) == field


def test_bounds_are_told_in_words():
    told = {knob.name: knob.bounds for knob in forms.knobs(EVERY[0].spec)}
    assert told["batch_size"] == "1 to 1,024"
    assert told["epochs"] == "above 0, up to 100"
