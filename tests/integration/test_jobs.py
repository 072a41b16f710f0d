"""A job's life over the real SQL: who gets it, who may end it, how often it is tried again."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlmodel import col, select

from shared import checkpoints, jobs, positions, reaper, settling
from shared.db import transaction
from shared.errors import Refused
from shared.jobs import Order
from shared.settings import settings
from shared.tables import (
    Attempt,
    BaseModel,
    DatasetVersion,
    Job,
    JobDependency,
    Kind,
    Outcome,
    Ready,
    State,
    Transition,
)
from tests.factories import a_base_model, a_checkpoint, a_dataset, a_job, a_team, a_worker


@pytest.fixture
def team(db):
    return a_team(db)


@pytest.fixture
def worker(db):
    return a_worker(db)


def an_order(db, team, **fields):
    fields.setdefault("dataset_version_id", a_dataset(db, team).id)
    fields.setdefault("model", a_base_model(db).id)
    return Order(team_id=team.id, recipe="sft", actor="somebody", **fields)


def a_light_job(db, team, **fields):
    return a_job(db, team, Kind.EXPORT, **fields)


def claimed(db, worker_id, slot):
    """The next attempt; there is one."""
    attempt = jobs.claim(db, worker_id, slot)
    assert attempt is not None
    return attempt


def story(db, job):
    """The states that the timeline tells, with who and why."""
    lines = db.exec(select(Transition).where(Transition.job_id == job.id).order_by(col(Transition.id)))
    return [(str(line.state), line.actor, line.reason) for line in lines]


def age(db, attempt, seconds):
    """As if the attempt's last sign of life lay that much further back."""
    back = timedelta(seconds=seconds)
    attempt.lease_expires_at -= back
    if attempt.suspect_since:
        attempt.suspect_since -= back
    db.add(attempt)
    db.flush()


@pytest.fixture
def a_server_up_for_long(monkeypatch):
    """The server of the tests has been up for seconds; the outage guard wants a lease's length."""
    monkeypatch.setattr(settings(), "lease_seconds", 0.3)
    monkeypatch.setattr(settings(), "heartbeat_seconds", 0.1)


def reap_all(db):
    """Two sweeps, with the patience between them passed."""
    first = reaper.reap(db)
    for attempt in db.exec(select(Attempt).where(col(Attempt.suspect_since).is_not(None))):
        db.refresh(attempt)
        age(db, attempt, 3600)
    return first + reaper.reap(db)


# --- submit -----------------------------------------------------------------------------------------


def test_a_submitted_job_is_queued_with_everything_resolved(db, team):
    job = jobs.submit(db, an_order(db, team, hyperparameters={"n_epochs": 2}))
    assert job.state == State.QUEUED
    assert job.id.startswith("ftjob-")
    assert job.spec["epochs"] == 2
    assert job.spec["batch_size"]
    assert job.columns == {"messages": "messages"}
    assert 0 <= job.seed < 2**31
    assert story(db, job) == [("queued", "somebody", "submitted")]


def test_a_refused_order_stores_nothing(db, team):
    before = len(db.exec(select(Job)).all())
    with pytest.raises(Refused) as no:
        jobs.submit(db, an_order(db, team, hyperparameters={"learning_rate": 1e9}, param="x."))
    assert no.value.param == "x.learning_rate"
    assert len(db.exec(select(Job)).all()) == before


def test_a_base_model_without_the_recipes_head_is_refused(db, team):
    with pytest.raises(Refused, match="needs a base model") as no:
        jobs.submit(db, an_order(db, team, model=a_base_model(db, head="encoder").id))
    assert no.value.param == "model"


def test_another_teams_dataset_and_model_do_not_exist(db, team):
    other = a_team(db)
    for wrong in (
        {"dataset_version_id": a_dataset(db, other).id},
        {"model": a_base_model(db, team=other).id},
    ):
        with pytest.raises(Refused) as no:
            jobs.submit(db, an_order(db, team, **wrong))
        assert no.value.status == 404


