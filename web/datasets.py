"""Datasets: what there is, the upload, and a version with its rows, statistics and findings."""

import json
from io import BytesIO
from typing import Any
from zipfile import ZipFile

from flask import Blueprint, flash, g, jsonify, redirect, render_template, request
from sqlmodel import Session, col, func, select
from werkzeug.datastructures import FileStorage
from werkzeug.wrappers import Response

from shared import datasets, media
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.recipe import Recipe, recipes
from shared.settings import settings
from shared.tables import DatasetVersion, File, Job, Ready
from web.downloads import shown

pages = Blueprint("datasets", __name__)

SHOWN_FINDINGS = 100
SUFFIXES = {"image": "png", "audio": "wav"}  # of the files that a kind of column holds


@pages.get("/datasets")
def index() -> str:
    """The team's datasets with their newest version, and the upload."""
    return listed({}, "")


def listed(wrong: dict[str, str], typed: str) -> str:
    """The list, with what was wrong with an upload beside its field."""
    with transaction() as db:
        lines = [
            {"dataset": dataset, "newest": newest(db, dataset.id), "jobs": jobs_on(db, dataset.id)}
            for dataset in datasets.all_for(db, g.caller.team_id)
        ]
    return render_template(
        "datasets/index.html",
        lines=lines,
        wrong=wrong,
        typed=typed,
        recipes=recipes(),
        most=settings().max_upload_bytes,
    )


@pages.post("/datasets")
def upload() -> Response | tuple[str, int] | tuple[Response, int]:
    """Take a file: a new dataset, or a new version of the one with that name."""
    name = request.form.get("name", "").strip()
    scripted = request.accept_mimetypes.best == "application/json"
    try:
        version = take(request.files.get("file"), name)
    except Refused as refusal:
        field = refusal.param if refusal.param in ("name", "file") else "file"
        if scripted:
            return jsonify(message=refusal.message, field=field), refusal.status
        return listed({field: refusal.message}, name), refusal.status
    place = f"/datasets/{version.dataset_id}?version={version.number}"
    return jsonify(location=place) if scripted else redirect(place, 303)


def take(sent: FileStorage | None, name: str) -> DatasetVersion:
    """Store the upload and begin its import. Raises Refused."""
    if sent is None or not sent.filename:
        raise Refused("Choose a file first.", param="file", status=422)
    file = datasets.upload(
        team_id=g.caller.team_id,
        stream=sent.stream,  # ty: ignore[invalid-argument-type] - a binary stream by another name
        filename=sent.filename,
        purpose="fine-tune",
        created_by=g.caller.user_id,
        dataset_name=name or None,
    )
    with transaction() as db:
        found = select(DatasetVersion).where(DatasetVersion.file_id == file.id)
        return db.exec(found.order_by(col(DatasetVersion.number).desc())).one()


@pages.post("/datasets/sample")
def sample() -> Response:
    """A dataset of the recipe's own example rows, to try the road without data of one's own."""
    recipe = recipes().get(request.form.get("recipe", ""))
    if recipe is None:
        raise Refused("There are no sample rows for this recipe.", param="recipe", status=422)
    content, suffix = sample_file(recipe)
    sent = FileStorage(BytesIO(content), filename=f"sample-{recipe.name}.{suffix}")
    version = take(sent, f"sample {recipe.name}")
    return redirect(f"/datasets/{version.dataset_id}?version={version.number}", 303)


def sample_file(recipe: Recipe) -> tuple[bytes, str]:
    """The example rows as JSONL; pictures and sounds as a zip with a folder for each label."""
    cell = next((column for column in recipe.columns if column.kind in SUFFIXES), None)
    if cell is None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in recipe.example)
        return lines.encode(), "jsonl"
    packed = BytesIO()
    with ZipFile(packed, "w") as file:
        for number, row in enumerate(recipe.example, 1):
            file.writestr(f"{row['label']}/{number}.{SUFFIXES[cell.kind]}", row[cell.name])
    return packed.getvalue(), "zip"


