"""Datasets: a name, and versions whose rows never change.

An upload is looked at (`glance`: cheap, bounded, in the web), stored as it came, and imported by a
job that turns it into Parquet and says what it found. `DatasetVersion.report` is

    {"format": "jsonl", "rows": 96, "bytes": 9000, "content_hash": "…",
     "columns": [{"name", "type", "filled", "distinct", "min_length", "mean_length", "max_length",
                  "values": [{"value", "count"}, … 20 at most],
                  of pictures and sounds instead: "sizes": [{"value", "count"}], "seconds": [least, mean, most]}],
     "preview": [the first 50 rows; a picture or sound as {"media": name, …}, see `shared.media`],
     "preview_rows": [their numbers in the user's file],
     "findings": [{"row", "column", "message", "fatal"}],
     "fits": {recipe: {"columns": {the recipe's column: the dataset's}, "findings": […],
                       "fatal": how many, "skipped": how many}}}

Row numbers count as in the user's file (see `shared.formats`); the Parquet file keeps them in the
column `shared.formats.ROW`.
"""

import time
import zipfile
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, BinaryIO

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from shared import archives, bundles, formats, media, model_files, queue, storage, uploads
from shared.columns import now
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.formats import HEAD, Glance
from shared.ids import new_id
from shared.recipe import Recipe
from shared.tables import FINAL, Dataset, DatasetVersion, File, Job, Ready, Schedule

PURPOSES = ("fine-tune", "batch", "base-model")
NAME = 100


def upload(
    *,
    team_id: str,
    stream: BinaryIO,
    filename: str,
    purpose: str,
    created_by: str | None,
    dataset_name: str | None = None,
) -> File:
    """Looks at an upload, stores it and, where it is for fine-tuning, starts its import.

    The same bytes again for the same dataset are the version that is there already. Makes its own
    transactions; call it outside of any. Raises Refused; then nothing is stored.
    """
    if purpose not in PURPOSES:
        known = ", ".join(f"'{name}'" for name in PURPOSES)
        raise Refused(f"Invalid value: '{purpose}'. Supported values are: {known}.", param="purpose")
    filename = uploads.clean_filename(filename)
    with uploads.seekable(stream) as source:
        uploads.check_size(source)
        look(source, filename, purpose)
        file = uploads.store(source, team_id, filename, purpose, created_by)
    if purpose != "fine-tune":
        with transaction() as db:
            db.add(file)
        return file
    return new_version(file, (dataset_name or PurePath(filename).stem).strip()[:NAME] or "dataset")


def look(source: BinaryIO, filename: str, purpose: str) -> None:
    """Raises Refused for everything that is cheap to see."""
    if purpose == "fine-tune":
        glance(source, filename)
    elif purpose == "batch":
        check_batch(source, filename)
    else:
        model_files.check_zip(source)


def glance(source: BinaryIO, filename: str) -> Glance:
    """What a dataset's upload is; reads its head alone, or what a zip and a Parquet file end with.

    Raises Refused with the row and the field. Leaves the file where it begins.
    """
    source.seek(0)
    head = source.read(HEAD)
    kind = formats.glance(head, filename, whole=len(head) < HEAD)
    if kind.format == "parquet":
        check_parquet_end(source)
    if kind.format == "zip":
        check_zip(source)
    source.seek(0)
    return kind


def check_zip(source: BinaryIO) -> None:
    """Raises Refused for what its table of contents shows, and for the head of a file of rows."""
    bundle = bundles.look(archives.members(source, archives.MANY))
    if bundle.kind == "file":
        entry = bundle.entries[0]
        with zipfile.ZipFile(source) as archive:
            inner = archives.head_of(archive, entry, HEAD)
        formats.glance(inner, entry.filename, whole=len(inner) == entry.file_size)


def check_parquet_end(source: BinaryIO) -> None:
    """Parquet itself is read in the importer's sandbox; here only whether the upload is whole."""
    if source.seek(0, 2) < 12 or (source.seek(-4, 2) and source.read(4) != b"PAR1"):
        raise Refused(
            "The Parquet file is cut short: its end is missing. Upload it again.",
            param="file",
            code="invalid_file_format",
        )