def test_the_same_key_gives_the_same_job_and_another_order_is_refused(db, team):
    order = an_order(db, team)
    job = jobs.submit(db, order, "key-1")
    assert jobs.submit(db, order, "key-1").id == job.id
    with pytest.raises(Refused) as no:
        jobs.submit(db, an_order(db, team, name="another"), "key-1")
    assert (no.value.status, no.value.code) == (409, "idempotency_key_reused")
    other = a_team(db)
    assert jobs.submit(db, an_order(db, other), "key-1").id != job.id


def test_fifty_clicks_at_once_are_one_job(clean):
    with transaction() as db:
        team = a_team(db)
        order = an_order(db, team)

    def click(_):
        with transaction() as db:
            return jobs.submit(db, order, "the form's nonce").id

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(click, range(50)))) == 1
    with transaction() as db:
        assert len(db.exec(select(Job)).all()) == 1


def test_a_job_waits_for_the_imports_of_its_data_and_its_base_model(db, team, worker):
    base, version = a_base_model(db, team=team), a_dataset(db, team)
    base.state, base.source, version.state = Ready.WAITING, "package:something", Ready.BUILDING
    version.import_job_id = a_job(db, team, Kind.IMPORT, dataset_version_id=version.id).id
    job = jobs.submit(db, an_order(db, team, model=base.id, dataset_version_id=version.id))
    assert base.state == Ready.BUILDING
    assert job.stage == "waiting"
    waits = db.exec(select(JobDependency.waits_for_id).where(JobDependency.job_id == job.id)).all()
    assert set(waits) == {base.import_job_id, version.import_job_id}
    again = jobs.submit(db, an_order(db, team, model=base.id, dataset_version_id=version.id))
    assert base.import_job_id in settling.unfinished(db, again.id)  # not imported twice
    assert jobs.claim(db, worker.id, "compute") is None
    for number in range(2):
        imported = claimed(db, worker.id, "light")
        assert imported.job_id in waits
        jobs.finish(db, imported.lease_id, Outcome.SUCCEEDED)
        assert settling.woken_by(db, imported.job_id) == {"compute"}
        assert (jobs.claim(db, worker.id, "compute") is not None) == (number == 1)


def test_a_job_fails_with_the_import_that_it_waits_for(db, team, worker):
    version = a_dataset(db, team)
    version.state = Ready.BUILDING
    imports = jobs.submit_import(db, team_id=team.id, version_id=version.id, file_id=version.file_id)
    job = jobs.submit(db, an_order(db, team, dataset_version_id=version.id))
    attempt = claimed(db, worker.id, "light")
    told = "Row 17 is not JSON: «{oops»."
    jobs.finish(db, attempt.lease_id, Outcome.FAILED, reason_code="invalid_json", reason=told)
    db.refresh(job)
    db.refresh(version)
    assert (imports.state, job.state) == (State.FAILED, State.FAILED)
    assert told in (job.reason or "")
    assert job.reason_param == "training_file"
    assert (version.state, version.error) == (Ready.FAILED, told)
    with pytest.raises(Refused, match="Row 17"):
        jobs.submit(db, an_order(db, team, dataset_version_id=version.id))


def test_an_export_is_made_once(db, team):
    checkpoint = a_checkpoint(db, a_job(db, team))
    first = jobs.submit_export(db, checkpoint=checkpoint, form="merged")
    assert jobs.submit_export(db, checkpoint=checkpoint, form="merged").id == first.id
    jobs.cancel(db, first, "somebody")
    assert jobs.submit_export(db, checkpoint=checkpoint, form="merged").id != first.id


# --- claim ------------------------------------------------------------------------------------------


def test_each_job_is_claimed_once_by_many_workers_at_once(clean):
    with transaction() as db:
        teams = [a_team(db) for _ in range(4)]
        queued = {a_light_job(db, team).id for team in teams for _ in range(15)}
        workers = [a_worker(db).id for _ in range(8)]

    def claim_until_empty(worker_id):
        claimed = []
        while True:
            with transaction() as db:
                attempt = jobs.claim(db, worker_id, "light")
            if attempt is None:
                return claimed
            claimed.append(attempt.job_id)

    with ThreadPoolExecutor(8) as pool:
        claimed = [job_id for found in pool.map(claim_until_empty, workers) for job_id in found]
    assert Counter(claimed) == Counter(queued)


