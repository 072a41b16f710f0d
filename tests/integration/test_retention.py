"""Which checkpoints are kept, which go, and that a crash between the steps of their going leaves nothing wrong."""

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlmodel import select

from shared import base_models, checkpoints, jobs, retention, schedules, storage
from shared.columns import now
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.tables import Artifact, Checkpoint, Job, Kind, Outcome, Ready, Role, State, Transition
from tests.factories import a_checkpoint, a_dataset, a_file, a_job, a_team, a_user, an_attempt
from tests.services import until
from tests.visitor import Visitor
from worker import janitor

LONG_AGO = timedelta(days=3)


@pytest.fixture
def team(clean):
    with transaction() as db:
        return a_team(db)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as a trainer leaves it."""
    for name in ("servable/adapter.safetensors", "state/optimizer.safetensors"):
        path = tmp_path / "whole" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(1000))
    return tmp_path / "whole"


def ended(db, team, losses, folder=None, ago=LONG_AGO, **fields):
    """A job that succeeded so long ago, with a checkpoint for each loss: (job, {step: checkpoint})."""
    job = a_job(db, team, state=State.SUCCEEDED, finished_at=now() - ago, **fields)
    points = {
        step: a_checkpoint(db, job, step, folder, metrics={"valid_loss": loss})
        for step, loss in losses.items()
    }
    best = min(losses, key=losses.__getitem__)
    job.best_checkpoint_id = points[best].id
    db.flush()
    return job, points


def left(job_id):
    """The steps of the checkpoints that exist."""
    with transaction() as db:
        return sorted(point.step for point in checkpoints.of(db, job_id))


def objects(job):
    return {entry["Key"] for entry in storage.listed(f"teams/{job.team_id}/jobs/{job.id}/")}


LOSSES = {10: 5.0, 20: 1.0, 30: 2.0, 40: 3.0, 50: 4.0}


# --- the rule ---------------------------------------------------------------------------------------


def test_the_best_two_and_the_last_are_kept_and_the_bytes_of_the_others_go(team, folder):
    with transaction() as db:
        job, points = ended(db, team, LOSSES, folder)
    janitor.tidy()
    assert left(job.id) == [20, 30, 50]
    kept = {f"{points[step].prefix}{name}" for step in (20, 30, 50) for name in
            ("servable/adapter.safetensors", "state/optimizer.safetensors")}  # fmt: skip
    assert objects(job) == kept
    with transaction() as db:
        lines = db.exec(select(Transition.reason).where(Transition.job_id == job.id)).all()
    assert lines == ["removed, as the team's rule says: the checkpoints of step 10, 40"]


def test_nothing_goes_before_a_day_after_the_end(team, folder):
    with transaction() as db:
        young, _ = ended(db, team, LOSSES, folder, ago=timedelta(hours=23))
        running = a_job(db, team, state=State.RUNNING)
        for step in LOSSES:
            a_checkpoint(db, running, step, folder)
    janitor.tidy()
    assert left(young.id) == left(running.id) == sorted(LOSSES)


def test_a_team_may_keep_all_or_another_number(team):
    with transaction() as db:
        job, _ = ended(db, team, LOSSES)
        retention.choose(db, team.id, None)
    janitor.tidy()
    assert left(job.id) == sorted(LOSSES)
    with transaction() as db:
        retention.choose(db, team.id, 3)
    janitor.tidy()
    assert left(job.id) == [20, 30, 40, 50]
    with pytest.raises(Refused, match="from 1 to 100"), transaction() as db:
        retention.choose(db, team.id, 0)


def test_without_validation_the_newest_are_the_best(team):
    with transaction() as db:
        job, points = ended(db, team, LOSSES)
        for point in points.values():
            point.metrics = {}
        job.best_checkpoint_id = points[50].id
    janitor.tidy()
    assert left(job.id) == [40, 50]


@pytest.mark.parametrize("user", ["evaluation", "resumed", "export", "schedule", "pin"])
def test_a_checkpoint_that_somebody_needs_is_kept(team, user):
    with transaction() as db:
        job, points = ended(db, team, LOSSES)
        needed = points[10]
        if user == "evaluation":
            a_job(db, team, Kind.EVALUATE, state=State.FAILED, checkpoint_id=needed.id)
        elif user == "resumed":
            a_job(db, team, resume_checkpoint_id=needed.id)
        elif user == "export":
            a_job(db, team, Kind.EXPORT, state=State.SUCCEEDED, checkpoint_id=needed.id)
        elif user == "schedule":
            name = base_models.name_of(needed, job, team)
            version = a_dataset(db, team)
            order = {"recipe": "sft", "base_model": name}
            schedules.create(db, team_id=team.id, name="nightly", cron="0 2 * * *", zone="UTC",
                             dataset_id=version.dataset_id, order=order)  # fmt: skip
        else:
            retention.pin(db, needed.id, on=True)
    janitor.tidy()
    assert left(job.id) == [10, 20, 30, 50]


def test_what_nobody_needs_any_longer_goes_at_a_later_look(team):
    with transaction() as db:
        job, points = ended(db, team, LOSSES)
        user = a_job(db, team, Kind.EVALUATE, state=State.SUCCEEDED, checkpoint_id=points[10].id)
        retention.pin(db, points[40].id, on=True)
    janitor.tidy()
    assert left(job.id) == sorted(LOSSES)
    with transaction() as db:
        retention.pin(db, points[40].id, on=False)
    janitor.tidy()
    assert left(job.id) == [10, 20, 30, 50]
    with transaction() as db:
        jobs.delete(db, user, "somebody")
        db.get_one(Job, job.id).swept_at = now() - timedelta(days=2)
    janitor.tidy()
    assert left(job.id) == [20, 30, 50]
    with pytest.raises(Refused, match="has been removed"), transaction() as db:
        retention.pin(db, points[10].id, on=True)


# --- at the same time -------------------------------------------------------------------------------


def test_who_begins_to_use_a_checkpoint_keeps_it_or_finds_it_gone(team):
    with transaction() as db:
        job, points = ended(db, team, LOSSES)
        a_job(db, team)
    with transaction() as db:
        assert checkpoints.hold(db, points[10].id)
        with transaction() as other:
            assert [point.step for point in retention.free(other, job.id)] == [40]
    with transaction() as db:
        assert [point.step for point in retention.free(db, job.id)] == [10]
        seen, began = [], threading.Event()

        def late():
            with transaction() as other:
                began.set()
                seen.append(checkpoints.hold(other, points[10].id))

        thread = threading.Thread(target=late)
        thread.start()
        began.wait(10)
        db.commit()
    thread.join(10)
    assert seen == [None]
    with transaction() as db, pytest.raises(NotFound):
        jobs.submit_export(db, checkpoint=points[10], form="merged")
    with transaction() as db, pytest.raises(Refused, match="has no checkpoint"):
        jobs.retry(db, db.get_one(Job, job.id), "somebody", points[10].id)


def test_a_job_is_not_deleted_from_under_one_that_begins_to_use_its_checkpoint(team):
    with transaction() as db:
        job, points = ended(db, team, LOSSES)
        user = a_job(db, team, state=State.PAUSED)
    refused = []

    def delete():
        with transaction() as other:
            try:
                jobs.delete(other, other.get_one(Job, job.id), "somebody")
            except Refused as no:
                refused.append(no.message)

    with transaction() as db:
        assert checkpoints.hold(db, points[10].id)
        db.get_one(Job, user.id).checkpoint_id = points[10].id
        db.flush()
        thread = threading.Thread(target=delete)
        thread.start()
        until(lambda: waits_for_a_lock(db), 10, "the deletion waits")
        db.commit()
    thread.join(10)
    assert refused == [f"{user.id} still needs a checkpoint of {job.id}. Cancel that job, or wait for it."]
    assert left(job.id) == sorted(LOSSES)


def waits_for_a_lock(db):
    asked = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return db.connection().execute(asked).scalar_one()


# --- killed between the steps -----------------------------------------------------------------------

KILLED = """
import os, signal, sys
from shared import checkpoints, retention, storage
from worker import janitor
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def first_alone(prefix):
    storage.delete(next(storage.listed(prefix))["Key"])
    die()
