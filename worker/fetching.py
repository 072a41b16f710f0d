"""What an attempt needs, brought to this machine and described in `attempt.json`."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import Session, select

from shared import base_models, batches, checkpoints, datasets, events, leases, orders, shards, storage
from shared import recipe as recipes
from shared.db import transaction
from shared.errors import Refused
from shared.tables import (
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetVersion,
    File,
    Job,
    Kind,
    Ready,
    Team,
)
from worker.cache import remove

if TYPE_CHECKING:
    from worker.machine import Machine
    from worker.runner import Trip

log = logging.getLogger(__name__)

REQUESTS = "requests.jsonl"  # in the attempt's folder


@dataclass
class Start:
    """The weights that an attempt starts from: a base model or a full checkpoint, and an adapter on it."""

    base: BaseModel
    full: Checkpoint | None
    adapter: Checkpoint | None


def brief(trip: "Trip") -> dict[str, Any]:
    """The attempt's `attempt.json`, with everything that it names in place.

    Raises Refused where the job cannot be done after all, storage.Away and storage.Corrupt.
    """
    job, machine = trip.job, trip.machine
    common = {
        "job": job.id,
        "recipe": job.recipe,
        "spec": job.spec,
        "seed": job.seed,
        "columns": job.columns,
        "cache": str(machine.cache.prepared(job.team_id)),
        "device": machine.device(job.slot, trip.indices),
        "threads": machine.threads * len(trip.indices),
        "processes": job.resources.get("processes", 1),
    }
    if job.kind not in BRIEFS:
        raise Refused(f"This worker cannot do jobs of the kind «{job.kind}».", param="kind")
    return common | BRIEFS[job.kind](trip)


def training(trip: "Trip") -> dict[str, Any]:
    """Data, starting weights, and the newest checkpoint that is whole, if there is one."""
    job, cache = trip.job, trip.machine.cache
    recipe = recipes.get(job.recipe or "")
    with transaction() as db:
        start = start_of(db, job)
        orders.require_head(recipe, start.base)
        train = db.get_one(DatasetVersion, job.dataset_version_id)
        valid = db.get(DatasetVersion, job.valid_version_id) if job.valid_version_id else None
        columns = datasets.check(train, recipe, job.columns or None)
        if valid is not None:
            datasets.check(valid, recipe, columns, param="validation_file")
        facts = card(db, job, start, train)
        stored = checkpoints.to_go_on_from(db, job)
        if columns != job.columns and (own := leases.held_job(db, trip.lease_id)):
            own.columns = columns
    return {
        "kind": "train",
        "columns": columns,
        "train": str(cache.dataset(train)),
        "valid": str(cache.dataset(valid)) if valid else None,
        "resume": newest_whole(trip, stored),
        "card": facts,
    } | weights(trip.machine, start)


def newest_whole(trip: "Trip", stored: Iterable[Checkpoint]) -> str | None:
    """The newest checkpoint whose bytes are those that were stored; from the beginning where there is none."""
    damaged: list[int] = []
    for checkpoint in stored:
        place = trip.folder / "resume" / f"step-{checkpoint.step:06d}"
        try:
            storage.get_folder(checkpoint.prefix, checkpoint.manifest, place)
        except storage.Corrupt:
            log.exception("The checkpoint %s cannot be resumed from; an older one is tried", checkpoint.id)
            damaged.append(checkpoint.step)
            continue
        go_on_from(trip, checkpoint.step, damaged)
        return str(place)
    go_on_from(trip, 0, damaged)
    return None


def go_on_from(trip: "Trip", step: int, damaged: list[int]) -> None:
    """Tells the job's log and its attempt where it goes on from, if not from its newest checkpoint."""
    if not damaged:
        return
    since = f"step {step:,}" if step else "the beginning"
    told = [f"Checkpoint of step {one:,} is damaged in the store; going on from {since}." for one in damaged]
    with transaction() as db:
        attempt = leases.held(db, trip.lease_id)
        if attempt is not None:
            attempt.start_step = step
            events.append(db, trip.lease_id, trip.job, [trip.line("warn", one) for one in told])
    if "step" in trip.progress:
        trip.progress["step"] = step


