"""Evaluations in the browser without scripts: the form, the page, models side by side."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from sqlmodel import col, select

from shared.db import transaction
from shared.tables import Job, Kind, State
from tests.factories import a_base_model, a_checkpoint, a_dataset, a_job, a_team, a_user, an_evaluation
from tests.visitor import LABELLED, Visitor


@pytest.fixture
def scene(app):
    """A member of a team with a classifier's two checkpoints, a chat model, labelled rows."""
    with transaction() as db:
        team = a_team(db)
        encoder, chat = a_base_model(db, head="encoder"), a_base_model(db)
        labelled = a_dataset(db, team, LABELLED, name="intents")
        trained = a_job(db, team, name="sorter", recipe="classification", state=State.SUCCEEDED, base_model_id=encoder.id,
                        dataset_version_id=labelled.id)  # fmt: skip
        first, best = a_checkpoint(db, trained, 10), a_checkpoint(db, trained, 20)
        trained.best_checkpoint_id = best.id
        talk, user = a_dataset(db, team, name="talk"), a_user(db, team)
    return SimpleNamespace(visitor=Visitor(app, user), team=team, first=first, best=best, chat=chat, labelled=labelled,
                           talk=talk, encoder=encoder)  # fmt: skip


def evaluated(db: Any, scene: Any, checkpoint: Any, shift: float, answers: list[str], **fields: Any) -> Job:
    """An evaluation of that checkpoint whose metrics lie `shift` above 0.5, its rows answered so."""
    lines = [
        {"row": n, "score": float(answer == "yes"), "judged": {}, "prompt": f"text {n}", "expected": "yes", "answer": answer}
        for n, answer in enumerate(answers, 2)
    ]  # fmt: skip
    given = {
        "checkpoint_id": checkpoint.id,
        "base_model_id": scene.encoder.id,
        "dataset_version_id": scene.labelled.id,
    }
    return an_evaluation(db, scene.team, lines, 0.5 + shift, **given | fields)


@pytest.fixture
def pair(scene):
    with transaction() as db:
        worse = evaluated(db, scene, scene.first, 0.0, ["yes", "no", "no"])
        better = evaluated(db, scene, scene.best, 0.2, ["yes", "yes", "no"], name="monthly")
        return worse, better


def jobs_of_kind() -> list[Job]:
    with transaction() as db:
        return list(db.exec(select(Job).where(Job.kind == Kind.EVALUATE).order_by(col(Job.id))).all())