where = sys.argv[1]
if where == "before the row is committed":
    retention.told = die
elif where == "after the row":
    retention.swept = die
elif where == "before the bytes":
    storage.delete_prefix = die
elif where == "amid the bytes":
    storage.delete_prefix = first_alone
elif where == "after the bytes":
    checkpoints.emptied = die
elif where == "amid the orphans":
    storage.delete = die
janitor.tidy()
"""


@pytest.mark.parametrize(
    ("where", "still"),
    [
        ("before the row is committed", [10, 20, 30, 40, 50]),
        ("amid the orphans", [20, 30, 50]),
        ("after the row", [20, 30, 50]),
        ("before the bytes", [20, 30, 50]),
        ("amid the bytes", [20, 30, 50]),
        ("after the bytes", [20, 30, 50]),
    ],
)
def test_a_kill_between_two_steps_loses_nothing_that_is_kept_and_leaves_nothing_behind(
    team, folder, monkeypatch, where, still
):
    with transaction() as db:
        job, points = ended(db, team, LOSSES, folder)
    storage.put_bytes(f"teams/{team.id}/jobs/{job.id}/1-lost/step-000005/servable/half", b"half")
    script = KILLED.replace(
        "janitor.tidy()", f"retention.GRACE = retention.timedelta(seconds={YOUNG})\njanitor.tidy()"
    )
    done = subprocess.run([sys.executable, "-c", script, where], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert left(job.id) == still
    for step in still:
        for entry in points[step].manifest:
            assert storage.exists(points[step].prefix + entry["name"])
    monkeypatch.setattr(retention, "GRACE", timedelta(seconds=YOUNG))
    janitor.tidy()
    janitor.tidy()
    assert left(job.id) == [20, 30, 50]
    assert objects(job) == {
        points[step].prefix + entry["name"] for step in (20, 30, 50) for entry in points[step].manifest
    }
    with transaction() as db:
        gone = db.exec(select(Checkpoint).where(Checkpoint.bytes == 0)).all()
    assert sorted(point.step for point in gone) == [10, 40]
    assert all(point.deleted_at and point.manifest == [] for point in gone)


YOUNG = -5  # seconds: what was stored just now counts as old


# --- orphans ----------------------------------------------------------------------------------------


def test_what_no_row_names_is_swept_once_it_has_lain_there_for_long(team, folder, monkeypatch):
    with transaction() as db:
        job, _ = ended(db, team, {10: 1.0}, folder)
        base = f"teams/{team.id}/jobs/{job.id}/"
        made = Artifact(
            team_id=team.id, job_id=job.id, form="metrics", state=Ready.READY, prefix=f"{base}artifacts/a/"
        )
        db.add(made)
        file = a_file(db, team, b"picture")
        file.key = f"{base}1-x/shard-000001/picture.png"
    for name in ("artifacts/a/step_metrics.csv", "1-x/shard-000001/picture.png", f"media/{'a' * 32}.png"):
        storage.put_bytes(base + name, b"named")
    lost = f"{base}1-lost/step-000010/state/optimizer.safetensors"
    storage.put_bytes(lost, b"lost")
    before = objects(job)
    janitor.tidy()
    assert objects(job) == before, "it is young: somebody may be at it still"
    with transaction() as db:
        db.get_one(Job, job.id).swept_at = None
    monkeypatch.setattr(retention, "GRACE", timedelta(seconds=YOUNG))
    janitor.tidy()
    assert before - objects(job) == {lost}
    with transaction() as db:
        assert db.get_one(Job, job.id).swept_at is not None


def test_of_a_running_job_only_what_attempts_of_long_ago_left_is_swept(team, folder, monkeypatch):
    with transaction() as db:
        job = a_job(db, team, state=State.RUNNING)
        kept = a_checkpoint(db, job, 10, folder)
        old = an_attempt(db, job, ended_at=now() - LONG_AGO, outcome=Outcome.LOST)
        fresh = an_attempt(db, job, ended_at=now(), outcome=Outcome.LOST)
        at_work = an_attempt(db, job)
    lost, late, under_way = (
        checkpoints.folder(job, attempt.number, attempt.lease_id) + "step-000020/state/loop.json"
        for attempt in (old, fresh, at_work)
    )
    for key in (lost, late, under_way):
        storage.put_bytes(key, b"half")
    janitor.tidy()
    assert {lost, late, under_way} <= objects(job), "they are young"
    with transaction() as db:
        assert db.get_one(Job, job.id).swept_at is not None
        db.get_one(Job, job.id).swept_at = now() - LONG_AGO
    monkeypatch.setattr(janitor, "now", lambda: now() + LONG_AGO)  # the objects have become old
    janitor.tidy()
    assert objects(job) == {late, under_way, *(kept.prefix + entry["name"] for entry in kept.manifest)}


# --- for people -------------------------------------------------------------------------------------


def test_the_job_page_states_the_rule_and_a_person_pins_and_unpins(app, alpha):
    with transaction() as db:
        member = a_user(db, alpha.team)
        job, points = ended(db, alpha.team, LOSSES, ago=timedelta(hours=1), base_model_id=alpha.model.id)
    visitor, at = Visitor(app, member), f"/jobs/{job.id}"
    page = visitor.get(at).text
    assert (
        "Keeps the best 2, the last, and every one that is pinned or in use; others are removed 1 day after the job"
        " ends."
    ) in page
    assert page.count("to be removed") == 2
    assert visitor.post(f"/checkpoints/{points[10].id}/pin").status_code == 303
    page = visitor.get(at).text
    assert page.count("to be removed") == 1
    assert '<span class="tag">pinned</span>' in page
    assert "pinned the checkpoint of step 10" in page
    assert visitor.post(f"/checkpoints/{points[10].id}/unpin").status_code == 303
    assert visitor.get(at).text.count("to be removed") == 2


def test_a_program_pins_and_unpins(alpha):
    with transaction() as db:
        job, points = ended(db, alpha.team, LOSSES, base_model_id=alpha.model.id)
    path = f"/fine_tuning/jobs/{job.id}/checkpoints"
    assert alpha.api.post(f"{path}/{points[10].id}/pin")["x_pinned"] is True
    janitor.tidy()
    assert left(job.id) == [10, 20, 30, 50]
    assert alpha.api.post(f"{path}/{points[10].id}/unpin")["x_pinned"] is False
    alpha.api.post(f"{path}/{points[40].id}/pin", 404)


def test_an_owner_sets_the_rule_and_sees_what_is_stored(app, alpha):
    with transaction() as db:
        owner = a_user(db, alpha.team, Role.OWNER)
        ended(db, alpha.team, {10: 1.0}, base_model_id=alpha.model.id)
    visitor = Visitor(app, owner)
    assert "Stored now: 1 checkpoint, 0 bytes." in visitor.get("/team").text
    assert visitor.post("/team/checkpoints", keep_best="many").status_code == 422
    assert visitor.post("/team/checkpoints", keep_best="101").status_code == 422
    assert visitor.post("/team/checkpoints", keep_best="4").status_code == 303
    assert "Keeps the best 4, the last" in visitor.get("/team").text
    assert visitor.post("/team/checkpoints", keep_best="").status_code == 303
    assert "Every checkpoint is kept." in visitor.get("/team").text