def check_batch(source: BinaryIO, filename: str) -> None:
    """A batch file's lines are judged by the batch itself; here only whether it is text at all."""
    source.seek(0)
    head = source.read(HEAD)
    source.seek(0)
    if head.strip() and (b"\0" in head[:8192] or formats.foreign_kind(head) or head.startswith(b"PK")):
        raise Refused(
            f"«{filename}» is not text. Expected file to have JSONL format, where every line is a JSON dictionary.",
            param="file",
            code="unsupported_format",
        )
    if not head.strip():
        raise Refused("The file is empty. Put one request on each line.", param="file", code="empty_file")


def new_version(file: File, name: str) -> File:
    """The file as the next version of the dataset with that name, and its import; or the file that
    already holds these bytes there.
    """
    from shared import jobs  # it checks orders against this module

    with transaction() as db:
        dataset = named(db, file.team_id, name, file.created_by)
        known = same_bytes(db, dataset, file.sha256)
        if known is None:
            db.add(file)
            db.flush()
            version = DatasetVersion(
                team_id=file.team_id, dataset_id=dataset.id, number=next_number(db, dataset), file_id=file.id
            )
            db.add(version)
            db.flush()
            job = jobs.submit_import(
                db,
                team_id=file.team_id,
                version_id=version.id,
                file_id=file.id,
                created_by=file.created_by,
            )
    if known is not None:
        storage.let_go(lambda: storage.delete(file.key))
        return known
    queue.wake(job.slot)
    return file


def named(db: Session, team_id: str, name: str, created_by: str | None) -> Dataset:
    """The team's dataset of that name, made where there is none; locked, so that versions count up."""
    made = insert(Dataset).values(
        id=new_id("ds-"), team_id=team_id, name=name, created_by=created_by, created_at=now()
    )
    db.exec(
        made.on_conflict_do_nothing(
            index_elements=["team_id", "name"], index_where=col(Dataset.deleted_at).is_(None)
        )
    )
    wanted = select(Dataset).where(
        Dataset.team_id == team_id, Dataset.name == name, col(Dataset.deleted_at).is_(None)
    )
    return db.exec(wanted.with_for_update()).one()


def same_bytes(db: Session, dataset: Dataset, sha256: str) -> File | None:
    """The file of a version of this dataset that holds the same bytes and was not refused."""
    wanted = (
        select(File)
        .join(DatasetVersion, col(DatasetVersion.file_id) == File.id)
        .where(
            DatasetVersion.dataset_id == dataset.id,
            DatasetVersion.state != Ready.FAILED,
            File.sha256 == sha256,
            col(File.deleted_at).is_(None),
        )
        .order_by(col(DatasetVersion.number).desc())
    )
    return db.exec(wanted).first()


def next_number(db: Session, dataset: Dataset) -> int:
    """The number of the dataset's next version, from 1."""
    highest = select(func.max(DatasetVersion.number)).where(DatasetVersion.dataset_id == dataset.id)
    return (db.exec(highest).one() or 0) + 1


def record_import(
    db: Session, version_id: str, report: dict[str, Any], key: str, content_hash: str
) -> DatasetVersion:
    """The import has put the rows at `key`: the version is ready from now on."""
    version = db.get(DatasetVersion, version_id)
    if version is None:
        raise NotFound("dataset version", version_id)
    version.state, version.error = Ready.READY, None
    version.report, version.key, version.content_hash = report, key, content_hash
    version.rows, version.bytes = report["rows"], report["bytes"]
    file = db.get(File, version.file_id)
    if file is not None:
        file.status = "processed"
    db.flush()
    return version


def await_import(version_id: str, seconds: float) -> DatasetVersion:
    """The version once its import has ended, or as it is after that time. Call it outside of any
    transaction.
    """
    deadline = time.monotonic() + seconds
    while True:
        with transaction() as db:
            version = db.get(DatasetVersion, version_id)
        if version is None:
            raise NotFound("dataset version", version_id)
        if version.state in (Ready.READY, Ready.FAILED) or time.monotonic() >= deadline:
            return version
        time.sleep(0.1)


