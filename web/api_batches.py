"""/v1/batches: many requests in one file, answered by one inference job."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

from flask import Blueprint, Response, g
from sqlmodel import Session, col, select

from shared import base_models, jobs, storage
from shared.db import transaction
from shared.errors import Refused
from shared.jobs import Order
from shared.tables import FINAL, Artifact, Checkpoint, DatasetVersion, File, Job, Kind, Ready, State, Team
from web import api_jobs, shapes, wire

api = Blueprint("api_batches", __name__, url_prefix="/v1")
WINDOW = timedelta(hours=24)
HEAD = 1024**2  # of the input file, to see its first line


@api.post("/batches")
@wire.operation(shapes.Batch, body=shapes.CreateBatch, idempotent=True)
def create() -> Response:
    """Answer a file of requests.

    Each line is `{"custom_id", "method": "POST", "url", "body"}`; the body of a chat is OpenAI's, that of
    `/v1/predictions` is `{"model", "input": {the recipe's input columns}}` and is answered with
    `{"output"}`. All lines name the same model.

    Beside these, a body may hold how its answer is made, as far as the model's recipe reads it; a knob that would
    change nothing is an error of its line:

    - `max_tokens` (for chat also `max_completion_tokens`): the longest answer, 1 to 32,768 tokens; 128 where unset.
    - `temperature`: 0 (as where unset) always takes the likeliest token, up to 2 draws more and more freely.
    - `top_p`: draws among the likeliest tokens that have this share together, 0 to 1.
    - `top_k`: draws among this many of the likeliest tokens; 0 keeps all.
    - `seed`: the same seed draws the same, whatever else is in the batch. Where unset, each line has its own.
    - `stop`: a text or up to four that end the answer in front of them.
    - `beams`: 2 to 16 search for the likeliest answer as a whole; not with a temperature.
    - `guidance`: how strongly a wish for a picture or sound is followed, 0 to 50; where unset, as it was trained.

    `n` above 1, `logprobs`, `tools` and whatever else would change an answer and cannot be done is an error of its line.
    """
    asked = wire.body(shapes.CreateBatch)
    key = wire.idempotency_key()
    order = Order(
        team_id=g.caller.team_id,
        kind=Kind.INFER,
        model=model_of(asked.input_file_id),
        file_id=asked.input_file_id,
        labels=dict(asked.metadata or {}),
        needs=asked.resources.needs if asked.resources else {},
        max_run_seconds=asked.x_max_run_seconds,
        created_by=g.caller.user_id,
        actor=g.caller.actor,
        asked=asked.model_dump(exclude_unset=True),
    )
    return api_jobs.submitted(order, key, one)


@api.get("/batches")
@wire.operation(shapes.Page[shapes.Batch], query=wire.Paging)
def index() -> Response:
    """List the team's inference jobs, newest first; those from the pages too."""
    asked = wire.query(wire.Paging)
    with transaction() as db:
        rows, more = wire.cut(db, api_jobs.mine(Kind.INFER), Job.id, asked)
        return wire.listed(shaped(db, rows), more)


@api.get("/batches/<batch_id>")
@wire.operation(shapes.Batch)
def retrieve(batch_id: str) -> Response:
    """One batch, with the files of its answers once it has ended."""
    with transaction() as db:
        return one(db, api_jobs.find(db, batch_id, Kind.INFER))


@api.post("/batches/<batch_id>/cancel")
@wire.operation(shapes.Batch)
def cancel(batch_id: str) -> Response:
    """Cancel a batch. It is `cancelling` until the requests that were answered stand in its output file, then
    `cancelled`. Cancelling it again changes nothing.
    """
    with transaction() as db:
        job = api_jobs.find(db, batch_id, Kind.INFER)
        if job.state in (State.SUCCEEDED, State.FAILED):
            said = f"Cannot cancel a batch with status '{status(job)}'."
            raise Refused(said, code="batch_is_final", status=409)
        if job.state != State.CANCELLED:
            job = jobs.cancel(db, job, g.caller.actor)
        answer = one(db, job)
    api_jobs.wake()
    return answer


def model_of(file_id: str) -> str:
    """The model that the first line of an input file names. Raises Refused."""
    with transaction() as db:
        file = db.get(File, file_id)
        if file is None or file.team_id != g.caller.team_id or file.deleted_at:
            said = f"No such File object: {file_id}"
            raise Refused(said, param="input_file_id", code="not_found", status=404)
        if file.purpose != "batch":
            raise Refused(
                f"{file_id} was uploaded with the purpose '{file.purpose}'. Upload it with the purpose 'batch'.",
                param="input_file_id",
            )
    lines = first_lines(file)
    number, line = next(((n, text) for n, text in enumerate(lines, 1) if text.strip()), (1, b""))
    return named_model(line, number)


def first_lines(file: File) -> Sequence[bytes]:
    """The beginning of a file. Raises storage.Away soon."""
    with storage.hurried():
        pieces, _ = storage.stream(file.key, 0, min(file.bytes, HEAD) - 1)
        return b"".join(pieces).split(b"\n")


