"""From submit to the first optimizer step on a warm worker, through the queue, with real processes."""

import statistics

import pytest
from sqlmodel import col, select

from shared import jobs, queue
from shared.db import transaction
from shared.jobs import Order
from shared.tables import Attempt, Event, EventType, Job
from tests.factories import a_base_model, a_dataset, a_team, tiny_causal_lm
from tests.services import until

pytestmark = pytest.mark.bench

TIMES = 10
KNOBS = {"epochs": 5, "batch_size": 4, "max_length": 64, "lora_rank": 4, "checkpoints": 1, "evaluations": 1}


def test_from_submit_to_the_first_step(live, tmp_path):
    with transaction() as db:
        team = a_team(db, "bench")
        model, version = a_base_model(db, tiny_causal_lm(tmp_path)).id, a_dataset(db, team).id
    rows = [measured(team, model, version) for _ in range(TIMES + 1)][1:]  # the first one warms the caches
    for name in rows[0]:
        values = sorted(row[name] for row in rows)
        print(f"{name:>24}: p50 {statistics.median(values):.2f} s, worst {values[-1]:.2f} s")


def measured(team, model, version):
    """Seconds from submit until each thing happened, of one job."""
    with transaction() as db:
        order = Order(
            team_id=team.id, recipe="sft", model=model, dataset_version_id=version, hyperparameters=KNOBS
        )
        job = jobs.submit(db, order)
    queue.wake(job.slot)
    until(lambda: ended(job.id), 120, "the job ends")
    with transaction() as db:
        attempt = db.exec(select(Attempt).where(Attempt.job_id == job.id)).one()
        told = db.exec(select(Event).where(Event.job_id == job.id).order_by(col(Event.id))).all()
    first = {kind: next(e.at for e in told if e.type == kind) for kind in (EventType.STAGE, EventType.STEP)}
    moments = {"claimed": attempt.started_at, "trainer's first word": first[EventType.STAGE]}
    for stage in ("evaluating", "training"):
        found = next((e.at for e in told if e.type == EventType.STAGE and e.data["stage"] == stage), None)
        moments |= {stage: found} if found else {}
    moments["first step"] = first[EventType.STEP]
    return {name: (at - job.created_at).total_seconds() for name, at in moments.items()}


def ended(job_id):
    with transaction() as db:
        return db.get_one(Job, job_id).finished_at