def version_of(db: Session, team_id: str, name: str) -> DatasetVersion:
    """The version that a file id, version id or dataset id (its newest) stands for. Raises NotFound."""
    wanted = (
        select(DatasetVersion)
        .join(Dataset, col(Dataset.id) == DatasetVersion.dataset_id)
        .join(File, col(File.id) == DatasetVersion.file_id)
        .where(
            DatasetVersion.team_id == team_id,
            col(Dataset.deleted_at).is_(None),
            col(File.deleted_at).is_(None),
        )
    )
    if name.startswith("ds-"):
        version = newest(db, name)
        if version is None or version.team_id != team_id:
            raise NotFound("dataset", name)
        return version
    same = DatasetVersion.file_id if name.startswith("file-") else DatasetVersion.id
    version = db.exec(wanted.where(same == name).order_by(col(DatasetVersion.number).desc())).first()
    if version is None:
        raise NotFound("dataset file", name)
    return version


def newest(db: Session, dataset_id: str) -> DatasetVersion | None:
    """The dataset's newest version that is ready or on its way; a failed one only where no other is."""
    wanted = (
        select(DatasetVersion)
        .join(Dataset, col(Dataset.id) == DatasetVersion.dataset_id)
        .join(File, col(File.id) == DatasetVersion.file_id)
        .where(
            DatasetVersion.dataset_id == dataset_id,
            col(Dataset.deleted_at).is_(None),
            col(File.deleted_at).is_(None),
        )
        .order_by(col(DatasetVersion.state) == Ready.FAILED, col(DatasetVersion.number).desc())
    )
    return db.exec(wanted).first()


def get(db: Session, team_id: str, dataset_id: str) -> Dataset:
    """The team's dataset. Raises NotFound."""
    dataset = db.get(Dataset, dataset_id)
    if dataset is None or dataset.team_id != team_id or dataset.deleted_at:
        raise NotFound("dataset", dataset_id)
    return dataset


def all_for(db: Session, team_id: str) -> Sequence[Dataset]:
    """The team's datasets, the newest first."""
    wanted = select(Dataset).where(Dataset.team_id == team_id, col(Dataset.deleted_at).is_(None))
    return db.exec(wanted.order_by(col(Dataset.id).desc())).all()


def versions(db: Session, dataset_id: str) -> Sequence[DatasetVersion]:
    """A dataset's versions, the newest first."""
    wanted = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id)
    return db.exec(wanted.order_by(col(DatasetVersion.number).desc())).all()


def check(
    version: DatasetVersion,
    recipe: Recipe,
    columns: dict[str, str] | None = None,
    *,
    param: str = "training_file",
) -> dict[str, str]:
    """The mapping {the recipe's column: the dataset's column} with which the recipe reads the rows.

    `columns` is what the user chose; without it the recipe recognises its columns. Raises Refused
    where a column is missing, or where the importer found rows that the recipe cannot learn from; `param`
    is the field that named the dataset.
    """
    check_ready(version, param)
    names = [column["name"] for column in version.report["columns"]]
    fit = version.report["fits"].get(recipe.name)
    mapping = {mine: theirs for mine, theirs in (columns or {}).items() if theirs}
    if not mapping:
        if fit is None:
            raise unfit(recipe, recipe.lacks(recipe.recognise(names) or {}), names, param)
        mapping = fit["columns"]
    check_mapping(recipe, mapping, names, param)
    if fit is not None and fit["fatal"] and fit["columns"] == mapping:
        raise from_findings(fit, param)
    return mapping


def check_ready(version: DatasetVersion, param: str) -> None:
    """Raises Refused unless the rows are there."""
    if version.state == Ready.FAILED:
        raise Refused(
            f"This dataset could not be read: {version.error}",
            param=param,
            code="invalid_training_file",
        )
    if version.state != Ready.READY:
        raise Refused(
            "This dataset is still being read. Wait until its import has ended.",
            param=param,
            code="dataset_not_ready",
            status=409,
            retry=True,
        )