def inference(trip: "Trip") -> dict[str, Any]:
    """The requests as the engine reads them, and the weights that answer."""
    job = trip.job
    recipe = recipes.get(job.recipe or "")
    with transaction() as db:
        start = start_of(db, job)
        orders.require_head(recipe, start.base)
        checkpoint = start.adapter or start.full
        trained = db.get(Job, checkpoint.job_id) if checkpoint else None
    fetch_answers(trip)
    spec = trained.spec if trained else recipe.spec().model_dump(mode="json")
    given = {"kind": "infer", "spec": spec, "requests": str(trip.folder / REQUESTS)}
    return given | weights(trip.machine, start)


def fetch_answers(trip: "Trip") -> None:
    """An inference job's requests, and the answers of earlier attempts."""
    job, requests = trip.job, trip.folder / REQUESTS
    recipe = recipes.get(job.recipe or "")
    with transaction() as db:
        version = db.get(DatasetVersion, job.dataset_version_id) if job.dataset_version_id else None
        file = db.get(File, job.file_id) if job.file_id else None
    if version is not None:
        datasets.check_ready(version, "dataset")
        given = job.spec["sampling"]
        rows = batches.requests_from_dataset(
            trip.machine.cache.dataset(version), recipe, job.columns or None, given
        )
        write_requests(requests, rows)
    elif file is not None:
        read_batch(file, job, trip.folder / "batch.jsonl", requests)
    fetch_shards(trip)


def evaluation(trip: "Trip") -> dict[str, Any]:
    """The rows to judge on, the weights that are judged, and, where the recipe compares the two, those that
    they were trained from.
    """
    job, machine = trip.job, trip.machine
    recipe = recipes.get(job.recipe or "")
    with transaction() as db:
        start = start_of(db, job)
        orders.require_head(recipe, start.base)
        version = db.get_one(DatasetVersion, job.dataset_version_id)
        columns = datasets.check(version, recipe, job.columns or None, param="dataset")
        if columns != job.columns and (own := leases.held_job(db, trip.lease_id)):
            own.columns = columns
        newest = start.adapter or start.full
        trained = orders.trained_by(db, newest.id) if newest else None
        before = start_of(db, trained) if trained and recipe.needs_reference else None
    fetch_shards(trip)
    known = weights(machine, before) if before else {}
    return {
        "kind": "evaluate",
        "columns": columns,
        "valid": str(machine.cache.dataset(version)),
        "reference": known if "base_model" in known else None,
    } | weights(machine, start)


def fetch_shards(trip: "Trip") -> None:
    """What earlier attempts have answered or judged; what a shard says that cannot be read is done once more."""
    with transaction() as db:
        stored = shards.of(db, trip.job.id)
    for shard in stored:
        path = shards.place(trip.folder) / shard.form / shards.LINES
        wanted = next((entry["sha256"] for entry in shard.manifest if entry["name"] == shards.LINES), "")
        try:
            if storage.get(f"{shard.prefix}{shards.LINES}", path) == wanted:
                continue
        except storage.Missing:
            pass
        log.error("The shard %s of %s cannot be read; it is done again", shard.form, trip.job.id)
        remove(path.parent)
        with transaction() as db:
            shards.forget(db, trip.lease_id, shard)


def read_batch(file: File, job: Job, source: Path, requests: Path) -> None:
    """A batch file's lines as requests. Raises batches.BadBatch with every bad line."""
    if storage.get(file.key, source) != file.sha256:
        raise storage.Corrupt(f"{file.key} is not what was uploaded: its SHA-256 differs")
    with source.open("rb") as lines:
        reading = batches.read(lines, job.spec["endpoint"], recipes.get(job.recipe or "").samples_with)
        write_requests(requests, reading)
    reading.check()


