"""What an attempt leaves behind: stored first, then recorded in the transaction that ends it."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import Session, select

from shared import (
    answers,
    base_models,
    batches,
    checkpoints,
    datasets,
    downloads,
    events,
    media,
    shards,
    storage,
)
from shared import recipe as recipes
from shared.db import transaction
from shared.errors import Refused
from shared.ids import new_id
from shared.tables import Artifact, DatasetVersion, Event, EventType, File, Job, Kind, Outcome, Ready, Team
from worker.exits import Ending
from worker.fetching import REQUESTS

if TYPE_CHECKING:
    from worker.runner import Trip

METRICS_ROWS = 20_000
MOST_REPORT_BYTES = 32 * 1024 * 1024
EVALUATED = (  # of an evaluation's report, what its job keeps
    "intervals",
    "resamples",
    "rows",
    "answered",
    "left_out",
    "detail",
    "worst",
    "best",
    "seconds",
)
MOST_ZIP_BYTES = 2**40
MOST_PREVIEWS, MOST_PREVIEW_BYTES = 200, 4 * 1024 * 1024


@dataclass
class Result:
    """`record` writes the rows and returns what `jobs.finish` is told beside the outcome."""

    record: Callable[[Session], dict[str, Any]]


def collect(trip: "Trip", ending: Ending) -> Result:
    """Stores what the trainer made. Raises storage.Away; Refused where it left nothing to use."""
    if trip.job.kind == Kind.TRAIN:
        return trained(trip, ending)
    answered = (
        ending.outcome in (Outcome.SUCCEEDED, Outcome.CANCELLED) or ending.reason_code == "max_run_time"
    )
    if trip.job.kind == Kind.INFER and answered:
        return predicted(trip)
    if ending.outcome != Outcome.SUCCEEDED:
        return Result(lambda _: {})
    return COLLECTORS[trip.job.kind](trip)


def refused(no: Refused) -> Result:
    """What is told of an order that turned out to be impossible: every bad line of a batch file."""
    problems = [problem.told() for problem in no.problems] if isinstance(no, batches.BadBatch) else []
    return Result(lambda _: {"scores": {"errors": problems}} if problems else {})


# --- training ---------------------------------------------------------------------------------------


def trained(trip: "Trip", ending: Ending) -> Result:
    """Best checkpoint, scores and, after a success, the metrics as a file."""
    job = trip.job
    recipe = recipes.get(job.recipe or "")
    rows = [metrics_file(trip, recipe)] if ending.outcome == Outcome.SUCCEEDED else []

    def record(db: Session) -> dict[str, Any]:
        best = checkpoints.best(checkpoints.of(db, job.id), recipe)
        if best is None and ending.outcome == Outcome.SUCCEEDED:
            raise Refused("The training ended without a checkpoint.", code="no_checkpoint")
        add_files(db, rows)
        return {
            "scores": scores(db, job, best.step if best else None),
            "trained_tokens": trip.progress.get("tokens"),
            "best_checkpoint_id": best.id if best else None,
        }

    return Result(record)


def scores(db: Session, job: Job, step: int | None) -> dict[str, Any]:
    """{"base", "tuned", "detail"}: the first evaluation, and the one of that step or else the last."""
    measured = events.newest(db, job.id, EventType.EVAL, limit=500)
    base = next((e for e in reversed(measured) if e.data.get("which") == "base"), None)
    tuned = [e for e in measured if e.data.get("which") == "tuned"]
    chosen: Event | None = next((e for e in tuned if e.step == step), tuned[0] if tuned else None)
    return {
        "base": base.data["metrics"] if base else {},
        "tuned": chosen.data["metrics"] if chosen else {},
        "detail": (chosen.data.get("detail") or {}) if chosen else {},
    }


def metrics_file(trip: "Trip", recipe: recipes.Recipe) -> tuple[File, Artifact]:
    """The curves as a stored CSV file, and the rows that name it."""
    job, path = trip.job, trip.folder / "step_metrics.csv"
    with transaction() as db:
        curves = events.series(db, job.id, METRICS_ROWS)
    path.write_text(metrics_csv(curves, [metric.name for metric in recipe.metrics]))
    artifact = Artifact(id=new_id("artifact-"), team_id=job.team_id, job_id=job.id, form="metrics")
    return stored_file(job, artifact, path, path.name, "fine-tune-results")


def metrics_csv(curves: dict[str, dict[str, list]], metrics: list[str]) -> str:
    """step, train_loss, train_accuracy, valid_loss, valid_mean_token_accuracy, and the recipe's metrics."""
    known = {
        "loss": "valid_loss",
        "token_accuracy": "valid_mean_token_accuracy",
        "accuracy": "valid_mean_token_accuracy",
    }
    names = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    names += [f"valid_{m}" for m in metrics if f"valid_{m}" not in names]
    rows: dict[int, dict[str, Any]] = {}
    train, valid = curves["train"], curves["valid"]
    for place, step in enumerate(train["step"]):
        rows.setdefault(step, {})["train_loss"] = train.get("loss", [])[place] if "loss" in train else None
    for place, step in enumerate(valid["step"]):
        for metric in metrics:
            value = valid[metric][place] if metric in valid else None
            rows.setdefault(step, {})[f"valid_{metric}"] = value
            if metric in known:
                rows[step][known[metric]] = value
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step} | rows[step] for step in sorted(rows))
    return text.getvalue()


