"""Imports: what is there is never unmade, and nobody takes away what another team waits for."""

import pytest

from shared import jobs
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.tables import BaseModel, DatasetVersion, Job, Kind, Ready, State
from tests.factories import a_base_model, a_dataset, a_job, a_team, a_user, a_worker
from tests.visitor import Visitor


@pytest.fixture
def team(db):
    return a_team(db)


def an_import(db, team, row, **fields):
    """The import that the row names."""
    column = "dataset_version_id" if isinstance(row, DatasetVersion) else "base_model_id"
    job = a_job(db, team, Kind.IMPORT, **{column: row.id} | fields)
    row.import_job_id = job.id
    db.flush()
    return job


def a_shared_base(db, state):
    base = a_base_model(db)
    base.state = state
    db.flush()
    return base


# --- again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_shared_base_model_that_is_there_is_not_unmade_by_a_retry(db, team, ended):
    base = a_shared_base(db, Ready.READY)
    old = an_import(db, team, base, state=ended)
    with pytest.raises(Refused, match=r"«A tiny model» is there already.*Upload another") as no:
        jobs.retry(db, old, "somebody")
    assert no.value.status == 409
    db.refresh(base)
    assert (base.state, base.import_job_id, base.error) == (Ready.READY, old.id, None)


def test_rows_that_are_there_are_not_unmade_by_a_retry(db, team):
    version = a_dataset(db, team, name="moods")
    old = an_import(db, team, version, state=State.FAILED, file_id=version.file_id)
    with pytest.raises(Refused, match=r"«moods» v1 is there already.*new version"):
        jobs.retry(db, old, "somebody")
    db.refresh(version)
    assert version.state == Ready.READY


def test_what_is_being_imported_is_imported_once(db, team):
    base = a_shared_base(db, Ready.FAILED)
    old = an_import(db, team, base, state=State.FAILED)
    first = jobs.retry(db, old, "somebody")
    assert first.id != old.id
    assert jobs.retry(db, old, "somebody").id == first.id
    jobs.cancel(db, first, "somebody")
    assert jobs.retry(db, old, "somebody").id not in (old.id, first.id)


def test_what_was_deleted_is_not_imported_again(db, team):
    base = a_base_model(db, team=team)
    base.state, base.deleted_at = Ready.FAILED, jobs.clock(db)
    with pytest.raises(NotFound):
        jobs.retry(db, an_import(db, team, base, state=State.FAILED), "somebody")


@pytest.mark.parametrize(("state", "shown"), [(Ready.READY, False), (Ready.FAILED, True)])
def test_a_retry_is_offered_only_where_there_is_something_to_import(app, alpha, state, shown):
    with transaction() as db:
        member = a_user(db, alpha.team)
        base = a_shared_base(db, state)
        job = an_import(db, alpha.team, base, state=State.CANCELLED, reason_code="cancelled")
    visitor = Visitor(app, member)
    page = visitor.get(f"/jobs/{job.id}").text
    assert (f'action="/jobs/{job.id}/retry"' in page) == shown
    assert ("Open the model «A tiny model»" in page) != shown
    answer = visitor.post(f"/jobs/{job.id}/retry")
    assert answer.status_code == (303 if shown else 409)
    with transaction() as db:
        assert db.get_one(BaseModel, base.id).state == (Ready.BUILDING if shown else Ready.READY)


def test_a_retry_while_another_team_imports_it_leads_to_the_model(app, alpha):
    with transaction() as db:
        member = a_user(db, alpha.team)
        base = a_shared_base(db, Ready.BUILDING)
        old = an_import(db, alpha.team, base, state=State.FAILED)
        under_way = an_import(db, a_team(db), base)
    led = Visitor(app, member).post(f"/jobs/{old.id}/retry").headers["Location"]
    assert led == f"/models/{base.id}"
    with transaction() as db:
        assert db.get_one(BaseModel, base.id).import_job_id == under_way.id
        assert db.get_one(Job, under_way.id).state == State.QUEUED


# --- of two teams -----------------------------------------------------------------------------------


def waiting_for(db, team, base):
    """A training of that team that waits for the import of that base model."""
    order = jobs.Order(
        team_id=team.id, recipe="sft", model=base.id, dataset_version_id=a_dataset(db, team).id
    )
    return jobs.submit(db, order)


@pytest.mark.parametrize("running", [False, True], ids=["queued", "running"])
@pytest.mark.parametrize("verb", [jobs.cancel, jobs.pause, jobs.stop])
def test_an_import_that_another_team_waits_for_goes_on(db, team, verb, running):
    base = a_shared_base(db, Ready.WAITING)
    begun = jobs.submit_import(db, team_id=team.id, base_model_id=base.id)
    if running:
        assert jobs.claim(db, a_worker(db).id, "light")
    mine, theirs = waiting_for(db, team, base), waiting_for(db, a_team(db), base)
    with pytest.raises(Refused, match=r"other teams wait|any team's jobs may wait") as no:
        verb(db, begun, "somebody")
    assert no.value.status == 409
    db.refresh(theirs)
    assert (begun.cancel_requested_at, begun.pause_requested_at, theirs.state) == (None, None, State.QUEUED)
    jobs.cancel(db, theirs, "somebody")
    assert jobs.cancel(db, begun, "somebody").cancel_requested_at
    assert mine.state == (State.QUEUED if running else State.FAILED)


def test_nobody_begins_to_wait_for_an_import_that_is_being_cancelled(db, team):
    base = a_shared_base(db, Ready.WAITING)
    begun = jobs.submit_import(db, team_id=team.id, base_model_id=base.id)
    assert jobs.claim(db, a_worker(db).id, "light")
    jobs.cancel(db, begun, "somebody")
    with pytest.raises(Refused, match="The import of its base model was cancelled"):
        waiting_for(db, a_team(db), base)


def test_pages_name_another_teams_import_without_a_link_and_offer_no_cancel_to_its_team(app, alpha):
    with transaction() as db:
        other = a_team(db)
        theirs, mine = a_user(db, other), a_user(db, alpha.team)
        base = a_shared_base(db, Ready.WAITING)
        begun = jobs.submit_import(db, team_id=other.id, base_model_id=base.id)
        job = waiting_for(db, alpha.team, base)
    for path in (f"/jobs/{job.id}", "/queue", f"/models/{base.id}"):
        page = Visitor(app, mine).get(path).text
        assert begun.id not in page
        assert path.startswith("/models") or "the import of «A tiny model»" in page
    page = Visitor(app, theirs).get(f"/jobs/{begun.id}").text
    assert f'action="/jobs/{begun.id}/cancel"' not in page
    assert "Jobs of other teams wait for this import" in page
    with transaction() as db:
        jobs.cancel(db, job, "somebody")
    assert f'action="/jobs/{begun.id}/cancel"' in Visitor(app, theirs).get(f"/jobs/{begun.id}").text
