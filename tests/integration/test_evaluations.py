"""Evaluations over the API without a worker: what is accepted, what is refused, how it looks on the wire."""

import json
from types import SimpleNamespace

import pytest
from sqlmodel import col, select

from shared import jobs
from shared.db import transaction
from shared.ids import new_id
from shared.settings import settings
from shared.tables import Artifact, Job, Kind, Ready, Slot, State
from tests.factories import a_base_model, a_checkpoint, a_dataset, a_file, a_job, a_team
from tests.visitor import LABELLED, error_of

SCORES = {
    "tuned": {"f1": 0.8, "accuracy": 0.9, "precision": 0.8, "recall": 0.8, "loss": 0.4},
    "intervals": {"f1": [0.7, 0.9], "accuracy": [0.8, 0.95]},
    "resamples": 1000,
    "rows": 12,
    "left_out": {"count": 1, "rows": [{"row": 4, "reason": "The text is empty."}]},
    "detail": {},
    "worst": [],
    "best": [],
}


@pytest.fixture
def trained(alpha):
    """Two checkpoints of a classifier and one of a chat model."""
    with transaction() as db:
        classifier = a_job(db, alpha.team, recipe="classification", state=State.SUCCEEDED, base_model_id=alpha.encoder.id,
                           dataset_version_id=alpha.labelled.id, spec={"max_length": 32})  # fmt: skip
        chat = a_job(
            db, alpha.team, state=State.SUCCEEDED, base_model_id=alpha.model.id, dataset_version_id=None
        )
        first, second = a_checkpoint(db, classifier, 10), a_checkpoint(db, classifier, 20)
        return SimpleNamespace(first=first, second=second, chat=a_checkpoint(db, chat, 5, adapter=True))


def test_a_checkpoint_is_judged_by_the_recipe_that_trained_it(alpha, trained):
    asked = {
        "model": trained.first.id,
        "dataset": alpha.labelled.file_id,
        "name": "monthly",
        "metadata": {"a": "b"},
    }
    made = alpha.api.post("/evaluations", json=asked)
    assert made["id"].startswith("evaluate-")
    assert (made["object"], made["status"], made["recipe"]) == ("evaluation", "queued", "classification")
    assert (made["name"], made["dataset"], made["metadata"]) == (
        "monthly",
        alpha.labelled.file_id,
        {"a": "b"},
    )
    assert made["columns"] == {"text": "text", "label": "label"}
    assert made["model"].startswith(f"ft:{alpha.encoder.id}:")
    assert (made["metrics"], made["result_files"], made["comparison"]) == (None, [], None)
    assert made["x_page"] == f"{settings().public_url}/jobs/{made['id']}"
    assert alpha.api.get(f"/evaluations/{made['id']}") == made
    assert [one["id"] for one in alpha.api.get("/evaluations")["data"]] == [made["id"]]
    assert alpha.api.get("/evaluations?metadata[a]=c")["data"] == []
    with transaction() as db:
        job = db.get_one(Job, made["id"])
        assert (job.kind, job.slot, job.spec) == (Kind.EVALUATE, Slot.COMPUTE, {"max_length": 32})


def test_a_base_model_is_judged_by_the_recipe_that_is_named_else_by_chat(alpha):
    made = alpha.api.post("/evaluations", json={"model": alpha.model.id, "dataset": alpha.chat.dataset_id})
    assert (made["recipe"], made["model"]) == ("sft", alpha.model.id)
    named = {"model": alpha.model.id, "dataset": alpha.chat.id, "recipe": "supervised"}
    assert alpha.api.post("/evaluations", json=named)["recipe"] == "sft"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": None}, 400, "model"),
        ({"models": ["x", "y"]}, 400, "model"),
        ({"model": "no/such-model"}, 404, "model"),
        ({"dataset": "file-none"}, 404, "dataset"),
        ({"recipe": "alchemy"}, 400, "recipe"),
        ({"columns": {"messages": "nowhere"}}, 400, "columns.messages"),
        ({"name": "x" * 201}, 400, "name"),
        ({"seed": -1}, 400, "seed"),
        ({"model": "scratch/gpt-tiny"}, 400, "model"),
    ],
)
def test_a_bad_request_names_what_is_wrong(alpha, change, status, param):
    asked = {"model": alpha.model.id, "dataset": alpha.chat.file_id} | change
    assert error_of(alpha.api.post("/evaluations", status, json=asked))["param"] == param


def test_what_does_not_fit_together_is_refused_in_a_sentence(alpha, trained):
    def refused(**asked):
        return error_of(alpha.api.post("/evaluations", 400, json=asked))

    other = refused(model=trained.first.id, dataset=alpha.labelled.id, recipe="sft")
    assert other["param"] == "recipe"
    assert "Text classification" in other["message"]
    assert refused(model=trained.first.id, dataset=alpha.chat.id)["param"] == "dataset"
    bare = refused(model=alpha.encoder.id, dataset=alpha.labelled.id, recipe="classification")
    assert bare["param"] == "model"
    assert refused(model=alpha.encoder.id, dataset=alpha.chat.id)["code"] == "model_does_not_fit"
    mixed = refused(models=[trained.chat.id, trained.first.id], dataset=alpha.labelled.id)
    assert mixed["param"] in ("model", "recipe", "dataset")