# --- the other kinds --------------------------------------------------------------------------------


def predicted(trip: "Trip") -> Result:
    """The answers, and the errors of a batch file, as files to download; of a cancelled job those so far."""
    job, folder, pieces = trip.job, trip.folder, answers.Pieces()
    output, errors, where = folder / "output.jsonl", folder / "errors.jsonl", shards.place(folder)
    counts = answers.write_results(folder / REQUESTS, where, output, errors, teller(job), pieces)
    rows: list[tuple[File, Artifact]] = []
    for form, path, wanted in (
        ("predictions", output, counts.completed or not job.file_id),
        ("errors", errors, counts.failed and job.file_id),
    ):
        if wanted:
            artifact = Artifact(id=new_id("artifact-"), team_id=job.team_id, job_id=job.id, form=form)
            rows.append(stored_file(job, artifact, path, f"{job.id}_{form}.jsonl", "batch_output"))
    made = piece_files(job, pieces)
    if made:
        rows.append(zip_of(job, pieces, made))

    def record(db: Session) -> dict[str, Any]:
        db.add_all(File(**file.model_dump()) for file in made.values())
        add_files(db, rows)
        told = counts.told()
        return {"scores": {"requests": told["request_counts"], "usage": told["usage"]}}

    return Result(record)


def piece_files(job: Job, pieces: answers.Pieces) -> dict[str, File]:
    """{media name: its file} of every picture and sound, which lie where their shard was stored."""
    if not pieces.ids:
        return {}
    with transaction() as db:
        stored = shards.of(db, job.id)
    names = {
        media_name: name for name, media_name in reversed(pieces.rows)
    }  # after the first row that has it
    return {
        entry["name"]: File(
            id=pieces.ids[entry["name"]],
            team_id=job.team_id,
            purpose="batch_output",
            filename=names[entry["name"]],
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            key=f"{shard.prefix}{entry['name']}",
            status="processed",
        )
        for shard in stored
        for entry in shard.manifest
        if entry["name"] in pieces.ids
    }


def zip_of(job: Job, pieces: answers.Pieces, made: dict[str, File]) -> tuple[File, Artifact]:
    """All pictures and sounds, named by their row, as one stored zip; it flows from the store to the store."""
    artifact = Artifact(id=new_id("artifact-"), team_id=job.team_id, job_id=job.id, form="media")
    filename, prefix = f"{job.id}_media.zip", artifact_prefix(job, artifact.id)
    entries = [(name, made[media_name].key) for name, media_name in pieces.rows]
    size, sha256 = storage.put_stream(prefix + filename, Pieced(downloads.zipped(entries)), MOST_ZIP_BYTES)
    return file_of(job, artifact, filename, "batch_output", size, sha256)


class Pieced:
    """Pieces of bytes as a stream that can be read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.held = pieces, bytearray()

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        while len(self.held) < size and (piece := next(self.pieces, None)) is not None:
            self.held += piece
        taken = bytes(self.held[:size])
        del self.held[:size]
        return taken


def teller(job: Job) -> answers.Teller:
    """Who writes the answers' lines: OpenAI's for a batch file, plain ones for a dataset's rows."""
    with transaction() as db:
        found = base_models.find(db, job.team_id, job.checkpoint_id or job.base_model_id or "")
        model = found.base_model.id
        if checkpoint := found.checkpoint:
            trained, team = db.get_one(Job, checkpoint.job_id), db.get_one(Team, job.team_id)
            model = base_models.name_of(checkpoint, trained, team)
    return answers.Teller(job.id, model, job.spec["endpoint"] if job.file_id else "", int(time.time()))


def evaluated(trip: "Trip") -> Result:
    """What an evaluation found: its scores for the page, the results of every row and the report as files."""
    job, artifacts = trip.job, trip.folder / "artifacts"
    report = read_report(artifacts / "report.json")
    rows = []
    for form, name in (("results", "results.jsonl"), ("report", "report.json")):
        artifact = Artifact(id=new_id("artifact-"), team_id=job.team_id, job_id=job.id, form=form)
        rows.append(stored_file(job, artifact, artifacts / name, f"{job.id}_{name}", "evaluation_output"))

    def record(db: Session) -> dict[str, Any]:
        add_files(db, rows)
        told = {name: report[name] for name in EVALUATED}
        return {"scores": {"tuned": report["metrics"], **told}}

    return Result(record)


