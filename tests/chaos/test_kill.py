"""Real processes, killed for real: web, worker, beat, zygote and trainer as they run in production."""

import json
import os
import signal
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from sqlmodel import col, select

from shared import checkpoints, events, jobs, queue, schedules, shards, storage
from shared.db import transaction
from shared.jobs import Order
from shared.settings import settings
from shared.stack import beat_command
from shared.tables import (
    Artifact,
    Attempt,
    Event,
    EventType,
    File,
    Job,
    Kind,
    Outcome,
    RunOutcome,
    State,
    Transition,
)
from tests.factories import a_base_model, a_dataset, a_team, tiny_causal_lm
from tests.services import until

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


@pytest.fixture(scope="module")
def model(live, tmp_path_factory):
    """The id of a tiny base model in the live store."""
    folder = tiny_causal_lm(tmp_path_factory.mktemp("tiny"))
    with transaction() as db:
        return a_base_model(db, folder).id


def an_order(db, model, processes=1, **hyperparameters):
    team = a_team(db, f"chaos {time.monotonic_ns()}")
    knobs = {
        "epochs": 60,
        "batch_size": 4,
        "max_length": 64,
        "lora_rank": 4,
        "checkpoints": 20,
        "evaluations": 1,
    }
    return Order(
        team_id=team.id,
        recipe="sft",
        model=model,
        dataset_version_id=a_dataset(db, team).id,
        hyperparameters=knobs | hyperparameters,
        processes=processes,
    )


def submitted(model, **asked):
    with transaction() as db:
        return jobs.submit(db, an_order(db, model, **asked))


def again(job):
    with transaction() as db:
        return db.get_one(Job, job.id)


def stored(job):
    """The steps of its stored checkpoints, newest first."""
    with transaction() as db:
        return [checkpoint.step for checkpoint in checkpoints.of(db, job.id)]


def newest_told(job, attempt):
    """The step of the newest checkpoint that an attempt reported, stored or not."""
    with transaction() as db:
        told = select(Event.step).where(Event.job_id == job.id, Event.lease_id == attempt.lease_id)
        return max(step or 0 for step in db.exec(told.where(Event.type == EventType.CHECKPOINT)).all())


def attempts(job):
    with transaction() as db:
        return db.exec(select(Attempt).where(Attempt.job_id == job.id).order_by(col(Attempt.number))).all()


def ends(job, seconds=120):
    """The job once it has ended."""
    until(lambda: again(job).finished_at, seconds, f"{job.id} ends")
    return again(job)


def descendants(pid):
    """Every process below that one, wherever its session."""
    told = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in told.splitlines())}
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def alive(pids):
    """Those that still run (a zombie that waits for its reaper does not)."""

    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return "gone"

    return {pid for pid in pids if state(pid) not in ("Z", "X", "gone")}


def test_a_job_survives_kill_9_of_its_worker(live, model):
    job = submitted(model)
    queue.wake(job.slot)
    until(lambda: len(stored(job)) >= 2, 150, "two checkpoints")
    below = descendants(live.pid("worker"))
    assert len(below) >= 2  # zygote and trainer
    live.kill_worker()
    killed = time.monotonic()
    kept = stored(job)[0]
    reached = max(kept, again(job).progress.get("step", 0))  # progress is told once a second
    until(lambda: not alive(below), 1.0, "no trainer outlives its worker by a second")
    live.begin("worker")
    assert ends(job).state == State.SUCCEEDED
    first, *_, last = attempts(job)
    assert (first.outcome, last.outcome) == (Outcome.LOST, Outcome.SUCCEEDED)
    assert last.start_step >= kept
    interval = again(job).progress["total_steps"] // 20 + 1
    on_its_way = newest_told(job, first) > kept  # a checkpoint whose row was not there yet
    assert reached - last.start_step <= interval * (2 if on_its_way else 1)
    assert again(job).attempts == 1  # what the machine did is not charged
    assert time.monotonic() - killed < 120


