"""An attempt from start to end, in this process, with a real trainer and tiny models."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest
from sqlmodel import col, select

from shared import checkpoints, datasets, events, jobs, shards, storage, workers
from shared.db import transaction
from shared.errors import Refused
from shared.jobs import Order
from shared.settings import settings
from shared.tables import (
    FINAL,
    Artifact,
    Attempt,
    DatasetVersion,
    Event,
    EventType,
    File,
    Job,
    Kind,
    Outcome,
    Ready,
    Slot,
    State,
)
from tests.factories import CHAT, a_base_model, a_dataset, a_file, a_team, tiny_causal_lm
from tests.services import until
from worker import janitor, runner
from worker.machine import Machine
from worker.slots import Slots


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_causal_lm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def machine(stack):
    """A worker in this process."""
    settings().heartbeat_seconds, settings().retry_seconds, settings().trainer_threads = 0.3, 0.1, 1
    running = Machine()
    running.start()
    yield running
    running.stop()
    assert running.zygote
    running.zygote.stop()
    settings.cache_clear()


@pytest.fixture
def team(clean, machine):
    """The worker's row is there again after the tables were emptied."""
    machine.register()
    with transaction() as db:
        return a_team(db)


def submitted(team, tiny, **hyperparameters):
    knobs = {
        "epochs": 2,
        "batch_size": 4,
        "max_length": 64,
        "learning_rate": 1e-3,
        "lora_rank": 4,
        "checkpoints": 2,
    }
    with transaction() as db:
        model, version = a_base_model(db, tiny), a_dataset(db, team)
        order = Order(
            team_id=team.id,
            recipe="sft",
            model=model.id,
            dataset_version_id=version.id,
            hyperparameters=knobs | hyperparameters,
            seed=7,
        )
        return jobs.submit(db, order)


def again(job_id):
    with transaction() as db:
        return db.get_one(Job, job_id)


def attempts(job_id):
    with transaction() as db:
        return db.exec(select(Attempt).where(Attempt.job_id == job_id).order_by(col(Attempt.number))).all()


def weights(job_id):
    """{name: sha256} of the last checkpoint's servable weights."""
    with transaction() as db:
        last = checkpoints.of(db, job_id)[0]
    return {
        e["name"]: hashlib.sha256(storage.read(last.prefix + e["name"])).hexdigest()
        for e in last.manifest
        if e["name"].startswith("servable/") and e["name"].endswith(".safetensors")
    }


def in_background(machine):
    thread = threading.Thread(target=machine.look, args=(Slot.COMPUTE,))
    thread.start()
    return thread


def steps(job_id):
    with transaction() as db:
        return [
            e.step for e in db.exec(select(Event).where(Event.job_id == job_id, Event.type == EventType.STEP))
        ]


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


def kept(job_id):
    with transaction() as db:
        return checkpoints.of(db, job_id)


