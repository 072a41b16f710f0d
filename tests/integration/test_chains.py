"""Chains of adapters: what lies under one stays, and a chain is taken away from its end."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import checkpoints, jobs, retention
from shared.columns import now
from shared.errors import Refused
from shared.tables import DatasetVersion, Kind, State, Team
from tests.factories import a_checkpoint, a_job, a_team
from worker.fetching import card, start_of, weights

LONG_AGO = timedelta(days=3)


@pytest.fixture
def team(db):
    return a_team(db)


def ended(db, team, **fields):
    return a_job(db, team, state=State.SUCCEEDED, finished_at=now() - LONG_AGO, **fields)


@pytest.fixture
def chain(db, team):
    """[a full training, an adapter on its step 40, an adapter on that one]: the jobs."""
    full = ended(db, team)
    points = {
        step: a_checkpoint(db, full, step, metrics={"valid_loss": step}) for step in (10, 20, 30, 40, 50)
    }
    below = ended(db, team, checkpoint_id=points[40].id)
    above = ended(db, team, checkpoint_id=a_checkpoint(db, below, adapter=True).id)
    a_checkpoint(db, above, adapter=True)
    return [full, below, above]


def test_a_chain_is_deleted_from_its_end(db, chain):
    for needed in chain[:2]:
        with pytest.raises(Refused, match=f"{chain[2].id} stands on a checkpoint of {needed.id}"):
            jobs.delete(db, needed, "somebody")
    for job in reversed(chain):
        jobs.delete(db, job, "somebody")
        assert checkpoints.of(db, job.id) == []


def test_the_card_of_an_adapter_names_the_checkpoint_that_it_stands_on(db, chain):
    full, _, above = chain
    version = db.get_one(DatasetVersion, above.dataset_version_id)
    assert card(db, above, start_of(db, above), version)["stands_on"] == f"step 40 of {full.id}"
    assert card(db, full, start_of(db, full), version)["stands_on"] is None


def test_what_lies_under_an_adapter_is_kept_though_the_job_between_is_deleted(db, chain):
    full, between, above = chain
    (adapter,) = checkpoints.of(db, between.id)
    between.deleted_at = adapter.deleted_at = now()
    assert {point.step for point in retention.free(db, full.id)} == {30}
    with pytest.raises(Refused, match=above.id):
        jobs.delete(db, full, "somebody")
    jobs.delete(db, above, "somebody")
    assert {point.step for point in retention.free(db, full.id)} == {40}


def test_full_weights_hold_nothing_below_them(db, team):
    first = ended(db, team)
    further = ended(db, team, checkpoint_id=a_checkpoint(db, first).id)
    jobs.delete(db, first, "somebody")
    assert not further.deleted_at


def test_full_weights_of_a_method_that_compares_keep_what_they_are_compared_with(db, team):
    first = ended(db, team)
    preferred = ended(db, team, recipe="dpo", checkpoint_id=a_checkpoint(db, first).id)
    a_checkpoint(db, preferred)
    with pytest.raises(Refused, match=f"{preferred.id} stands on a checkpoint of {first.id}"):
        jobs.delete(db, first, "somebody")
    jobs.delete(db, preferred, "somebody")
    jobs.delete(db, first, "somebody")


def test_the_card_of_full_weights_does_not_need_what_they_were_trained_from(db, chain):
    full, below, above = chain
    merged = ended(db, db.get_one(Team, full.team_id), checkpoint_id=checkpoints.of(db, above.id)[0].id)
    a_checkpoint(db, merged)
    for job in (above, below, full):
        jobs.delete(db, job, "somebody")
    version = db.get_one(DatasetVersion, merged.dataset_version_id)
    assert card(db, merged, start_of(db, merged), version)["stands_on"] == f"step 40 of {full.id}"


def test_an_adapter_whose_weights_are_deleted_all_the_same_is_not_begun_with(db, team, chain):
    (adapter,) = checkpoints.of(db, chain[2].id)
    asked = a_job(db, team, Kind.INFER, checkpoint_id=adapter.id, base_model_id=chain[2].base_model_id)
    full = start_of(db, asked).full
    assert full is not None
    assert full.step == 40
    full.deleted_at = now()
    with pytest.raises(Refused, match=f"under the adapter {adapter.id} are deleted"):
        weights(cast(Any, SimpleNamespace(cache=None)), start_of(db, asked))