def export(trip: "Trip") -> dict[str, Any]:
    """The checkpoint to be given another form."""
    job = trip.job
    with transaction() as db:
        start = start_of(db, job)
        trained = db.get_one(Job, (start.adapter or start.full or no_checkpoint(job)).job_id)
        version = db.get_one(DatasetVersion, trained.dataset_version_id)
        facts = card(db, trained, start_of(db, trained), version)
    form = job.asked.get("form", "merged")
    return {"kind": "export", "form": form, "card": facts} | weights(trip.machine, start)


def an_import(trip: "Trip") -> dict[str, Any]:
    """The uploaded bytes, as they came."""
    job, folder = trip.job, trip.folder
    with transaction() as db:
        file = db.get(File, job.file_id) if job.file_id else None
        base = db.get(BaseModel, job.base_model_id) if job.base_model_id else None
    if base is not None:
        source = base_models.fetch_source(base, file, folder / "source")
        return {
            "kind": "import_base_model",
            "source": str(source) if source else None,
            "package": base_models.package_of(base),
        }
    if file is None:
        raise Refused("The uploaded file is gone. Upload it again.", param="file")
    source = folder / "source"
    if storage.get(file.key, source) != file.sha256:
        raise storage.Corrupt(f"{file.key} is not what was uploaded: its SHA-256 differs")
    return {"kind": "import", "source": str(source), "filename": file.filename}


BRIEFS: dict[Kind, Callable[["Trip"], dict[str, Any]]] = {
    Kind.TRAIN: training,
    Kind.EVALUATE: evaluation,
    Kind.INFER: inference,
    Kind.EXPORT: export,
    Kind.IMPORT: an_import,
}


def start_of(db: Session, job: Job) -> Start:
    """What a job's weights are: an adapter belongs on what its own job started from, step by step back."""
    base = db.get_one(BaseModel, job.base_model_id)
    if base.state != Ready.READY:
        raise Refused(f"The base model «{base.id}» is not there: {base.error or base.state}.", param="model")
    checkpoint = db.get(Checkpoint, job.checkpoint_id) if job.checkpoint_id else None
    if checkpoint is None or not checkpoint.adapter:
        return Start(base, checkpoint, None)
    below: Checkpoint | None = checkpoint
    while below is not None and below.adapter:
        came_from = db.exec(select(Job.checkpoint_id).where(Job.id == below.job_id)).first()
        below = db.get(Checkpoint, came_from) if came_from else None
    return Start(base, below, checkpoint)


def weights(machine: "Machine", start: Start) -> dict[str, Any]:
    """The folders of the starting weights, in the cache; from scratch there are none. Raises Refused for deleted ones."""
    cache = machine.cache
    if start.adapter and start.full and start.full.deleted_at is not None:
        raise Refused(f"The weights under the adapter {start.adapter.id} are deleted.", param="model")
    adapter = cache.servable(start.adapter) if start.adapter else None
    if start.full is None and base_models.is_scratch(start.base):
        return {"preset": start.base.facts["preset"]}
    folder = cache.servable(start.full) if start.full else cache.base_model(start.base)
    return {"base_model": str(folder), "adapter": str(adapter) if adapter else None}


def card(db: Session, job: Job, start: Start, version: DatasetVersion) -> dict[str, Any]:
    """What the model card tells of where the weights come from; `start` is what the training starts from."""
    base, full = start.base, start.full
    return {
        "job": job.id,
        "name": job.name,
        "base_model": base.id,
        "stands_on": f"step {full.step} of {full.job_id}" if full else None,
        "licence": base.licence,
        "dataset": f"{db.get_one(Dataset, version.dataset_id).name}, version {version.number}",
        "team": db.get_one(Team, job.team_id).name,
    }


def write_requests(path: Path, requests: Iterable[dict[str, Any]]) -> None:
    """The requests, one a line."""
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            file.write(json.dumps(request, ensure_ascii=False) + "\n")


def no_checkpoint(job: Job) -> Checkpoint:
    """There must be one."""
    raise Refused(f"The checkpoint of {job.id} is gone.", param="checkpoint")