def test_an_inference_survives_kill_9_and_asks_nothing_twice(live, model):
    rows = [{"messages": [{"role": "user", "content": f"Say {n}. " + "x" * (n % 40)}]} for n in range(4000)]
    with transaction() as db:
        team = a_team(db, f"chaos {time.monotonic_ns()}")
        order = Order(
            team_id=team.id,
            kind=Kind.INFER,
            model=model,
            dataset_version_id=a_dataset(db, team, rows).id,
            hyperparameters={"max_tokens": 96},
        )
        job = jobs.submit(db, order)
    queue.wake(job.slot)
    until(lambda: len(stored_shards(job)) >= 2, 120, "two shards")
    live.kill_worker()
    kept = {place: answer for shard in stored_shards(job) for place, answer in answers_in(shard).items()}
    live.begin("worker")
    assert 0 < len(kept) < len(rows)
    assert ends(job).state == State.SUCCEEDED
    first, *_, last = attempts(job)
    assert (first.outcome, last.outcome) == (Outcome.LOST, Outcome.SUCCEEDED)
    assert shards_told(last) == len(rows) - len(kept), "what a stored shard answers is not asked again"
    with transaction() as db:
        made = db.exec(
            select(Artifact).where(Artifact.job_id == job.id, Artifact.form == "predictions")
        ).one()
        lines = [json.loads(one) for one in storage.read(db.get_one(File, made.file_id).key).splitlines()]
    assert [line["input"]["messages"] for line in lines] == [row["messages"] for row in rows]
    assert all("output" in line for line in lines)
    assert {place: lines[place]["output"] for place in kept} == kept
    until(lambda: not stored_shards(job), 10, "the shards are gone")


def test_an_evaluation_survives_kill_9_judges_nothing_twice_and_finds_the_same(live, model):
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}. " + "x" * (n % 40)}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(600)
    ]  # fmt: skip
    with transaction() as db:
        team = a_team(db, f"chaos {time.monotonic_ns()}")
        order = Order(
            team_id=team.id,
            kind=Kind.EVALUATE,
            recipe="sft",
            model=model,
            dataset_version_id=a_dataset(db, team, rows).id,
            seed=5,
        )
        job = jobs.submit(db, order)
    queue.wake(job.slot)
    until(lambda: stored_shards(job), 120, "a shard")
    live.kill_worker()
    kept = sum(len(storage.read(f"{one.prefix}{shards.LINES}").splitlines()) for one in stored_shards(job))
    live.begin("worker")
    assert ends(job).state == State.SUCCEEDED
    first, *_, last = attempts(job)
    assert (first.outcome, last.outcome) == (Outcome.LOST, Outcome.SUCCEEDED)
    with transaction() as db:
        undisturbed = jobs.submit(db, order)
    queue.wake(job.slot)
    assert ends(undisturbed).state == State.SUCCEEDED
    assert 0 < kept < shards_told(attempts(undisturbed)[0])
    assert shards_told(last) == shards_told(attempts(undisturbed)[0]) - kept
    assert found_by(job) == found_by(undisturbed)


def found_by(job):
    """Every row's line as bytes, and the report but for its duration."""
    with transaction() as db:
        wanted = select(Artifact).where(
            Artifact.job_id == job.id, col(Artifact.form).in_(("results", "report"))
        )
        files = {made.form: storage.read(db.get_one(File, made.file_id).key) for made in db.exec(wanted)}
    report = json.loads(files["report"])
    assert report.pop("seconds") > 0
    return files["results"], report


def stored_shards(job):
    with transaction() as db:
        return shards.of(db, job.id)


def answers_in(shard):
    """{place of the request: its output}."""
    lines = storage.read(f"{shard.prefix}{shards.LINES}").splitlines()
    return {told["place"]: told["output"] for told in map(json.loads, lines)}


def shards_told(attempt):
    """How many answers that attempt has finished."""
    with transaction() as db:
        told = select(Event).where(Event.lease_id == attempt.lease_id, Event.type == EventType.SHARD)
        return sum(event.data["answers"] for event in db.exec(told))


def test_a_drained_worker_gives_its_job_back_and_another_goes_on(live, model):
    job = submitted(model, epochs=100)
    queue.wake(job.slot)
    until(lambda: again(job).progress.get("step"), 60, "the first step")
    live.end("worker")
    given_back = again(job)
    assert (given_back.state, given_back.attempts) == (State.QUEUED, 0)
    assert stored(job)[0] >= given_back.progress["step"]
    with transaction() as db:
        jobs.cancel(db, given_back, "the test has seen enough")
    live.begin("worker")
    live.await_worker()