def test_teams_share_what_is_there_however_long_their_queues_are(db, worker):
    greedy, modest = a_team(db), a_team(db)
    for _ in range(20):
        a_light_job(db, greedy)
    for _ in range(5):
        a_light_job(db, modest)
    got = [claimed(db, worker.id, "light") for _ in range(10)]
    assert Counter(attempt.team_id for attempt in got) == {greedy.id: 5, modest.id: 5}


def test_the_team_that_used_less_goes_first(db, worker):
    heavy, light = a_team(db), a_team(db)
    a_light_job(db, heavy)
    used = claimed(db, worker.id, "light")
    used.started_at -= timedelta(hours=2)
    jobs.finish(db, used.lease_id, Outcome.SUCCEEDED)
    for team in (heavy, heavy, light, light):
        a_light_job(db, team)
    order = [claimed(db, worker.id, "light").team_id for _ in range(4)]
    assert order == [light.id, light.id, heavy.id, heavy.id]


def test_priority_goes_first_and_age_wins_in_the_end(db, team, worker):
    model, version = a_base_model(db).id, a_dataset(db, team).id
    old, plain, urgent = (
        jobs.submit(db, an_order(db, team, model=model, dataset_version_id=version, priority=p))
        for p in (0, 0, 5)
    )
    old.rank_at -= timedelta(hours=2)
    db.flush()
    assert [positions.place(db, job) for job in (old, plain, urgent)] == [1, 3, 2]
    order = [claimed(db, worker.id, "compute").job_id for _ in range(3)]
    assert order == [old.id, urgent.id, plain.id]


def test_a_job_with_a_pause_is_passed_over(db, team, worker):
    later = a_light_job(db, team, run_after=jobs.clock(db) + timedelta(hours=1))
    now = a_light_job(db, team)
    assert claimed(db, worker.id, "light").job_id == now.id
    assert jobs.claim(db, worker.id, "light") is None
    assert later.state == State.QUEUED


def test_a_draining_worker_gets_nothing(db, team):
    a_light_job(db, team)
    assert jobs.claim(db, a_worker(db, draining_at=jobs.clock(db)).id, "light") is None


def test_a_job_that_somebody_cancels_just_now_is_passed_over_without_waiting(clean):
    with transaction() as db:
        team = a_team(db)
        first, second = a_light_job(db, team), a_light_job(db, team)
        worker = a_worker(db).id
    with transaction() as cancelling:
        jobs.cancel(cancelling, first, "somebody")
        with transaction() as claiming:
            assert claimed(claiming, worker, "light").job_id == second.id


# --- the lease --------------------------------------------------------------------------------------


def test_a_lost_lease_queues_the_job_again(db, team, worker, a_server_up_for_long):
    job = a_light_job(db, team)
    attempt = claimed(db, worker.id, "light")
    age(db, attempt, 100)
    assert reaper.reap(db) == 0  # a suspect at first
    db.refresh(attempt)
    assert attempt.suspect_since
    assert reap_all(db) == 1
    db.refresh(job)
    assert (job.state, job.attempts, job.attempt_id) == (State.QUEUED, 0, None)
    assert (attempt.outcome, attempt.reason_code) == (Outcome.LOST, "lost")
    assert story(db, job)[-1][:2] == ("queued", "reaper")
    assert claimed(db, worker.id, "light").number == 2


def test_a_renewal_clears_the_suspicion(db, team, worker, a_server_up_for_long):
    a_light_job(db, team)
    attempt = claimed(db, worker.id, "light")
    age(db, attempt, 100)
    reaper.reap(db)
    assert jobs.renew(db, attempt.lease_id) == jobs.Orders()
    assert reap_all(db) == 0