def exported(trip: "Trip") -> Result:
    """The checkpoint's other form, under its artifact's prefix."""
    job = trip.job
    with transaction() as db:
        artifact_id = db.exec(select(Artifact.id).where(Artifact.job_id == job.id)).one()
    prefix = artifact_prefix(job, artifact_id)
    manifest = storage.put_folder(prefix, trip.folder / "artifacts" / job.asked.get("form", "merged"))

    told = trip.folder / "artifacts" / "agreement.json"
    compared = read_report(told) if told.exists() else None

    def record(db: Session) -> dict[str, Any]:
        artifact = db.exec(select(Artifact).where(Artifact.id == artifact_id).with_for_update()).one()
        artifact.state, artifact.prefix, artifact.manifest = Ready.READY, prefix, manifest
        artifact.bytes = sum(entry["bytes"] for entry in manifest)
        return {"scores": {"agreement": compared}} if compared else {}

    return Result(record)


def imported(trip: "Trip") -> Result:
    """A dataset's canonical rows, or a base model's weights, with what the importer found."""
    job, artifacts = trip.job, trip.folder / "artifacts"
    report = read_report(artifacts / "report.json")
    if job.base_model_id:
        stored = base_models.store(artifacts / "model")
        base_model_id = job.base_model_id

        def record_model(db: Session) -> dict[str, Any]:
            base_models.record_import(db, base_model_id, report, stored)
            return {}

        return Result(record_model)
    version_id = job.dataset_version_id or ""
    path = artifacts / "data.parquet"
    key = f"teams/{job.team_id}/datasets/{version_id}.parquet"
    content_hash = storage.sha256_of(path)
    storage.put(key, path)
    store_previews(version_id, artifacts / "preview")

    def record_version(db: Session) -> dict[str, Any]:
        datasets.record_import(db, version_id, report, key, content_hash)
        return {}

    return Result(record_version)


def store_previews(version_id: str, folder: Path) -> None:
    """The small pictures and sounds of the first rows; what goes by another name or is large stays here."""
    with transaction() as db:
        version = db.get_one(DatasetVersion, version_id)
    small = [path for path in sorted(folder.glob("*")) if path.is_file() and not path.is_symlink()]
    for path in [path for path in small if path.stat().st_size <= MOST_PREVIEW_BYTES][:MOST_PREVIEWS]:
        if key := media.preview_key(version, path.name):
            storage.put(key, path)


def read_report(path: Path) -> dict[str, Any]:
    """The importer's findings or an evaluation's figures; bounded, since a stranger's rows were read for it."""
    if path.stat().st_size > MOST_REPORT_BYTES:
        raise Refused("There is too much wrong with the rows to be listed.", param="file")
    return events.storable(json.loads(path.read_text()))


def stored_file(
    job: Job, artifact: Artifact, path: Path, filename: str, purpose: str
) -> tuple[File, Artifact]:
    """Stores an artifact of one file, with a row for the API. The rows are not in the database yet."""
    storage.put(artifact_prefix(job, artifact.id) + filename, path)
    return file_of(job, artifact, filename, purpose, path.stat().st_size, storage.sha256_of(path))


def file_of(
    job: Job, artifact: Artifact, filename: str, purpose: str, size: int, sha256: str
) -> tuple[File, Artifact]:
    """The rows of an artifact of one stored file."""
    prefix = artifact_prefix(job, artifact.id)
    file = File(
        id=new_id("file-"),
        team_id=job.team_id,
        purpose=purpose,
        filename=filename,
        bytes=size,
        sha256=sha256,
        key=prefix + filename,
        status="processed",
    )
    artifact.state, artifact.prefix, artifact.file_id = Ready.READY, prefix, file.id
    artifact.manifest, artifact.bytes = [{"name": filename, "bytes": size, "sha256": sha256}], size
    return file, artifact


def add_files(db: Session, rows: list[tuple[File, Artifact]]) -> None:
    """The rows of stored files, the file first, since the artifact refers to it. Safe to be repeated."""
    for file, artifact in rows:
        db.add(File(**file.model_dump()))
        db.flush()
        db.add(Artifact(**artifact.model_dump()))


COLLECTORS: dict[Kind, Callable[["Trip"], Result]] = {
    Kind.EVALUATE: evaluated,
    Kind.EXPORT: exported,
    Kind.IMPORT: imported,
}


def artifact_prefix(job: Job, artifact_id: str) -> str:
    """Where an artifact's files lie."""
    return f"teams/{job.team_id}/jobs/{job.id}/artifacts/{artifact_id}/"