def named_model(line: bytes, number: int) -> str:
    """`body.model` of a line. Raises Refused in OpenAI's words."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        said = f"Line {number} is not parseable as valid JSON."
        raise Refused(said, param="input_file_id", code="invalid_json_line") from None
    body = request.get("body") if isinstance(request, dict) else None
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str) or not model:
        said = f"Line {number} has no model in its body: Missing required parameter: 'body.model'."
        raise Refused(said, param="body.model", code="missing_required_parameter")
    return model


def one(db: Session, job: Job) -> Response:
    """One batch."""
    return wire.answer(shaped(db, [job])[0])


def shaped(db: Session, rows: Sequence[Job]) -> list[shapes.Batch]:
    """Batches on the wire, in a number of queries that does not grow with the list."""
    versions = select(DatasetVersion).where(col(DatasetVersion.id).in_([j.dataset_version_id for j in rows]))
    inputs = {version.id: version.file_id for version in db.exec(versions)}
    checkpoints = select(Checkpoint, Job).join(Job, col(Job.id) == Checkpoint.job_id)
    named = checkpoints.where(col(Checkpoint.id).in_([j.checkpoint_id for j in rows if j.checkpoint_id]))
    team = db.get_one(Team, g.caller.team_id)
    models = {c.id: base_models.name_of(c, job, team) for c, job in db.exec(named)}
    made = select(Artifact).where(
        col(Artifact.job_id).in_([j.id for j in rows]), Artifact.state == Ready.READY
    )
    outputs = {(artifact.job_id, artifact.form): artifact.file_id for artifact in db.exec(made)}
    return [
        shape(
            job,
            model=models.get(job.checkpoint_id or "") or job.base_model_id,
            input_file=job.file_id or inputs.get(job.dataset_version_id or "", ""),
            output=outputs.get((job.id, "predictions")),
            errors=outputs.get((job.id, "errors")),
        )
        for job in rows
    ]


def shape(
    job: Job, *, model: str | None, input_file: str, output: str | None, errors: str | None
) -> shapes.Batch:
    """An inference job as a batch."""
    at = wire.seconds(job.finished_at)
    return shapes.Batch(
        id=job.id,
        endpoint=job.spec.get("endpoint", ""),
        model=model,
        input_file_id=input_file,
        status=status(job),
        output_file_id=output,
        error_file_id=errors,
        errors=faults(job),
        request_counts=counts(job),
        usage=usage(job),
        metadata=job.labels or None,
        created_at=cast(int, wire.seconds(job.created_at)),
        in_progress_at=wire.seconds(job.started_at),
        expires_at=wire.seconds(job.created_at + WINDOW),
        finalizing_at=at if job.state == State.SUCCEEDED else None,
        completed_at=at if job.state == State.SUCCEEDED else None,
        failed_at=at if job.state == State.FAILED else None,
        cancelling_at=wire.seconds(job.cancel_requested_at),
        cancelled_at=at if job.state == State.CANCELLED else None,
        x_state=api_jobs.state(job),
        x_progress=job.progress,
        x_resources=job.resources,
        x_max_run_seconds=job.max_run_seconds,
        x_page=api_jobs.page(job),
    )


def status(job: Job) -> Any:
    """OpenAI's word for a batch."""
    if job.cancel_requested_at and job.state not in FINAL:
        return "cancelling"
    if job.state == State.RUNNING:
        return "finalizing" if job.stage in ("saving", "packaging", "uploading", "done") else "in_progress"
    words = {State.SUCCEEDED: "completed", State.FAILED: "failed", State.CANCELLED: "cancelled"}
    return words.get(job.state, "validating")


def faults(job: Job) -> shapes.BatchFaults | None:
    """Why the batch failed as a whole: every bad line that is known, else the one reason."""
    if job.state != State.FAILED:
        return None
    known = job.scores.get("errors") or [
        {"code": job.reason_code, "line": None, "message": job.reason, "param": job.reason_param}
    ]
    return shapes.BatchFaults(
        data=[
            shapes.BatchFault(
                code=str(fault.get("code") or "internal_error"),
                line=fault.get("line"),
                message=str(fault.get("message") or "The batch has failed."),
                param=fault.get("param"),
            )
            for fault in known
        ]
    )


def counts(job: Job) -> shapes.Counts:
    """How many requests there are, and how many are answered."""
    told = job.scores.get("requests") or {}
    done = int(job.progress.get("done") or 0)
    failed = int(told.get("failed", 0))
    return shapes.Counts(
        total=int(told.get("total", job.progress.get("total") or 0)),
        completed=int(told.get("completed", done - failed)),
        failed=failed,
    )


def usage(job: Job) -> dict[str, Any] | None:
    """Tokens read and written, once the batch has ended."""
    told = job.scores.get("usage")
    if not told:
        return None
    return told | {
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