def test_a_lost_workers_word_is_ignored(db, team, worker, a_server_up_for_long):
    job = a_light_job(db, team)
    lost = claimed(db, worker.id, "light")
    age(db, lost, 100)
    reap_all(db)
    holder = claimed(db, worker.id, "light")
    assert jobs.renew(db, lost.lease_id) is None
    assert jobs.held(db, lost.lease_id) is None
    assert jobs.report(db, lost.lease_id, stage="training") is False
    assert jobs.finish(db, lost.lease_id, Outcome.SUCCEEDED) is None
    assert jobs.release(db, lost.lease_id, "draining") is None
    stored = {"step": 1, "epoch": 1.0, "metrics": {}, "adapter": False, "prefix": "x/", "manifest": []}
    assert checkpoints.record(db, lost.lease_id, **stored) is None
    db.refresh(job)
    assert (job.state, job.attempt_id, job.stage) == (State.RUNNING, holder.id, "fetching")
    assert jobs.finish(db, holder.lease_id, Outcome.SUCCEEDED) == State.SUCCEEDED
    assert jobs.finish(db, holder.lease_id, Outcome.FAILED) is None


def test_nothing_is_reaped_within_a_lease_of_the_databases_start(db, team, worker, monkeypatch):
    a_light_job(db, team)
    age(db, claimed(db, worker.id, "light"), 10**6)
    up = text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
    monkeypatch.setattr(settings(), "lease_seconds", float(db.connection().execute(up).scalar_one()) + 60)
    assert reap_all(db) == 0


def test_when_most_leases_run_out_at_once_the_reaper_waits_another_lease(db, team, worker, monkeypatch):
    monkeypatch.setattr(settings(), "lease_seconds", 0.5)
    monkeypatch.setattr(settings(), "heartbeat_seconds", 0.001)
    for _ in range(5):
        a_light_job(db, team)
        age(db, claimed(db, worker.id, "light"), 100)
    reaper.reap(db)
    time.sleep(0.05)  # longer than a heartbeat, shorter than a lease
    assert reaper.reap(db) == 0
    time.sleep(0.5)
    assert reaper.reap(db) == 5


# --- the end ----------------------------------------------------------------------------------------


def test_a_finish_after_a_cancel_request_ends_cancelled_and_keeps_the_checkpoint(db, team, worker):
    job = a_job(db, team)
    attempt = claimed(db, worker.id, "compute")
    stored = {"step": 5, "epoch": 1.0, "metrics": {}, "adapter": True, "prefix": "x/", "manifest": []}
    kept = checkpoints.record(db, attempt.lease_id, **stored)
    assert kept
    jobs.cancel(db, job, "somebody")
    assert jobs.renew(db, attempt.lease_id) == jobs.Orders(cancel=True)
    assert jobs.finish(db, attempt.lease_id, Outcome.SUCCEEDED, best_checkpoint_id=kept.id) == State.CANCELLED
    assert [c.id for c in checkpoints.of(db, job.id)] == [kept.id] == [job.best_checkpoint_id]


def test_a_cancel_after_the_finish_is_refused(db, team, worker):
    job = a_light_job(db, team)
    jobs.finish(db, claimed(db, worker.id, "light").lease_id, Outcome.SUCCEEDED)
    with pytest.raises(Refused, match="succeeded already"):
        jobs.cancel(db, job, "somebody")


def test_cancel_and_finish_at_once_agree_with_the_timeline(clean):
    with transaction() as db:
        team, worker = a_team(db), a_worker(db).id
    for _ in range(20):
        with transaction() as db:
            job = a_light_job(db, team)
        with transaction() as db:
            lease = claimed(db, worker, "light").lease_id
        start = threading.Barrier(2)

        def cancel(job=job, start=start):
            start.wait()
            with transaction() as db:
                try:
                    jobs.cancel(db, job, "somebody")
                except Refused:
                    return "refused"
                return "accepted"

        def finish(lease=lease, start=start):
            start.wait()
            with transaction() as db:
                return jobs.finish(db, lease, Outcome.SUCCEEDED)

        with ThreadPoolExecutor(2) as pool:
            answer, state = pool.submit(cancel), pool.submit(finish)
            told = (answer.result(), state.result())
        assert told in [("accepted", State.CANCELLED), ("refused", State.SUCCEEDED)]
        with transaction() as db:
            assert db.get_one(Job, job.id).state == told[1]
            assert story(db, job)[-1][0] == told[1]