def check_mapping(recipe: Recipe, mapping: dict[str, str], names: list[str], param: str) -> None:
    """Raises Refused for columns that the recipe or the dataset does not have, or that are left out."""
    known = [column.name for column in recipe.columns]
    for mine, theirs in mapping.items():
        if mine not in known and mine not in (recipe.recognise(names) or {}):
            raise Refused(
                f"«{recipe.title}» has no column «{mine}». It has: {', '.join(known)}.",
                param=f"columns.{mine}",
                code="unknown_column",
            )
        if theirs not in names:
            raise Refused(
                f"The dataset has no column «{theirs}». It has: {', '.join(names)}.",
                param=f"columns.{mine}",
                code="missing_column",
            )
    if lacking := recipe.lacks(mapping):
        raise unfit(recipe, lacking, names, param)


def unfit(recipe: Recipe, lacking: str | None, names: list[str], param: str) -> Refused:
    """The refusal of a dataset whose columns do not suit the recipe."""
    why = lacking or f"{recipe.title} does not know these columns."
    return Refused(
        f"{why} The dataset has: {', '.join(names)}. Choose the columns, or rename them in the file.",
        param=param,
        code="missing_column",
    )


def from_findings(fit: dict[str, Any], param: str) -> Refused:
    """The refusal that the first fatal finding makes; it says how many more there are."""
    fatal = [finding for finding in fit["findings"] if finding["fatal"]]
    others = fit["fatal"] - sum(1 for finding in fatal if finding["row"] is None) - 1
    more = (
        " One more row is like it."
        if others == 1
        else f" {others} more rows are like it."
        if others > 1
        else ""
    )
    return Refused(sentence(fatal[0]) + more, param=param, code="invalid_training_file")


def sentence(finding: dict[str, Any]) -> str:
    """A finding with its place in the user's file."""
    if finding["row"] is None or f"row {finding['row']}" in finding["message"].lower():
        return finding["message"]
    return f"Row {finding['row']}: {finding['message']}"


def delete(db: Session, dataset: Dataset) -> None:
    """The dataset and its bytes go; jobs that used it keep their rows. Raises Refused while it is in use."""
    mine = select(DatasetVersion.id).where(DatasetVersion.dataset_id == dataset.id)
    using = select(Job.id).where(
        col(Job.dataset_version_id).in_(mine) | col(Job.valid_version_id).in_(mine),
        col(Job.state).not_in(FINAL),
    )
    if job_id := db.exec(using.limit(1)).first():
        raise in_use(f"«{dataset.name}» is in use by {job_id}. Cancel that job, or wait for it.")
    scheduled = select(Schedule.name).where(
        Schedule.dataset_id == dataset.id, col(Schedule.deleted_at).is_(None)
    )
    if name := db.exec(scheduled.limit(1)).first():
        raise in_use(f"The schedule «{name}» trains on «{dataset.name}». Delete the schedule first.")
    dataset.deleted_at = now()
    keys = [key for version in versions(db, dataset.id) for key in keys_of(version)]
    files = select(File).join(DatasetVersion, col(DatasetVersion.file_id) == File.id)
    for file in db.exec(files.where(DatasetVersion.dataset_id == dataset.id)).all():
        file.deleted_at = now()
        keys.append(file.key)
    uploads.delete_after_commit(db, keys)


def delete_file(db: Session, file: File) -> None:
    """An uploaded file goes, with the rows that were read from it. Raises Refused while it is in use."""
    read = select(DatasetVersion).where(DatasetVersion.file_id == file.id)
    ids = [version.id for version in db.exec(read).all()]
    using = select(Job.id).where(
        col(Job.dataset_version_id).in_(ids) | col(Job.valid_version_id).in_(ids) | (Job.file_id == file.id),
        col(Job.state).not_in(FINAL),
    )
    if job_id := db.exec(using.limit(1)).first():
        raise in_use(f"The file is in use by {job_id}. Cancel that job, or wait for it.")
    file.deleted_at = now()
    rows = [key for version in db.exec(read).all() for key in keys_of(version)]
    uploads.delete_after_commit(db, [file.key, *rows])


def keys_of(version: DatasetVersion) -> list[str]:
    """What is stored of a version beside the file as it came."""
    return [version.key, *media.preview_keys(version)] if version.key else []


def in_use(message: str) -> Refused:
    """The refusal of a deletion."""
    return Refused(message, param="id", code="in_use", status=409)