def test_rows_that_the_recipe_refuses_are_refused_before_anything_is_queued(alpha, trained):
    with transaction() as db:
        version = a_dataset(db, alpha.team, LABELLED)
        broken = {"row": 3, "column": "label", "message": "The label is an object.", "fatal": True}
        fit = {"columns": {"text": "text", "label": "label"}, "findings": [broken], "fatal": 1, "skipped": 0}
        version.report = version.report | {"fits": {"classification": fit}}
        db.add(version)
    error = error_of(
        alpha.api.post("/evaluations", 400, json={"model": trained.first.id, "dataset": version.id})
    )
    assert (error["param"], error["message"]) == ("dataset", "Row 3: The label is an object.")
    assert alpha.api.get("/evaluations")["data"] == []


def test_several_models_are_one_comparison(alpha, trained):
    asked = {"models": [trained.first.id, trained.second.id], "dataset": alpha.labelled.id}
    made = alpha.api.post("/evaluations", json=asked)
    first, second = made["comparison"]["evaluations"]
    assert first == made["id"]
    other = alpha.api.get(f"/evaluations/{second}")
    assert other["comparison"] == made["comparison"]
    assert other["seed"] == made["seed"]
    assert made["comparison"]["x_page"].endswith(
        f"/evaluations/compare?comparison={made['comparison']['id']}"
    )
    assert {made["model"][-2:], other["model"][-2:]} == {"10", "20"}
    # a base model beside a checkpoint is judged as the checkpoint is
    beside = alpha.api.post(
        "/evaluations", json={"models": [alpha.model.id, trained.chat.id], "dataset": alpha.chat.id}
    )
    assert beside["recipe"] == "sft"


def test_of_several_models_all_are_judged_or_none(alpha, trained):
    asked = {"models": [trained.first.id, "ftckpt_none"], "dataset": alpha.labelled.id}
    alpha.api.post("/evaluations", 404, json=asked)
    assert alpha.api.get("/evaluations")["data"] == []


def test_a_repeated_key_is_the_same_evaluations_and_another_body_is_refused(alpha, trained):
    asked = {"models": [trained.first.id, trained.second.id], "dataset": alpha.labelled.id}
    made = [alpha.api.post("/evaluations", json=asked, headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert made[0] == made[1] == made[2]
    assert len(alpha.api.get("/evaluations")["data"]) == 2
    for other in (
        {"model": trained.first.id, "dataset": alpha.labelled.id},
        asked | {"models": [trained.second.id, trained.first.id]},
    ):
        error = error_of(alpha.api.post("/evaluations", 409, json=other, headers={"Idempotency-Key": "k"}))
        assert error["code"] == "idempotency_key_reused"


def test_a_lost_answer_is_found_again_without_a_key(alpha, trained):
    asked = {"model": trained.first.id, "dataset": alpha.labelled.id}
    made = alpha.api.post("/evaluations", json=asked)
    again = alpha.api.post("/evaluations", json=asked, headers={"x-stainless-retry-count": "1"})
    assert again["id"] == made["id"]


def test_an_evaluation_is_cancelled_and_then_retried(alpha):
    made = alpha.api.post("/evaluations", json={"model": alpha.model.id, "dataset": alpha.chat.id})
    path = f"/evaluations/{made['id']}/cancel"
    assert alpha.api.post(path)["status"] == alpha.api.post(path)["status"] == "cancelled"
    with transaction() as db:
        retried = jobs.retry(db, db.get_one(Job, made["id"]), "somebody")
        assert (retried.recipe, retried.base_model_id, retried.dataset_version_id) == (
            "sft",
            alpha.model.id,
            alpha.chat.id,
        )


def test_a_finished_one_tells_metrics_intervals_and_its_files(alpha):
    with transaction() as db:
        job = a_job(db, alpha.team, Kind.EVALUATE, recipe="classification", state=State.SUCCEEDED, scores=SCORES,
                    base_model_id=alpha.encoder.id, dataset_version_id=alpha.labelled.id)  # fmt: skip
        ids = {}
        for form in ("report", "results"):  # the order in which they were stored does not matter
            file = a_file(db, alpha.team, json.dumps({form: 1}).encode(), f"{form}.json", "evaluation_output")
            db.add(Artifact(id=new_id("artifact-"), team_id=alpha.team.id, job_id=job.id, form=form, state=Ready.READY,
                            file_id=file.id))  # fmt: skip
            ids[form] = file.id
    told = alpha.api.get(f"/evaluations/{job.id}")
    assert told["result_files"] == [ids["results"], ids["report"]]
    assert (told["metrics"], told["intervals"]) == (SCORES["tuned"], SCORES["intervals"])
    assert (told["rows"], told["resamples"], told["left_out"]) == (12, 1000, SCORES["left_out"])
    assert alpha.api.ask("GET", f"/files/{ids['results']}/content").data == b'{"results": 1}'
    listed = alpha.api.get("/files?purpose=evaluation_output")["data"]
    assert {file["id"] for file in listed} == set(ids.values())


def test_another_team_s_models_and_data_are_not_there(alpha, trained):
    with transaction() as db:
        other = a_team(db)
        theirs = a_dataset(db, other)
        model = a_base_model(db, team=other)
        job = a_job(db, other, Kind.EVALUATE, recipe="sft", dataset_version_id=theirs.id)
    for change in ({"dataset": theirs.id}, {"model": model.id}, {"dataset": theirs.file_id}):
        asked = {"model": alpha.model.id, "dataset": alpha.chat.id} | change
        error_of(alpha.api.post("/evaluations", 404, json=asked))
    alpha.api.get(f"/evaluations/{job.id}", 404)
    alpha.api.post(f"/evaluations/{job.id}/cancel", 404)
    with transaction() as db:
        assert db.exec(select(Job).where(col(Job.cancel_requested_at).is_not(None))).all() == []
