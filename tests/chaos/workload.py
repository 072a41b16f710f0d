"""The work that goes on while things go wrong: trainings of a tiny model by the real engine, submitted
through the web as a program would, all of one seed, so that all of one length must end with one set of weights.
"""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlmodel import col, select

from shared import checkpoints, webhooks
from shared.db import transaction
from shared.tables import FINAL, Attempt, Event, EventType, Job, State
from tests.chaos.cluster import WEBS, Cluster
from tests.factories import CHAT, a_base_model, a_dataset, a_team, a_token, tiny_causal_lm
from tests.services import until

ROWS, BATCH = 48, 4
STEPS = ROWS // BATCH  # of an epoch
CHECKPOINTS = 20
SHORT, MEDIUM, LONG = 5, 20, 60  # epochs
SUBMIT_SECONDS = 60.0  # that a program goes on trying to submit


@dataclass(frozen=True)
class Submitted:
    """A job that the web has accepted."""

    id: str
    team: str
    epochs: int


@dataclass
class Team:
    """A team with its data and its token."""

    id: str
    token: str
    file: str


@dataclass
class Workload:
    """Teams, a model and what was submitted."""

    cluster: Cluster
    model: str = ""
    teams: list[Team] = field(default_factory=list)
    submitted: list[Submitted] = field(default_factory=list)
    weights: dict[int, dict[str, str]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # that the web took to accept
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def prepare(self, folder: Path) -> None:
        """Two teams with the same rows and a webhook each, and a tiny model."""
        with transaction() as db:
            self.model = a_base_model(db, tiny_causal_lm(folder)).id
            for number in (1, 2):
                team = a_team(db, f"Chaos {number}")
                file = a_dataset(db, team, CHAT * (ROWS // len(CHAT))).file_id
                self.teams.append(Team(team.id, a_token(db, team), file))
                webhooks.create(db, team_id=team.id, url=self.cluster.receiver.url)

    def submit(self, epochs: int = MEDIUM, team: int | None = None, **knobs: Any) -> Submitted:
        """A training, through whichever web answers; the key makes it one however often it is sent."""
        number = next(self.numbers)
        chosen = self.teams[number % len(self.teams) if team is None else team]
        key, deadline = f"chaos-{number}-{time.monotonic_ns()}", time.monotonic() + SUBMIT_SECONDS
        for web in itertools.cycle(WEBS):
            began = time.monotonic()
            answer = self.post(web, chosen, key, self.body(chosen, epochs, **knobs))
            if answer is not None and answer.status_code == 200:
                self.seconds.append(time.monotonic() - began)
                self.submitted.append(Submitted(answer.json()["id"], chosen.id, epochs))
                return self.submitted[-1]
            if answer is not None and answer.status_code < 500:
                raise AssertionError(f"The web refused a good order: {answer.text}")
            if time.monotonic() > deadline:
                raise AssertionError(f"No web took an order in {SUBMIT_SECONDS:g} s: {answer}")
            time.sleep(0.5)
        raise AssertionError("unreachable")

    def body(self, team: Team, epochs: int, **knobs: Any) -> dict[str, Any]:
        """The order as the API takes it."""
        told = {
            "n_epochs": epochs, "batch_size": BATCH, "valid_fraction": 0, "max_length": 64, "lora_rank": 4,
            "checkpoints": CHECKPOINTS, "evaluations": 1,
        }  # fmt: skip
        method = {"type": "supervised", "supervised": {"hyperparameters": told | knobs}}
        return {"model": self.model, "training_file": team.file, "seed": 7, "method": method}

    def post(self, web: str, team: Team, key: str, body: dict[str, Any]) -> httpx.Response | None:
        """The web's answer; None where it gave none."""
        headers = {"Authorization": f"Bearer {team.token}", "Idempotency-Key": key}
        url = f"{self.cluster.url(web)}/v1/fine_tuning/jobs"
        try:
            return httpx.post(url, json=body, headers=headers, timeout=15, trust_env=False)
        except httpx.TransportError:
            return None

    def learn_weights(self, *lengths: int) -> None:
        """What an undisturbed run of each length ends with. Call it while nothing is wrong."""
        missing = [epochs for epochs in lengths if epochs not in self.weights]
        jobs = [self.submit(epochs) for epochs in missing]
        self.await_end(jobs, 120)
        for job in jobs:
            self.weights[job.epochs] = final_weights(job)
            if len(attempts(job)) != 1:
                raise AssertionError(
                    f"{job.id} was to be undisturbed and took {len(attempts(job))} attempts."
                )

    def await_end(self, jobs: list[Submitted], seconds: float) -> None:
        """Wait until each has ended."""
        until(lambda: all(row(job).state in FINAL for job in jobs), seconds, f"{len(jobs)} jobs end")


def row(job: Submitted) -> Job:
    """The job's row as it is now."""
    with transaction() as db:
        return db.get_one(Job, job.id)


def waited(job: Submitted) -> float:
    """Seconds in the queue until its first attempt."""
    found = row(job)
    if found.started_at is None:
        raise AssertionError(f"{job.id} has not started")
    return (found.started_at - found.created_at).total_seconds()


def attempts(job: Submitted) -> list[Attempt]:
    """Its attempts in order."""
    with transaction() as db:
        told = select(Attempt).where(Attempt.job_id == job.id).order_by(col(Attempt.number))
        return list(db.exec(told).all())


def stored(job: Submitted) -> list[int]:
    """The steps of its stored checkpoints, newest first."""
    with transaction() as db:
        return [checkpoint.step for checkpoint in checkpoints.of(db, job.id)]


def last_step(lease_id: str) -> int:
    """The last step that an attempt told of."""
    return max((event.step or 0 for event in told_by(lease_id, EventType.STEP)), default=0)


def told_by(lease_id: str, kind: EventType) -> list[Event]:
    """An attempt's events of a kind, in order."""
    with transaction() as db:
        told = select(Event).where(Event.lease_id == lease_id, Event.type == kind)
        return list(db.exec(told.order_by(col(Event.id))).all())


def final_weights(job: Submitted) -> dict[str, str]:
    """{file: SHA-256} of the weights, adapter and optimizer in the job's last checkpoint."""
    if row(job).state != State.SUCCEEDED:
        raise AssertionError(f"{job.id} has {row(job).state}: {row(job).reason}")
    with transaction() as db:
        last = checkpoints.of(db, job.id)[0]
    return {e["name"]: e["sha256"] for e in last.manifest if e["name"].endswith(".safetensors")}


def await_step(job: Submitted, step: int = 1, seconds: float = 90) -> int:
    """Wait until the job is at that step; returns where it is."""
    until(lambda: (row(job).progress.get("step") or 0) >= step, seconds, f"step {step} of {job.id}")
    return row(job).progress["step"]


def await_checkpoint(job: Submitted, count: int = 1, seconds: float = 90) -> int:
    """Wait until so many checkpoints are stored; returns the newest one's step."""
    until(lambda: len(stored(job)) >= count, seconds, f"{count} stored checkpoints of {job.id}")
    return stored(job)[0]


def holder(cluster: Cluster, job: Submitted) -> str:
    """The name of the worker that runs the job now."""
    until(lambda: row(job).attempt_id, 30, f"somebody runs {job.id}")
    names = cluster.worker_ids()
    return names[attempts(job)[-1].worker_id]