def trainer_pid(machine):
    """The process that the zygote forked."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(machine.zygote.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(children.stdout.split()[0])


def test_a_cancelled_training_keeps_its_last_checkpoint(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        jobs.cancel(db, job, "somebody")
    thread.join(60)
    assert again(job.id).state == State.CANCELLED
    assert kept(job.id)[0].step < again(job.id).progress["total_steps"]


def test_a_drained_worker_gives_its_job_back_with_a_checkpoint(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    machine.draining.set()
    try:
        thread.join(60)
    finally:
        machine.draining.clear()
    job = again(job.id)
    assert (job.state, job.attempts) == (State.QUEUED, 0)
    assert attempts(job.id)[0].outcome == Outcome.RELEASED
    assert kept(job.id)


def test_a_worker_that_is_drained_from_outside_gives_its_job_back_until_it_takes_jobs_again(
    team, tiny, machine
):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        workers.drain(db, machine.id)
    thread.join(60)
    assert (again(job.id).state, again(job.id).attempts) == (State.QUEUED, 0)
    assert kept(job.id)
    machine.look(Slot.COMPUTE)
    assert len(attempts(job.id)) == 1
    with transaction() as db:
        workers.undrain(db, machine.id)
        jobs.cancel(db, job, "somebody")


def test_a_training_that_is_stopped_early_succeeds_with_scores_and_its_checkpoint(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1, evaluations=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        jobs.stop(db, job, "somebody")
    thread.join(60)
    job = again(job.id)
    assert (job.state, job.reason_code) == (State.SUCCEEDED, "stopped_early")
    (last,) = kept(job.id)
    assert 0 < last.step == job.progress["step"] < job.progress["total_steps"]
    assert job.best_checkpoint_id == last.id
    assert set(job.scores["tuned"]) == set(job.scores["base"]) != set()


def test_a_training_that_takes_too_long_fails_and_another_goes_on_from_its_checkpoint(team, tiny, machine):
    knobs = {"epochs": 40, "checkpoints": 1, "evaluations": 2}
    undisturbed = submitted(team, tiny, **knobs)
    machine.look(Slot.COMPUTE)
    job = submitted(team, tiny, **knobs)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        db.get_one(Job, job.id).max_run_seconds = 0
    thread.join(60)
    failed = again(job.id)
    assert (failed.state, failed.reason_code) == (State.FAILED, "max_run_time")
    assert "took longer than" in failed.reason
    (last,) = kept(job.id)
    with transaction() as db:
        db.get_one(Job, job.id).max_run_seconds = None
        follows = jobs.retry(db, db.get_one(Job, job.id), "somebody", last.id)
    machine.look(Slot.COMPUTE)
    assert again(follows.id).state == State.SUCCEEDED
    assert attempts(follows.id)[0].start_step == last.step
    assert min(steps(follows.id)) == last.step + 1
    assert weights(follows.id) == weights(undisturbed.id) != {}


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


def test_a_frozen_trainer_is_ended_and_tried_again(team, tiny, machine, monkeypatch):
    monkeypatch.setattr(settings(), "hang_seconds", 1.0)
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.5)
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: len(steps(job.id)) > 2, what="steps")
    os.kill(trainer_pid(machine), signal.SIGSTOP)
    until(lambda: attempts(job.id)[0].ended_at, 60, "the attempt is ended")
    first = attempts(job.id)[0]
    assert (first.outcome, first.reason_code) == (Outcome.CRASHED, "hang")
    monkeypatch.setattr(settings(), "hang_seconds", 600.0)
    with transaction() as db:
        jobs.cancel(db, job, "somebody")
    thread.join(60)


def test_what_is_wrong_with_the_data_fails_the_job_with_the_sentence(team, tiny, machine):
    job = submitted(team, tiny)
    with transaction() as db:
        db.get_one(Job, job.id).columns = {"messages": "nonsense"}
    machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert job.state == State.FAILED
    assert "nonsense" in job.reason


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


def events_of(lease_id):
    with transaction() as db:
        return db.exec(select(Event).where(Event.lease_id == lease_id).order_by(col(Event.seq))).all()


def test_a_lost_lease_stops_the_trainer_and_nothing_of_it_counts(team, tiny, machine):
    job = submitted(team, tiny, epochs=100, checkpoints=1)
    thread = in_background(machine)
    until(lambda: steps(job.id), what="a step")
    with transaction() as db:
        row = jobs.held_job(db, attempts(job.id)[0].lease_id)
        assert row
        jobs.close(db, row, Outcome.LOST, actor="reaper", reason="a test")
        row.run_after = jobs.clock(db).replace(year=2100)
    thread.join(60)
    assert again(job.id).state == State.QUEUED
    assert kept(job.id) == []
    assert list(machine.attempts.iterdir()) == []


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


# --- the other kinds --------------------------------------------------------------------------------


@pytest.fixture
def trained(team, tiny, machine):
    """A job that has trained an adapter."""
    job = submitted(team, tiny, epochs=1, checkpoints=1)
    machine.look(Slot.COMPUTE)
    return again(job.id)


def answers(job_id):
    """{form: the lines of that artifact}."""
    with transaction() as db:
        made = db.exec(select(Artifact).where(Artifact.job_id == job_id)).all()
        keys = {one.form: db.get_one(File, one.file_id).key for one in made if one.file_id}
    return {form: [json.loads(line) for line in storage.read(key).splitlines()] for form, key in keys.items()}


def test_a_checkpoint_answers_the_rows_of_a_dataset(team, trained, machine):
    with transaction() as db:
        order = Order(
            team_id=team.id,
            kind=Kind.INFER,
            model=trained.best_checkpoint_id,
            dataset_version_id=trained.dataset_version_id,
            hyperparameters={"max_tokens": 4},
        )
        job = jobs.submit(db, order)
    machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert (job.state, job.reason) == (State.SUCCEEDED, None)
    assert job.scores["requests"] == {"total": 12, "completed": 12, "failed": 0}
    lines = answers(job.id)["predictions"]
    assert len(lines) == 12
    assert set(lines[0]) == {"row", "input", "output"}


def questions(team, trained, count, **knobs):
    """A job that asks that many questions."""
    rows = [{"messages": [{"role": "user", "content": f"What is {n}?"}]} for n in range(count)]
    with transaction() as db:
        order = Order(
            team_id=team.id,
            kind=Kind.INFER,
            model=trained.best_checkpoint_id,
            dataset_version_id=a_dataset(db, team, rows).id,
            columns={"messages": "messages"},
            hyperparameters=knobs,
        )
        return jobs.submit(db, order)


def a_shard(job, number, lines, **media):
    """A shard as an attempt before has stored it."""
    prefix = f"teams/{job.team_id}/jobs/{job.id}/1-before/shard-{number:06d}/"
    files = {"answers.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()} | media
    for name, data in files.items():
        storage.put_bytes(prefix + name, data)
    manifest = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    with transaction() as db:
        db.add(
            Artifact(
                team_id=job.team_id,
                job_id=job.id,
                form=f"shard-{number:06d}",
                state=Ready.READY,
                prefix=prefix,
                manifest=manifest,
                bytes=1,
            )
        )
    return prefix


def told(said):
    return {"content": said, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}


def test_what_shards_answer_is_not_answered_again(team, trained, machine):
    job = questions(team, trained, 6, max_tokens=3)
    kept = a_shard(job, 1, [{"place": 4, "output": told("four")}, {"place": 1, "output": told("one")}])
    broken = a_shard(job, 2, [{"place": 2, "output": told("two")}])
    storage.put_bytes(f"{broken}answers.jsonl", b"something else")
    machine.look(Slot.COMPUTE)
    assert again(job.id).state == State.SUCCEEDED, again(job.id).reason
    lines = answers(job.id)["predictions"]
    assert [line["input"]["messages"][0]["content"] for line in lines] == [f"What is {n}?" for n in range(6)]
    said = [line["output"]["content"] for line in lines]
    assert (said[4], said[1]) == ("four", "one")
    assert said[2] != "two"
    janitor.tidy()
    assert not storage.exists(f"{kept}answers.jsonl")
    with transaction() as db:
        forms = db.exec(select(Artifact.form).where(Artifact.job_id == job.id)).all()
    assert forms == ["predictions"]


def test_pictures_are_files_and_one_zip_named_by_row(team, trained, machine):
    job = questions(team, trained, 3)
    red, blue = f"{'a' * 32}.png", f"{'b' * 32}.png"
    lines = [{"place": 0, "output": {"media": blue}}, {"place": 2, "output": {"media": red}}]
    a_shard(job, 1, lines, **{red: b"red", blue: b"blue"})
    a_shard(job, 2, [{"place": 1, "error": {"message": "No."}}])
    machine.look(Slot.COMPUTE)
    with transaction() as db:
        made = db.exec(select(Artifact).where(Artifact.job_id == job.id)).all()
        files = {artifact.form: db.get_one(File, artifact.file_id) for artifact in made if artifact.file_id}
    lines = [json.loads(line) for line in storage.read(files["predictions"].key).splitlines()]
    assert lines[1]["error"] == {"message": "No."}
    with transaction() as db:
        pictures = [db.get_one(File, lines[n]["output"]["file_id"]) for n in (0, 2)]
    assert [storage.read(file.key) for file in pictures] == [b"blue", b"red"]
    assert [file.filename for file in pictures] == ["1.png", "3.png"]
    with zipfile.ZipFile(io.BytesIO(storage.read(files["media"].key))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "1.png": b"blue",
            "3.png": b"red",
        }
    janitor.tidy()
    assert [storage.read(file.key) for file in pictures] == [b"blue", b"red"], "they outlive their shard"
    with transaction() as db:
        jobs.delete(db, again(job.id), "somebody")
        assert all(db.get_one(File, file.id).deleted_at for file in pictures)


def test_a_cancelled_inference_keeps_its_answers_so_far(team, trained, machine):
    job = questions(team, trained, 4000, max_tokens=32)
    thread = in_background(machine)
    until(lambda: again(job.id).progress.get("rows_per_second"), what="answers")
    with transaction() as db:
        jobs.cancel(db, job, "somebody")
    thread.join(60)
    job = again(job.id)
    assert job.state == State.CANCELLED
    lines = answers(job.id)["predictions"]
    reached = [line for line in lines if "output" in line]
    assert len(lines) == 4000
    assert 0 < len(reached) == job.scores["requests"]["completed"] < 4000
    assert lines[-1]["error"]["code"] == "batch_cancelled" or lines[0]["error"]["code"] == "batch_cancelled"


def test_an_inference_that_takes_too_long_keeps_its_answers_so_far(team, trained, machine):
    job = questions(team, trained, 4000, max_tokens=32)
    thread = in_background(machine)
    until(lambda: again(job.id).progress.get("rows_per_second"), what="answers")
    with transaction() as db:
        db.get_one(Job, job.id).max_run_seconds = 0
    thread.join(60)
    job = again(job.id)
    assert (job.state, job.reason_code) == (State.FAILED, "max_run_time")
    reached = [line for line in answers(job.id)["predictions"] if "output" in line]
    assert 0 < len(reached) == job.scores["requests"]["completed"] < 4000


@pytest.mark.parametrize("verb", [None, jobs.pause], ids=["queued", "paused"])
def test_an_inference_cancelled_while_it_waits_gives_the_answers_of_earlier_attempts(
    team, trained, machine, verb
):
    job = batch(team, trained, [request(f"r{n}") for n in range(3)])
    a_shard(job, 1, [{"place": 1, "output": told("one")}])
    with transaction() as db:
        if verb:
            verb(db, job, "somebody")
        waiting = jobs.cancel(db, job, "somebody")
        assert (waiting.state, waiting.slot) == (State.QUEUED, Slot.LIGHT)
        with pytest.raises(Refused, match="being cancelled"):
            jobs.pause(db, job, "somebody")
    machine.look(Slot.COMPUTE)
    assert again(job.id).state == State.QUEUED, "no slot of those that compute is taken"
    machine.look(Slot.LIGHT)
    job = again(job.id)
    assert (job.state, job.scores["requests"]) == (
        State.CANCELLED,
        {"total": 3, "completed": 1, "failed": 2},
    )
    made = answers(job.id)
    (answered,) = made["predictions"]
    assert answered["custom_id"] == "r1"
    assert answered["response"]["body"]["choices"][0]["message"]["content"] == "one"
    assert [line["custom_id"] for line in made["errors"]] == ["r0", "r2"]
    assert {line["error"]["code"] for line in made["errors"]} == {"batch_cancelled"}


def test_a_worker_lost_while_it_makes_the_files_of_a_cancelled_inference_is_followed_by_another(
    team, trained, machine
):
    job = batch(team, trained, [request(f"r{n}") for n in range(3)])
    a_shard(job, 1, [{"place": 1, "output": told("one")}])
    with transaction() as db:
        jobs.cancel(db, job, "somebody")
        attempt = jobs.claim(db, machine.id, Slot.LIGHT)
        assert attempt
        assert attempt.job_id == job.id
        assert jobs.finish(db, attempt.lease_id, Outcome.LOST) == State.QUEUED
    machine.look(Slot.LIGHT)
    assert again(job.id).state == State.CANCELLED
    assert len(answers(job.id)["predictions"]) == 1


def test_a_waiting_inference_without_answers_is_cancelled_at_once(team, trained):
    job = batch(team, trained, [request("a")])
    with transaction() as db:
        assert jobs.cancel(db, job, "somebody").state == State.CANCELLED


def test_what_shards_have_judged_is_not_judged_again(team, trained, machine):
    def evaluation():
        with transaction() as db:
            order = Order(
                team_id=team.id, kind=Kind.EVALUATE, model=trained.best_checkpoint_id,
                dataset_version_id=trained.dataset_version_id, seed=3,
            )  # fmt: skip
            return jobs.submit(db, order)

    undisturbed = evaluation()
    machine.look(Slot.COMPUTE)
    assert again(undisturbed.id).state == State.SUCCEEDED, again(undisturbed.id).reason
    with transaction() as db:
        (shard,) = shards.of(db, undisturbed.id)
    done = [json.loads(line) for line in storage.read(f"{shard.prefix}{shards.LINES}").splitlines()]
    job = evaluation()
    a_shard(job, 1, done[: len(done) // 2])
    machine.look(Slot.COMPUTE)
    assert again(job.id).state == State.SUCCEEDED, again(job.id).reason
    with transaction() as db:
        told = select(Event).where(Event.job_id == job.id, Event.type == EventType.SHARD)
        fresh = sum(event.data["answers"] for event in db.exec(told))
    assert fresh == len(done) - len(done) // 2
    assert results_of(job.id) == results_of(undisturbed.id)


def results_of(job_id):
    """What an evaluation found, but for its duration."""
    with transaction() as db:
        made = db.exec(
            select(Artifact).where(Artifact.job_id == job_id, col(Artifact.form).in_(("results", "report")))
        )
        files = {artifact.form: storage.read(db.get_one(File, artifact.file_id).key) for artifact in made}
    report = json.loads(files["report"])
    del report["seconds"]
    return files["results"], report


def batch(team, trained, lines):
    data = "\n".join(json.dumps(line) for line in lines).encode()
    with transaction() as db:
        file = a_file(db, team, data, "batch.jsonl", "batch")
        endpoint = {"endpoint": "/v1/chat/completions"}
        order = Order(
            team_id=team.id,
            kind=Kind.INFER,
            model=trained.best_checkpoint_id,
            file_id=file.id,
            asked=endpoint,
        )
        return jobs.submit(db, order)


def request(custom_id, **body):
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_a_batch_file_is_answered_in_the_shape_of_openai(team, trained, machine):
    job = batch(team, trained, [request("a"), request("b", n=2), request("c")])
    machine.look(Slot.COMPUTE)
    assert again(job.id).scores["requests"] == {"total": 3, "completed": 2, "failed": 1}
    told = answers(job.id)
    assert [line["custom_id"] for line in told["predictions"]] == ["a", "c"]
    assert told["predictions"][0]["response"]["body"]["object"] == "chat.completion"
    assert [line["custom_id"] for line in told["errors"]] == ["b"]


def test_a_batch_file_with_a_bad_line_fails_with_the_line(team, trained, machine):
    job = batch(team, trained, [request("a"), request("a")])
    machine.look(Slot.COMPUTE)
    job = again(job.id)
    assert job.state == State.FAILED
    assert job.scores["errors"][0]["line"] == 2


def test_an_adapter_is_merged_into_a_full_model(team, trained, machine):
    with transaction() as db:
        checkpoint = checkpoints.of(db, trained.id)[0]
        job = jobs.submit_export(db, checkpoint=checkpoint, form="merged")
    machine.look(Slot.LIGHT)
    assert again(job.id).state == State.SUCCEEDED
    with transaction() as db:
        artifact = db.exec(select(Artifact).where(Artifact.job_id == job.id)).one()
    names = {entry["name"] for entry in artifact.manifest}
    assert {"config.json", "model.safetensors"} <= names
    assert storage.exists(f"{artifact.prefix}config.json")


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


def test_an_upload_is_imported_and_then_trains_the_job_that_waits_for_it(team, tiny, machine):
    rows = "".join(json.dumps(row) + "\n" for row in CHAT).encode()
    file = datasets.upload(
        team_id=team.id, stream=io.BytesIO(rows), filename="chat.jsonl", purpose="fine-tune", created_by=None
    )
    with transaction() as db:
        version = db.exec(select(DatasetVersion).where(DatasetVersion.file_id == file.id)).one()
        model = a_base_model(db, tiny)
        knobs = {"epochs": 1, "batch_size": 4, "max_length": 64}
        order = Order(
            team_id=team.id,
            recipe="sft",
            model=model.id,
            dataset_version_id=version.id,
            hyperparameters=knobs,
        )
        job = jobs.submit(db, order)
    assert (job.stage, job.columns) == ("waiting", {})
    assert machine.look(Slot.LIGHT)
    until(lambda: again(job.id).state in FINAL, 60, "the waiting job ran at once, without another wake-up")
    job = again(job.id)
    assert (job.state, job.reason) == (State.SUCCEEDED, None)
    assert job.columns == {"messages": "messages"}


def test_an_upload_that_cannot_be_read_fails_with_its_row(team, machine):
    good = json.dumps(CHAT[0] | {"note": "x" * 10_000}).encode() + b"\n"
    rows = good * 1300 + b"{oops\n"  # beyond what is looked at while the upload waits
    file = datasets.upload(
        team_id=team.id, stream=io.BytesIO(rows), filename="chat.jsonl", purpose="fine-tune", created_by=None
    )
    machine.look(Slot.LIGHT)
    with transaction() as db:
        version = db.exec(select(DatasetVersion).where(DatasetVersion.file_id == file.id)).one()
        assert version.state == Ready.FAILED
        assert "Line 1301 is not JSON" in (version.error or "")
        assert db.get_one(File, file.id).status == "error"


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