def test_a_lost_wake_up_costs_at_most_a_sweep(live, model):
    job = submitted(model, epochs=1)  # and no wake-up
    with redis.Redis.from_url(settings().redis_url) as broker:
        broker.delete(queue.LIST)
    until(lambda: again(job).started_at, settings().sweep_seconds + 4, "a sweep finds it")
    assert ends(job).state == State.SUCCEEDED


def test_two_beats_run_a_schedule_once(live, model):
    second = subprocess.Popen(
        beat_command(),
        env=os.environ | live.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with transaction() as db:
            order = an_order(db, model, epochs=1)
            version = order.dataset_version_id
            dataset_id = db.get_one(schedules.datasets.DatasetVersion, version).dataset_id
            asked = {"recipe": "sft", "base_model": model, "hyperparameters": {"epochs": 0.1}}
            schedule = schedules.create(
                db,
                team_id=order.team_id,
                name="n",
                cron="* * * * *",
                zone="UTC",
                dataset_id=dataset_id,
                order=asked,
            )
            schedule.since = jobs.clock(db) - timedelta(seconds=61)
        until(lambda: runs(schedule), 20, "a run")
        time.sleep(3)  # both beats have ticked again
        done = [run for run in runs(schedule) if run.outcome == RunOutcome.SUBMITTED]
        nominal = [run.nominal for run in done]
        assert len(nominal) == len(set(nominal)) >= 1
        with transaction() as db:
            made = db.exec(select(Job).where(Job.schedule_id == schedule.id)).all()
            schedules.delete(db, schedule)
        assert {job.id for job in made} == {run.job_id for run in done}
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait(20)


def runs(schedule):
    with transaction() as db:
        return schedules.runs(db, schedule.id)


def test_kill_9_of_the_zygote_gives_the_job_back_and_the_worker_recovers(live, model):
    job = submitted(model)
    queue.wake(job.slot)
    until(lambda: stored(job), 60, "a checkpoint")
    worker = live.pid("worker")
    zygote = next(pid for pid in descendants(worker) if parent(pid) == worker and "zygote" in command(pid))
    below = descendants(zygote)
    os.kill(zygote, signal.SIGKILL)
    until(lambda: not alive(below), 1.0, "no trainer outlives its zygote by a second")
    job = ends(job)
    assert (job.state, job.attempts) == (State.SUCCEEDED, 1)
    with transaction() as db:
        story = db.exec(select(Transition.reason).where(Transition.job_id == job.id)).all()
    assert any("forks trainers" in reason for reason in story)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_job_of_two_processes_survives_kill_9_of_either(live, model, victim):
    job = submitted(model, processes=2)
    queue.wake(job.slot)
    until(lambda: stored(job), 150, "a checkpoint")
    worker = live.pid("worker")
    zygote = next(pid for pid in descendants(worker) if parent(pid) == worker and "zygote" in command(pid))
    (first,) = (pid for pid in descendants(zygote) if parent(pid) == zygote)
    (second,) = descendants(first)
    kept = stored(job)[0]
    os.kill((first, second)[victim], signal.SIGKILL)
    until(lambda: not alive({first, second}), 1.0, "no process outlives the other by a second")
    job = ends(job)
    assert job.state == State.SUCCEEDED
    crashed, last = attempts(job)
    assert (crashed.outcome, crashed.reason_code, last.outcome) == (
        Outcome.CRASHED, "sigkill", Outcome.SUCCEEDED,
    )  # fmt: skip
    assert last.start_step >= kept
    until(lambda: not alive(descendants(zygote)), 5.0, "no process is left over")
    with transaction() as db:
        seqs = [(event.lease_id, event.seq) for event in events.after(db, job.id, limit=5000)]
    assert len(seqs) == len(set(seqs))


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_frozen_database_stops_no_training_and_requeues_nothing(live, model):
    """For longer than a lease the server answers nobody; when it is back every lease looks run out."""
    job = submitted(model, batch_size=1, epochs=100)
    queue.wake(job.slot)
    until(lambda: stored(job), 60, "a checkpoint")
    server = live.stack.supervisor.children["postgres"].process.pid
    frozen = {server} | descendants(server)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(3 * settings().lease_seconds)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert ends(job).state == State.SUCCEEDED
    (attempt,) = attempts(job)
    with transaction() as db:
        seqs = [event.seq for event in events.after(db, job.id, limit=5000)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert attempt.outcome == Outcome.SUCCEEDED