@pages.get("/datasets/<dataset_id>")
def show(dataset_id: str) -> str:
    """One version (the newest, or `version`): first rows, columns, findings, which recipes it fits."""
    with transaction() as db:
        dataset = datasets.get(db, g.caller.team_id, dataset_id)
        versions = datasets.versions(db, dataset.id)
        asked = request.args.get("version", "")
        version = next(
            (v for v in versions if str(v.number) == asked), versions[0] if not asked and versions else None
        )
        if version is None:
            raise NotFound("version", asked or dataset.name)
        job = db.get(Job, version.import_job_id) if version.import_job_id else None
        return render_template(
            "datasets/show.html",
            dataset=dataset,
            versions=versions,
            version=version,
            job=job,
            file=db.get(File, version.file_id),
            jobs=recent_jobs(db, dataset.id),
            report=version.report,
            rows=preview(version.report),
            fits=fits(version),
            most=settings().max_upload_bytes,
        )


@pages.get("/datasets/<dataset_id>/versions/<number>/media/<name>")
def medium(dataset_id: str, number: str, name: str) -> Response:
    """A small picture or sound among a version's first rows. Raises NotFound."""
    with transaction() as db:
        dataset = datasets.get(db, g.caller.team_id, dataset_id)
        version = next((one for one in datasets.versions(db, dataset.id) if str(one.number) == number), None)
    if version is None:
        raise NotFound("version", number)
    return shown(media.preview_key(version, name), name)


@pages.post("/datasets/<dataset_id>/delete")
def delete(dataset_id: str) -> Response:
    """Take a dataset away, its rows with it."""
    with transaction() as db:
        dataset = datasets.get(db, g.caller.team_id, dataset_id)
        datasets.delete(db, dataset)
    flash(f"«{dataset.name}» is deleted.", "good")
    return redirect("/datasets", 303)


def newest(db: Session, dataset_id: str) -> DatasetVersion | None:
    """The newest version, whatever became of it."""
    return next(iter(datasets.versions(db, dataset_id)), None)


def jobs_on(db: Session, dataset_id: str) -> int:
    """How many training jobs have used it."""
    used = (
        select(func.count())
        .select_from(Job)
        .join(DatasetVersion, col(Job.dataset_version_id) == DatasetVersion.id)
    )
    return db.exec(used.where(DatasetVersion.dataset_id == dataset_id, col(Job.recipe).is_not(None))).one()


def recent_jobs(db: Session, dataset_id: str) -> list[Job]:
    """The last five jobs on any version of it."""
    used = select(Job).join(DatasetVersion, col(Job.dataset_version_id) == DatasetVersion.id)
    used = used.where(DatasetVersion.dataset_id == dataset_id, col(Job.recipe).is_not(None))
    return list(
        db.exec(used.where(col(Job.deleted_at).is_(None)).order_by(col(Job.id).desc()).limit(5)).all()
    )


def preview(report: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """[(row's number in the user's file, its cells)]."""
    rows = report.get("preview", [])
    numbers = report.get("preview_rows") or range(1, len(rows) + 1)
    return list(zip(numbers, rows, strict=False))


def fits(version: DatasetVersion) -> list[dict[str, Any]]:
    """Each recipe: does it recognise the columns, with which mapping, and what stands in the way."""
    if version.state is not Ready.READY:
        return []
    told = []
    names = [column["name"] for column in version.report.get("columns", [])]
    for recipe in recipes().values():
        fit = version.report.get("fits", {}).get(recipe.name)
        lacking = (
            ""
            if fit
            else recipe.lacks(recipe.recognise(names) or {}) or "It does not know these columns by name."
        )
        findings = (fit or {}).get("findings", [])[:SHOWN_FINDINGS]
        told.append({"recipe": recipe, "fit": fit, "lacking": lacking, "findings": findings})
    return sorted(told, key=lambda one: one["fit"] is None)