def test_a_queued_or_paused_job_is_cancelled_at_once(db, team):
    queued, paused = a_light_job(db, team), a_light_job(db, team)
    jobs.pause(db, paused, "somebody")
    assert paused.state == State.PAUSED
    for job in (queued, paused):
        assert jobs.cancel(db, job, "somebody").state == State.CANCELLED
        assert job.finished_at


def test_a_lost_job_that_was_to_be_cancelled_is_cancelled_by_the_reaper(
    db, team, worker, a_server_up_for_long
):
    job = a_light_job(db, team)
    attempt = claimed(db, worker.id, "light")
    jobs.cancel(db, job, "somebody")
    age(db, attempt, 100)
    assert reap_all(db) == 1
    db.refresh(job)
    assert job.state == State.CANCELLED


def test_a_paused_job_goes_on_when_it_is_resumed(db, team, worker):
    job = a_light_job(db, team)
    attempt = claimed(db, worker.id, "light")
    jobs.pause(db, job, "somebody")
    assert jobs.renew(db, attempt.lease_id) == jobs.Orders(pause=True)
    assert jobs.finish(db, attempt.lease_id, Outcome.RELEASED) == State.PAUSED
    assert jobs.claim(db, worker.id, "light") is None
    jobs.resume(db, job, "somebody")
    assert claimed(db, worker.id, "light").number == 2
    assert job.attempts == 1  # the pause was not charged


# --- afterwards -------------------------------------------------------------------------------------


def test_a_retry_is_a_new_job_with_the_same_order_and_seed(db, team, worker):
    job = jobs.submit(
        db,
        an_order(db, team, hyperparameters={"epochs": 1.5, "lora_rank": 4}, labels={"a": "b"}, processes=2),
    )
    with pytest.raises(Refused, match="cancel it first"):
        jobs.retry(db, job, "somebody")
    jobs.cancel(db, job, "somebody")
    again = jobs.retry(db, job, "somebody")
    assert again.id != job.id
    assert again.retry_of == job.id
    for same in (
        "spec", "seed", "columns", "base_model_id", "dataset_version_id", "labels", "recipe", "resources",
    ):  # fmt: skip
        assert getattr(again, same) == getattr(job, same)


def test_a_failed_import_may_be_tried_again(db, team, worker):
    version = a_dataset(db, team)
    version.state = Ready.BUILDING
    first = jobs.submit_import(db, team_id=team.id, version_id=version.id, file_id=version.file_id)
    jobs.finish(db, claimed(db, worker.id, "light").lease_id, Outcome.FAILED, reason="No.")
    again = jobs.retry(db, first, "somebody")
    row = db.exec(select(DatasetVersion).where(DatasetVersion.id == version.id)).one()
    assert (row.state, row.import_job_id) == (Ready.BUILDING, again.id)


def test_a_cancelled_import_of_a_packaged_model_is_made_again_for_the_next_job(db, team):
    base = a_base_model(db)
    base.state = Ready.WAITING
    first = jobs.submit(db, an_order(db, team, model=base.id))
    imports = db.exec(select(Job).where(Job.id == base.import_job_id)).one()
    jobs.cancel(db, imports, "somebody")
    db.refresh(first)
    assert (first.state, first.reason) == (State.FAILED, "The import of its base model was cancelled.")
    db.refresh(base)
    jobs.submit(db, an_order(db, team, model=base.id))
    assert db.exec(select(BaseModel.import_job_id).where(BaseModel.id == base.id)).one() != imports.id


def test_a_job_is_deleted_only_when_nobody_needs_it(db, team, worker):
    job = a_job(db, team)
    with pytest.raises(Refused, match="cancel it before"):
        jobs.delete(db, job, "somebody")
    jobs.cancel(db, job, "somebody")
    checkpoint = a_checkpoint(db, job)
    user = a_job(db, team, checkpoint_id=checkpoint.id)
    with pytest.raises(Refused, match=user.id):
        jobs.delete(db, job, "somebody")
    jobs.cancel(db, user, "somebody")
    jobs.delete(db, job, "somebody")
    assert job.deleted_at
    assert checkpoints.of(db, job.id) == []