def words(answer: Any) -> str:
    """What a page says, without its tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.text))


# --- the form ---------------------------------------------------------------------------------------


def test_the_form_offers_best_checkpoints_then_base_models_with_weights(scene):
    page = scene.visitor.get(f"/evaluations/new?model={scene.best.id}&dataset={scene.labelled.id}")
    assert re.search(rf'value="{scene.best.id}"[^>]* checked', page.text)
    assert f'value="{scene.first.id}"' in page.text
    assert f'value="{scene.chat.id}"' in page.text
    assert "scratch/" not in page.text
    assert "Ready" in words(page)
    assert "label is label" in words(page)


def test_a_base_model_alone_is_judged_as_what_it_can_be(scene):
    page = scene.visitor.get(f"/evaluations/new?model={scene.chat.id}&dataset={scene.talk.id}")
    assert 'name="recipe"' in page.text
    assert "Loss, Perplexity" in words(page)
    both = scene.visitor.get(f"/evaluations/new?model={scene.chat.id}&model={scene.best.id}")
    assert 'name="recipe"' not in both.text


def test_one_model_leads_to_its_page_and_a_second_click_changes_nothing(scene):
    sent = {"model": scene.best.id, "dataset": scene.labelled.id, "name": "monthly", "nonce": "n1"}
    places = [scene.visitor.post("/evaluations/new", **sent) for _ in range(2)]
    [job] = jobs_of_kind()
    assert [(place.status_code, place.location) for place in places] == [(303, f"/jobs/{job.id}")] * 2
    assert (job.name, job.checkpoint_id, job.recipe) == ("monthly", scene.best.id, "classification")
    other = scene.visitor.post("/evaluations/new", **sent | {"name": "another"})
    assert other.status_code == 422
    assert "already started" in words(other)


def test_several_models_lead_to_their_comparison(scene):
    sent = {"model": [scene.best.id, scene.first.id], "dataset": scene.labelled.id}
    place = scene.visitor.post("/evaluations/new", **sent)
    best, first = jobs_of_kind()
    assert (best.checkpoint_id, first.checkpoint_id) == (scene.best.id, scene.first.id)
    assert place.location == f"/evaluations/compare?comparison={best.labels['comparison']}"
    page = scene.visitor.get(place.location)
    assert "0 of 2 are judged" in words(page)
    assert 'hx-trigger="tick from:body"' in page.text


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"dataset": ""}, "dataset", "Choose the dataset"),
        ({"model": []}, "model", "Choose a model."),
        ({"model": ["ftckpt_none"]}, "model", "does not exist"),
        ({"name": "x" * 201}, "name", "200 are the most"),
    ],
)
def test_what_is_wrong_stands_beside_its_field(scene, change, field, sentence):
    sent = {"model": [scene.best.id], "dataset": scene.labelled.id} | change
    answer = scene.visitor.post("/evaluations/new", **sent)
    assert answer.status_code == 422
    beside = re.search(rf'id="{field}-wrong">(.*?)</p>', answer.text, re.DOTALL)
    assert beside
    assert sentence in re.sub("<[^>]+>", "", beside[1])
    assert jobs_of_kind() == []


# --- the page of one --------------------------------------------------------------------------------


def test_the_page_shows_metrics_with_intervals_worst_rows_and_what_is_left_out(scene, pair):
    worse, better = pair
    said = words(scene.visitor.get(f"/jobs/{better.id}"))
    assert "F1 (macro) higher is better 0.700" in said
    assert "0.680 to 0.720" in said
    assert "Worst rows" in said
    assert "1 row is left out" in said
    assert "The text is empty." in said
    assert "sorter, step 10" in said  # to compare with
    assert "/v1/evaluations" in said
    waiting = scene.visitor.get(f"/jobs/{worse.id}")
    assert waiting.status_code == 200


def test_the_page_of_one_that_waits_says_what_will_be_there(scene):
    with transaction() as db:
        job = a_job(db, scene.team, Kind.EVALUATE, recipe="classification", dataset_version_id=scene.labelled.id,
                    base_model_id=scene.encoder.id)  # fmt: skip
    said = words(scene.visitor.get(f"/jobs/{job.id}"))
    assert "appear here once every row is judged" in said
    assert "Judging" in said


def test_the_list_of_jobs_shows_what_an_evaluation_found(scene, pair):
    said = words(scene.visitor.get("/jobs"))
    assert "judged on a dataset" in said
    assert "0.700" in said


# --- side by side -----------------------------------------------------------------------------------


def test_the_difference_is_told_with_its_interval_and_a_verdict(scene, pair):
    worse, better = pair
    said = words(scene.visitor.get(f"/evaluations/compare?job={worse.id}&job={better.id}"))
    assert "+0.200 (+0.200 to +0.200) better" in said
    assert "sorter, step 10" in said
    assert "sorter, step 20" in said
    turned = words(scene.visitor.get(f"/evaluations/compare?job={better.id}&job={worse.id}"))
    assert "−0.200 (−0.200 to −0.200) worse" in turned
    alike = words(scene.visitor.get(f"/evaluations/compare?job={better.id}"))
    assert "Rows, those that differ most first" not in alike


def test_rows_on_which_models_agree_are_shown_on_demand(scene, pair):
    worse, better = pair
    address = f"/evaluations/compare?job={worse.id}&job={better.id}"
    differing = words(scene.visitor.get(address))
    assert "Differences only, 1" in differing
    assert "text 3" in differing
    assert "text 4" not in differing
    every = words(scene.visitor.get(address + "&all=1"))
    assert "All, 3" in every
    assert every.index("text 3") < every.index("text 2") < every.index("text 4")


def test_rows_come_a_page_at_a_time(scene, monkeypatch):
    monkeypatch.setattr("web.compare.SHOWN", 2)
    with transaction() as db:
        ids = [evaluated(db, scene, scene.first, 0.0, [a] * 5).id for a in ("yes", "no")]
    address = f"/evaluations/compare?job={ids[0]}&job={ids[1]}"
    first = scene.visitor.get(address)
    following = re.search(r'href="([^"]*from=2)#rows"', first.text)
    assert following
    second = words(scene.visitor.get(following[1].replace("&amp;", "&")))
    assert "text 4" in second
    assert "text 2" not in second
    assert scene.visitor.get(address + "&from=nonsense").status_code == 200


def test_only_the_beginning_of_large_results_is_read_and_that_is_said(scene, pair, monkeypatch):
    monkeypatch.setattr("web.compare.RESULTS_BYTES", 500)
    worse, better = pair
    said = words(scene.visitor.get(f"/evaluations/compare?job={worse.id}&job={better.id}&all=1"))
    assert "Only the first rows of the results" in said
    assert "All, 2" in said


def test_one_that_has_failed_stands_beside_the_others(scene, pair):
    worse, better = pair
    with transaction() as db:
        failed = a_job(db, scene.team, Kind.EVALUATE, recipe="classification", state=State.FAILED, reason="Out of memory.",
                       base_model_id=scene.encoder.id, dataset_version_id=scene.labelled.id)  # fmt: skip
    page = scene.visitor.get(f"/evaluations/compare?job={failed.id}&job={worse.id}&job={better.id}")
    assert "Out of memory." in words(page)
    assert "Differences are to B" in words(page)
    assert "hx-trigger" not in page.text.split('id="comparison"')[1].split(">")[0]


def test_what_cannot_stand_side_by_side_is_a_sentence(scene, pair):
    worse, _ = pair
    with transaction() as db:
        elsewhere = evaluated(db, scene, scene.best, 0.0, ["yes"], dataset_version_id=scene.talk.id)
        training = a_job(db, scene.team)
    for other, sentence in ((elsewhere, "different dataset versions"), (training, "Only evaluations")):
        answer = scene.visitor.get(f"/evaluations/compare?job={worse.id}&job={other.id}")
        assert answer.status_code == 400
        assert sentence in words(answer)


def test_an_empty_comparison_offers_the_first_step(scene):
    for address in ("/evaluations/compare", "/evaluations/compare?comparison=none"):
        page = scene.visitor.get(address)
        assert page.status_code == 200
        assert 'href="/evaluations/new"' in page.text


def test_another_team_s_evaluations_are_not_there(app, scene, pair):
    worse, better = pair
    with transaction() as db:
        user = a_user(db, a_team(db))
        better = db.get_one(Job, better.id)
        better.labels = {"comparison": "c1"}
    stranger = Visitor(app, user)
    assert stranger.get(f"/evaluations/compare?job={worse.id}").status_code == 404
    assert "sorter" not in stranger.get("/evaluations/compare?comparison=c1").text
    assert stranger.get(f"/evaluations/new?dataset={scene.labelled.id}").status_code == 404
    assert "sorter" not in stranger.get(f"/evaluations/new?model={scene.best.id}").text


def test_while_the_store_is_away_metrics_are_shown_without_differences(scene, pair, monkeypatch):
    from shared import storage

    def away(*_: Any) -> Any:
        raise storage.Away("gone")

    monkeypatch.setattr(storage, "read", away)
    monkeypatch.setattr(storage, "stream", away)
    worse, better = pair
    said = words(scene.visitor.get(f"/evaluations/compare?job={worse.id}&job={better.id}"))
    assert "0.700" in said
    assert "The rows cannot be read just now." in said
