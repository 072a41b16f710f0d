"""Architecture presets: listed, ready without an import, and only for jobs that can start from scratch."""

from typing import NamedTuple

import pytest

from shared import base_models, jobs, presets
from shared.db import transaction
from shared.errors import Refused
from shared.jobs import Order
from shared.tables import Kind, Ready, Team
from tests.factories import a_checkpoint, a_dataset, a_job, a_team, a_token, a_user
from tests.visitor import LABELLED, Api, Visitor, the_web


class Scene(NamedTuple):
    """A team that knows every preset, somebody of it, and its API."""

    team: Team
    somebody: Visitor
    api: Api


@pytest.fixture
def scene(clean: None) -> Scene:
    app = the_web()
    with transaction() as db:
        base_models.ensure_known(db)
        team = a_team(db)
        user, token = a_user(db, team), a_token(db, team)
    return Scene(team, Visitor(app, user), Api(app, token))


def test_every_architecture_has_three_sizes():
    known = {one["id"] for one in presets.every()}
    wanted = {f"scratch/{name}" for name in ("gpt", "llama", "lstm", "bert", "t5", "dit")}
    assert known == {f"{name}-{size}" for name in wanted for size in ("tiny", "mini", "small")}


def test_they_are_ready_and_listed(scene: Scene):
    listed = {model["id"]: model for model in scene.api.ask("GET", "/models").json["data"]}
    assert listed["scratch/gpt-tiny"]["x_state"] == Ready.READY
    assert scene.api.ask("GET", "/models/scratch/gpt-tiny").json["x_facts"]["heads"] == ["causal_lm"]
    page = scene.somebody.get("/models").text
    assert 'href="/models/scratch/bert-mini"' in page
    assert scene.somebody.get("/models/scratch/bert-mini").status_code == 200


def test_a_method_that_needs_weights_refuses_one(scene: Scene):
    with transaction() as db:
        version = a_dataset(db, scene.team, LABELLED)
        order = Order(team_id=scene.team.id, recipe="classification", model="scratch/bert-tiny",
                      dataset_version_id=version.id)  # fmt: skip
        with pytest.raises(Refused, match="has no weights yet") as refusal:
            jobs.submit(db, order)
    assert refusal.value.param == "model"
    form = scene.somebody.get("/jobs/new?recipe=classification").text
    assert "scratch/bert-tiny" not in form


def test_an_adapter_does_not_start_from_scratch(scene: Scene):
    with transaction() as db:
        version = a_dataset(db, scene.team, [{"source": "yes", "target": "ja"}] * 4)
        order = Order(team_id=scene.team.id, recipe="seq2seq", dataset_version_id=version.id,
                      hyperparameters={"method": "lora"}, param="method.seq2seq.hyperparameters.")  # fmt: skip
        with pytest.raises(Refused, match="stands on trained weights") as refusal:
            jobs.submit(db, order)
    assert refusal.value.param == "method.seq2seq.hyperparameters.method"


def test_a_checkpoint_of_one_can_be_fine_tuned(scene: Scene):
    with transaction() as db:
        version = a_dataset(db, scene.team, LABELLED)
        pretrained = a_job(db, scene.team, base_model_id="scratch/bert-tiny", dataset_version_id=version.id)
        checkpoint = a_checkpoint(db, pretrained)
        order = Order(team_id=scene.team.id, recipe="classification", model=checkpoint.id,
                      dataset_version_id=version.id)  # fmt: skip
        job = jobs.submit(db, order)
    assert (job.base_model_id, job.checkpoint_id) == ("scratch/bert-tiny", checkpoint.id)


def test_nothing_is_answered_without_weights(scene: Scene):
    with transaction() as db:
        version = a_dataset(db, scene.team, LABELLED)
        order = Order(
            team_id=scene.team.id, kind=Kind.INFER, model="scratch/gpt-tiny", dataset_version_id=version.id
        )
        with pytest.raises(Refused, match="no weights yet"):
            jobs.submit(db, order)
