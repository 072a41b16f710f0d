"""The job page: everything that is known about one job, read in a time that does not grow with it."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from flask import Blueprint, Response, jsonify, render_template
from sqlmodel import Session, col, select

from shared import base_models, checkpoints, events, imports, media, shards, storage
from shared.db import transaction
from shared.recipe import Recipe, recipes, wire_name
from shared.settings import settings
from shared.tables import (
    FINAL,
    Artifact,
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetVersion,
    EventType,
    Job,
    Kind,
    Schedule,
    Slot,
    State,
    User,
)
from web import failures, forms, timeline, waiting
from web.checkpoints import keeping
from web.evaluations import judged
from web.jobs import is_better, own
from web.words import spoken

pages = Blueprint("job_page", __name__)

STAGES = {  # kind: ((word on the bar, the stages that it stands for), …)
    Kind.TRAIN: (
        ("Queued", ()),
        ("Preparing", ("fetching", "preparing")),
        ("Training", ("training",)),
        ("Evaluating", ("evaluating",)),
        ("Saving", ("saving", "packaging", "uploading")),
        ("Done", ("done",)),
    ),
    Kind.EVALUATE: (
        ("Queued", ()),
        ("Preparing", ("fetching", "preparing")),
        ("Judging", ("evaluating",)),
        ("Saving", ("saving", "packaging", "uploading")),
        ("Done", ("done",)),
    ),
    Kind.INFER: (
        ("Queued", ()),
        ("Preparing", ("fetching", "preparing")),
        ("Answering", ("answering", "evaluating", "training")),
        ("Saving", ("saving", "packaging", "uploading")),
        ("Done", ("done",)),
    ),
}
OTHER_STAGES = (
    ("Queued", ()),
    ("Working", ("fetching", "preparing", "packaging", "training", "evaluating")),
    ("Saving", ("saving", "uploading")),
    ("Done", ("done",)),
)
PREVIEW_ROWS = 20


@pages.get("/jobs/<job_id>")
def show(job_id: str) -> str:
    """One job, whole. A reload, another browser or a restart of every process shows the same."""
    with transaction() as db:
        job = own(db, job_id)
        recipe = recipes().get(job.recipe or "")
        stored = checkpoints.of(db, job.id)
        curves = events.series(db, job.id, points=40) if job.kind is Kind.TRAIN else None
        return render_template(
            "jobs/show.html",
            job=job,
            recipe=recipe,
            stages=stage_bar(job),
            card=failures.card(db, job, stored),
            again=imports.may_be_repeated(db, job),
            needed=imports.needed_elsewhere(db, job),
            scores=score_rows(job, recipe, curves),
            samples=sample_steps(events.samples(db, job.id)),
            logs=events.logs(db, job.id),
            curves=curves,
            speed=newest_step(db, job),
            stored=stored,
            keeping=keeping(db, job, stored) if job.kind is Kind.TRAIN else None,
            exports=exports_of(db, stored),
            artifacts=artifacts_of(db, job),
            predictions=predictions(db, job),
            judged=judged(db, job, recipe),
            timeline=timeline.lines(db, job),
            attempts=timeline.tries(db, job),
            outlook=waiting.outlook(db, job) if job.state is State.QUEUED else None,
            resumes=db.get(Checkpoint, job.resume_checkpoint_id) if job.resume_checkpoint_id else None,
            cursor=newest_cursor(db, job),
            changed=changed_knobs(job, recipe),
            **surroundings(db, job, recipe),
        )


@pages.get("/jobs/<job_id>/series.json")
def series(job_id: str) -> Response:
    """The curves of the charts: see `shared.events.series`."""
    with transaction() as db:
        return jsonify(events.series(db, own(db, job_id).id))


@pages.get("/jobs/<job_id>/media/<name>")
def medium(job_id: str, name: str) -> Response:
    """A picture or sound among the job's samples. Raises NotFound."""
    from web.downloads import shown

    with transaction() as db:
        key = media.key(own(db, job_id), name)
    return shown(key, name)


def surroundings(db: Session, job: Job, recipe: Recipe | None) -> dict[str, Any]:
    """The rows that the job names, and the API call that names them."""
    version = db.get(DatasetVersion, job.dataset_version_id) if job.dataset_version_id else None
    valid = db.get(DatasetVersion, job.valid_version_id) if job.valid_version_id else None
    start = db.get(Checkpoint, job.checkpoint_id) if job.checkpoint_id else None
    person = db.get(User, job.created_by) if job.created_by else None
    base = db.get(BaseModel, job.base_model_id) if job.base_model_id else None
    return {
        "version": version,
        "dataset": db.get(Dataset, version.dataset_id) if version else None,
        "valid": valid,
        "valid_dataset": db.get(Dataset, valid.dataset_id) if valid else None,
        "base": base,
        "untrained": base is not None and base_models.is_scratch(base) and start is None,
        "start": start,
        "start_job": db.get(Job, start.job_id) if start else None,
        "schedule": db.get(Schedule, job.schedule_id) if job.schedule_id else None,
        "who": person.email if person else "",
        "call": as_api_call(job, recipe, version, valid),
    }


