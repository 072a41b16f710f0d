"""What a checkpoint answers: to datasets and batch files, after an earlier attempt, and until somebody cancels."""

import io
import json
import zipfile

import pytest
from sqlmodel import col, select

from shared import jobs, shards, storage
from shared.db import transaction
from shared.errors import Refused
from shared.jobs import Order
from shared.tables import Artifact, Event, EventType, File, Job, Kind, Outcome, Slot, State
from tests.integration.runner.orders import a_shard, batch, questions, request, told
from tests.integration.runner.runs import again, answers, in_background
from tests.services import until
from worker import janitor


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
