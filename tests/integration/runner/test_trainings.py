"""A training from start to end, in this process, with a real trainer and a tiny model."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
from sqlmodel import select

from shared import checkpoints, events, jobs, storage
from shared.db import transaction
from shared.jobs import Order
from shared.tables import Artifact, EventType, File, Job, Outcome, Slot, State
from tests.integration.runner.orders import submitted
from tests.integration.runner.runs import (
    again,
    attempts,
    events_of,
    in_background,
    kept,
    steps,
    trainer_pid,
    weights,
)
from tests.services import until
from worker import janitor
from worker.slots import Slots


def test_a_submitted_job_trains_and_leaves_checkpoints_scores_and_metrics(team, tiny, machine):
    job = submitted(team, tiny)
    assert machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert (job.state, job.reason) == (State.SUCCEEDED, None)
    assert job.progress["step"] == job.progress["total_steps"]
    assert set(job.scores["base"]) == set(job.scores["tuned"]) != set()
    with transaction() as db:
        stored = checkpoints.of(db, job.id)
        artifact = db.exec(select(Artifact).where(Artifact.job_id == job.id)).one()
        csv = storage.read(db.get_one(File, artifact.file_id).key).decode()
    assert len(stored) == 2
    assert job.best_checkpoint_id in [c.id for c in stored]
    assert "valid_loss" in stored[0].metrics
    assert csv.splitlines()[0].startswith(
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    )
    assert len(csv.splitlines()) > 2
    for entry in stored[0].manifest:
        assert hashlib.sha256(storage.read(stored[0].prefix + entry["name"])).hexdigest() == entry["sha256"]
    assert list(machine.attempts.iterdir()) == []


def test_a_killed_trainer_is_resumed_and_ends_with_the_same_weights(team, tiny, machine):
    knobs = {"epochs": 40, "checkpoints": 12, "evaluations": 2}
    undisturbed = submitted(team, tiny, **knobs)
    machine.look(Slot.COMPUTE)
    disturbed = submitted(team, tiny, **knobs)
    thread = in_background(machine)
    until(lambda: kept(disturbed.id), what="a checkpoint is stored")
    os.killpg(trainer_pid(machine), signal.SIGKILL)
    thread.join(60)
    first = attempts(disturbed.id)[0]
    assert (first.outcome, first.reason_code) == (Outcome.CRASHED, "sigkill")
    until(lambda: machine.look(Slot.COMPUTE) and again(disturbed.id).state == State.SUCCEEDED, 60)
    second = attempts(disturbed.id)[1]
    assert second.start_step > 0
    assert weights(disturbed.id) == weights(undisturbed.id) != {}


def test_a_checkpoint_whose_bytes_changed_is_not_resumed_from(team, tiny, machine):
    job = submitted(team, tiny, epochs=50, checkpoints=6, evaluations=1)
    thread = in_background(machine)
    until(lambda: len(kept(job.id)) >= 2, what="two checkpoints")
    machine.draining.set()
    thread.join(60)
    machine.draining.clear()
    newest, before = kept(job.id)[:2]
    name = next(e["name"] for e in newest.manifest if e["name"].endswith("optimizer.safetensors"))
    storage.put_bytes(newest.prefix + name, b"something else")
    thread = in_background(machine)
    until(
        lambda: len(attempts(job.id)) == 2 and events_of(attempts(job.id)[1].lease_id),
        what="the second attempt",
    )
    thread.join(100)
    assert again(job.id).state == State.SUCCEEDED
    resumed = [e.step for e in events_of(attempts(job.id)[1].lease_id) if e.type == EventType.STEP]
    assert before.step < min(resumed) <= newest.step
    assert attempts(job.id)[1].start_step == before.step
    said = [e.data["message"] for e in events_of(attempts(job.id)[1].lease_id) if e.type == EventType.LOG]
    told = f"Checkpoint of step {newest.step:,} is damaged in the store; going on from step {before.step:,}."
    assert told in said


@pytest.fixture
def two_slots(machine, tmp_path, monkeypatch):
    """The worker offers two compute slots meanwhile."""
    counts = {Slot.COMPUTE: 2, Slot.LIGHT: 1}
    monkeypatch.setattr(machine, "counts", counts)
    monkeypatch.setattr(machine, "slots", Slots(tmp_path / "slots", counts))
    machine.register()
    yield machine
    monkeypatch.undo()
    machine.register()


def test_a_job_of_two_processes_occupies_two_slots_while_it_runs(team, tiny, two_slots):
    job = submitted(team, tiny, epochs=1, checkpoints=1)
    with transaction() as db:
        db.get_one(Job, job.id).resources = {"processes": 2}
    assert two_slots.look(Slot.COMPUTE)
    assert again(job.id).state == State.SUCCEEDED
    assert attempts(job.id)[0].slots == ["compute", "compute"]
    assert [two_slots.slots.take(Slot.COMPUTE) for _ in range(3)] == [0, 1, None]


def test_what_is_wrong_with_the_data_fails_the_job_with_the_sentence(team, tiny, machine):
    job = submitted(team, tiny)
    with transaction() as db:
        db.get_one(Job, job.id).columns = {"messages": "nonsense"}
    machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert job.state == State.FAILED
    assert "nonsense" in job.reason


def test_the_first_step_comes_quickly_on_a_warm_worker(team, tiny, machine):
    """No figure is asserted but the bound: the bench measures."""
    submitted(team, tiny)
    machine.look(Slot.COMPUTE)
    started = time.monotonic()
    job = submitted(team, tiny, epochs=30)
    thread = in_background(machine)
    until(lambda: steps(job.id), 20, "the first step")
    taken = time.monotonic() - started
    thread.join(60)
    assert taken < 10


def test_the_worker_process_loads_no_training_library():
    program = (
        "import worker.tasks, sys; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == "[]"


def test_events_of_an_attempt_are_stored_once_and_in_order(team, tiny, machine):
    job = submitted(team, tiny)
    machine.look(Slot.COMPUTE)
    with transaction() as db:
        found = events.after(db, job.id)
    assert [e.seq for e in found] == list(range(1, len(found) + 1))
    assert {EventType.STAGE, EventType.STEP, EventType.EVAL, EventType.CHECKPOINT} <= {e.type for e in found}


def test_a_job_may_start_from_a_checkpoint_of_another(team, trained, machine):
    with transaction() as db:
        order = Order(
            team_id=team.id,
            recipe="sft",
            model=trained.best_checkpoint_id,
            dataset_version_id=trained.dataset_version_id,
            hyperparameters=trained.spec,
            seed=trained.seed,  # the same rows are held out
        )
        job = jobs.submit(db, order)
    machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert job.state == State.SUCCEEDED
    assert job.scores["base"]["loss"] == pytest.approx(trained.scores["tuned"]["loss"], rel=1e-3)


def test_the_bytes_of_a_deleted_job_are_removed(team, trained):
    key = kept(trained.id)[0].prefix + "servable/README.md"
    assert storage.exists(key)
    with transaction() as db:
        jobs.delete(db, trained, "somebody")
    assert janitor.tidy() == 1
    assert not storage.exists(key)
    assert janitor.tidy() == 0
    with transaction() as db:
        assert all(
            file.deleted_at for file in db.exec(select(File).where(File.purpose == "fine-tune-results"))
        )