def stage_bar(job: Job) -> list[tuple[str, str]]:
    """[(word, past | here | next | stopped | done)] from the state and the stage."""
    steps = STAGES.get(job.kind, OTHER_STAGES)
    here = next((n for n, (_, stages) in enumerate(steps) if job.stage in stages), 1)
    if job.stage == "evaluating" and (job.progress.get("step") or 0) < (job.progress.get("total_steps") or 0):
        here = 2  # between two stretches of training
    if job.state is State.QUEUED:
        here = 0
    last = len(steps) - 1
    if job.state is State.SUCCEEDED:
        return [(word, "done" if n == last else "past") for n, (word, _) in enumerate(steps)]
    if job.state in (State.FAILED, State.CANCELLED):
        reached = 2 if job.progress.get("step") and len(steps) > 4 else 1 if job.started_at else 0
        said = "Failed" if job.state is State.FAILED else "Cancelled"
        return [(word, "past") for word, _ in steps[: reached + 1]] + [
            (said, "stopped" if job.state is State.FAILED else "here-still")
        ]
    return [
        (word, "past" if n < here else "here" if n == here else "next") for n, (word, _) in enumerate(steps)
    ]


def score_rows(job: Job, recipe: Recipe | None, curves: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Base against tuned on the held-out rows, one line for each metric of the recipe.

    Before the job has its final scores, those of the last evaluation.
    """
    measured = {name: values[-1] for name, values in curves["valid"].items() if values} if curves else {}
    base = job.scores.get("base") or (curves or {}).get("base") or {}
    tuned = job.scores.get("tuned") or measured
    if recipe is None or not (base or tuned):
        return []
    return [
        {
            "metric": metric,
            "base": base.get(metric.name),
            "tuned": tuned.get(metric.name),
            "better": is_better(metric, base.get(metric.name), tuned.get(metric.name)),
        }
        for metric in recipe.metrics
        if metric.name in base or metric.name in tuned
    ]


def sample_steps(told: list[dict[str, Any]]) -> dict[str, Any]:
    """`rows`: [{prompt, expected, base, answers: {step: answer}}] and the `steps` of the scrubber."""
    if not told:
        return {"rows": [], "steps": []}
    rows: list[dict[str, Any]] = [
        {
            "prompt": spoken(s.get("prompt")),
            "expected": spoken(s.get("expected")),
            "base": None,
            "answers": {},
        }
        for s in told[0]["samples"]
    ]
    for at in told:
        for row, sample in zip(rows, at["samples"], strict=False):
            if not at["step"]:
                row["base"] = spoken(sample.get("answer"))
            else:
                row["answers"][at["step"]] = spoken(sample.get("answer"))
    return {"rows": rows, "steps": [at["step"] for at in told if at["step"]]}


def newest_step(db: Session, job: Job) -> dict[str, Any]:
    """Speed and memory as last reported."""
    last = events.newest(db, job.id, EventType.STEP)
    return last[0].data if last else {}


def newest_cursor(db: Session, job: Job) -> int:
    """The event that this page already shows; the stream goes on after it."""
    last = [found[0].id or 0 for kind in EventType if (found := events.newest(db, job.id, kind))]
    return max(last, default=0)


class Export(NamedTuple):
    """Another form of a checkpoint, or the try at making it, and the job that makes it."""

    artifact: Artifact
    job: Job


def exports_of(db: Session, stored: Sequence[Checkpoint]) -> dict[tuple[str, str], Export]:
    """{(checkpoint id, form): its export}, whatever its state; the newest where one has failed before."""
    found = (
        select(Artifact, Job)
        .join(Job, col(Job.id) == Artifact.job_id)
        .where(col(Artifact.checkpoint_id).in_([c.id for c in stored]), Job.kind == Kind.EXPORT)
    )
    made = (Export(*row) for row in db.exec(found.order_by(col(Artifact.id))))
    return {(one.artifact.checkpoint_id or "", one.artifact.form): one for one in made}


def artifacts_of(db: Session, job: Job) -> Sequence[Artifact]:
    """What the job made besides checkpoints: metrics, predictions, a merged model."""
    made = select(Artifact).where(Artifact.job_id == job.id, ~shards.IS_SHARD)
    return db.exec(made.order_by(col(Artifact.id))).all()


def predictions(db: Session, job: Job) -> list[dict[str, Any]] | None:
    """The first lines of a batch's output; empty before it is there, None while the store is away."""
    from web.downloads import first_lines

    if job.kind is not Kind.INFER or job.state not in FINAL:
        return []
    made = [a for a in artifacts_of(db, job) if a.form == "predictions"]
    try:
        return [predicted(line) for line in first_lines(db, made[0], PREVIEW_ROWS)] if made else []
    except storage.Away:
        return None


def predicted(line: str) -> dict[str, Any]:
    """One line of predictions, whichever shape it has: {row, input, output, error}."""
    try:
        told = json.loads(line)
    except ValueError:
        return {"row": "", "output": line, "error": ""}
    body = (told.get("response") or {}).get("body") or {}
    output = told.get("output", body.get("output"))
    if body.get("choices"):
        output = body["choices"][0]["message"]["content"]
    error = told.get("error") or body.get("error") or {}
    return {
        "row": told.get("row", told.get("custom_id", "")),
        "output": spoken(output),
        "error": error.get("message", "") if isinstance(error, dict) else str(error),
    }


def changed_knobs(job: Job, recipe: Recipe | None) -> list[dict[str, Any]]:
    """Every knob of the spec in the recipe's order, with its title and whether it is not the default; and what is
    asked of the worker, of what does not train where it is not the default.
    """
    own = (
        [] if job.kind is Kind.EVALUATE else knobs_of(job, recipe)
    )  # those of an evaluation are the training's
    if job.slot is not Slot.COMPUTE:
        return own
    asked = forms.MACHINE if job.kind is Kind.TRAIN else forms.NEEDS
    machine = forms.machine_of(job.resources, job.max_run_seconds)
    machine = {"processes": 1} | machine if job.kind is Kind.TRAIN else machine
    return own + [
        {"name": k.name, "title": k.title, "value": machine[k.name], "changed": machine[k.name] != k.default}
        for k in asked
        if k.name in machine
    ]


def knobs_of(job: Job, recipe: Recipe | None) -> list[dict[str, Any]]:
    """The knobs of the spec."""
    fields = recipe.spec.model_fields if recipe and job.kind is Kind.TRAIN else {}
    ordered = [name for name in fields if name in job.spec] + [
        name for name in job.spec if name not in fields
    ]
    return [
        {
            "name": name,
            "title": (fields[name].title if name in fields else None) or name,
            "value": job.spec[name],
            "changed": name in fields and job.spec[name] != fields[name].default,
        }
        for name in ordered
        if job.spec[name] not in (None, "", {})
    ]


def as_api_call(
    job: Job, recipe: Recipe | None, version: DatasetVersion | None, valid: DatasetVersion | None
) -> str:
    """The curl command that makes this job again."""
    if job.kind is Kind.EVALUATE:
        body = {
            "model": job.checkpoint_id or job.base_model_id,
            "dataset": version.file_id if version else None,
            "recipe": job.recipe if not job.checkpoint_id else None,
            "columns": job.columns or None,
            "name": job.name or None,
            "seed": job.seed,
            "resources": forms.needs_of(job.resources) or None,
            "x_max_run_seconds": job.max_run_seconds,
        }
        return curl("evaluations", body)
    if recipe is None or job.kind is not Kind.TRAIN:
        return ""
    kind = wire_name(recipe)
    body = {
        "model": job.checkpoint_id or job.base_model_id,
        "training_file": version.file_id if version else None,
        "validation_file": valid.file_id if valid else None,
        "suffix": job.name or None,
        "seed": job.seed,
        "resources": job.resources if job.resources not in ({}, {"processes": 1}) else None,
        "x_max_run_seconds": job.max_run_seconds,
        "method": {
            "type": kind,
            kind: {"hyperparameters": {k: v for k, v in job.spec.items() if v is not None}},
        },
    }
    return curl("fine_tuning/jobs", body)


def curl(path: str, body: dict[str, Any]) -> str:
    """The command that posts this body, without what is None."""
    told = json.dumps({k: v for k, v in body.items() if v is not None}, indent=2, ensure_ascii=False)
    return (
        f"curl {settings().public_url}/v1/{path} \\\n"
        '  -H "Authorization: Bearer $BURNISH_TOKEN" -H "Content-Type: application/json" \\\n'
        "  -d @- <<'JSON'\n" + told + "\nJSON"
    )
