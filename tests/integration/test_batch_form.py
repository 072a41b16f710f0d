"""The form for a batch: it shows the knobs that the chosen model reads, and takes what is typed in them."""

import re

import pytest
from sqlmodel import select

from shared import recipe as recipes
from shared.db import transaction
from shared.tables import Job, Kind, State
from tests.factories import a_base_model, a_checkpoint, a_dataset, a_job, a_team, a_user
from tests.visitor import LABELLED, Visitor, the_web


@pytest.fixture
def team(clean):
    with transaction() as db:
        return a_team(db)


@pytest.fixture
def member(team):
    with transaction() as db:
        person = a_user(db, team)
    return Visitor(the_web(), person)


def trained(team, recipe):
    """A checkpoint of a finished job of that recipe."""
    with transaction() as db:
        base = a_base_model(db, head=recipes.get(recipe).head)
        job = a_job(db, team, recipe=recipe, state=State.SUCCEEDED, base_model_id=base.id)
        return a_checkpoint(db, job).id


def knobs(visitor, model):
    page = visitor.get(f"/batches/new?model={model}").text
    return set(re.findall(r'name="(max_tokens|temperature|top_p|top_k|beams|seed|guidance)"', page))


def test_it_shows_the_knobs_that_the_models_recipe_reads(team, member):
    text = {"max_tokens", "temperature", "top_p", "top_k", "beams", "seed"}
    assert knobs(member, trained(team, "sft")) == text
    assert knobs(member, trained(team, "causal_lm")) == text
    assert knobs(member, trained(team, "text_to_image")) == {"seed", "guidance"}
    assert knobs(member, trained(team, "classification")) == set()


def test_what_is_typed_becomes_the_jobs_sampling_and_is_refused_beside_its_field(team, member):
    model = trained(team, "sft")
    with transaction() as db:
        version = a_dataset(db, team).id
    asked = {"model": model, "dataset": version, "max_tokens": "20", "beams": "4", "seed": "", "nonce": "n1"}
    wrong = member.post("/batches/new", **asked, temperature="0.5")
    assert wrong.status_code == 422
    assert "Beam search draws nothing" in wrong.text
    wrong = member.post("/batches/new", **asked | {"max_tokens": "many"}, temperature="0")
    assert "&#39;max_tokens&#39; must be a whole number from 1 to 32768." in wrong.text
    assert member.post("/batches/new", **asked, temperature="0").status_code == 303
    with transaction() as db:
        job = db.exec(select(Job).where(Job.kind == Kind.INFER)).one()
    assert job.spec["sampling"] == {"max_tokens": 20, "beams": 4, "temperature": 0}


def test_knobs_of_a_model_that_was_chosen_before_are_left_out(team, member):
    with transaction() as db:
        version = a_dataset(db, team, LABELLED).id
    asked = {"model": trained(team, "classification"), "dataset": version}
    assert member.post("/batches/new", **asked, temperature="0.5").status_code == 303
    with transaction() as db:
        assert db.exec(select(Job).where(Job.kind == Kind.INFER)).one().spec["sampling"] == {}
