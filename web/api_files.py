"""/v1/files: uploads and results."""

from typing import cast

from flask import Blueprint, Response, g, request
from sqlmodel import Session, col, select

from shared import datasets
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.tables import DatasetVersion, File, Ready
from web import shapes, wire
from web.downloads import ranged

api = Blueprint("api_files", __name__, url_prefix="/v1")
FINDINGS = 100
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "purpose": {"type": "string", "enum": list(datasets.PURPOSES)},
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "x_dataset": {
            "type": "string",
            "description": "Name of the dataset; the file's name where it is missing.",
        },
    },
}


@api.post("/files")
@wire.operation(shapes.FileObject, form=FORM)
def create() -> Response:
    """Upload a file: rows for fine-tuning (JSONL, CSV, TSV, Parquet, text, zip), or batch requests.

    With the purpose `fine-tune` it becomes the newest version of a dataset.
    """
    part = wire.upload()
    if "purpose" not in request.form:
        raise Refused(
            "Missing required parameter: 'purpose'.", param="purpose", code="missing_required_parameter"
        )
    file = datasets.upload(
        team_id=g.caller.team_id,
        stream=part.stream,
        filename=part.filename or "upload",
        purpose=request.form["purpose"],
        created_by=g.caller.user_id,
        dataset_name=request.form.get("x_dataset") or None,
    )
    with transaction() as db:
        return wire.answer(shape(file, version_of(db, file)))


@api.get("/files")
@wire.operation(shapes.Page[shapes.FileObject], query=shapes.FilesAsked)
def index() -> Response:
    """List the team's files."""
    asked = wire.query(shapes.FilesAsked)
    wanted = select(File).where(File.team_id == g.caller.team_id, col(File.deleted_at).is_(None))
    if asked.purpose is not None:
        wanted = wanted.where(File.purpose == asked.purpose)
    with transaction() as db:
        files, more = wire.cut(db, wanted, File.id, asked, asked.order)
        read = select(DatasetVersion).where(col(DatasetVersion.file_id).in_([file.id for file in files]))
        versions = {version.file_id: version for version in db.exec(read)}
    return wire.listed([shape(file, versions.get(file.id)) for file in files], more)


@api.get("/files/<file_id>")
@wire.operation(shapes.FileObject)
def retrieve(file_id: str) -> Response:
    """One file, with what the importer found in it."""
    with transaction() as db:
        file = find(db, file_id)
        return wire.answer(shape(file, version_of(db, file), findings=FINDINGS))


@api.get("/files/<file_id>/content")
@wire.operation("bytes")
def content(file_id: str) -> Response:
    """The bytes as they were uploaded or made; resumable by Range."""
    with transaction() as db:
        file = find(db, file_id)
    return ranged(file.key, file.filename)


@api.delete("/files/<file_id>")
@wire.operation(shapes.Deleted)
def delete(file_id: str) -> Response:
    """Delete a file and the rows that were read from it."""
    with transaction() as db:
        file = find(db, file_id)
        version = version_of(db, file)
        if version is not None and version.state == Ready.BUILDING:
            raise Refused(
                "File is still processing. Check back later.",
                param="id",
                code="in_use",
                status=409,
                retry=True,
            )
        datasets.delete_file(db, file)
    return wire.answer(shapes.Deleted(id=file_id, object="file"))


def find(db: Session, file_id: str) -> File:
    """The team's file. Raises NotFound."""
    file = db.get(File, file_id)
    if file is None or file.team_id != g.caller.team_id or file.deleted_at:
        raise NotFound("file", file_id)
    return file


def version_of(db: Session, file: File) -> DatasetVersion | None:
    """The newest dataset version that was read from the file, if one was."""
    if file.purpose != "fine-tune":
        return None
    read = select(DatasetVersion).where(DatasetVersion.file_id == file.id)
    return db.exec(read.order_by(col(DatasetVersion.number).desc())).first()


def shape(file: File, version: DatasetVersion | None, findings: int = 0) -> shapes.FileObject:
    """A file on the wire. What nobody imports has been processed as soon as it is stored."""
    state = version.state if version else Ready.READY
    report = version.report if version else {}
    return shapes.FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=cast(int, wire.seconds(file.created_at)),
        filename=file.filename,
        purpose=file.purpose,
        status="processed" if state == Ready.READY else "error" if state == Ready.FAILED else "uploaded",
        status_details=(version.error if version else None) or file.status_details,
        expires_at=wire.seconds(file.expires_at),
        x_sha256=file.sha256,
        x_rows=version.rows if version and version.state == Ready.READY else None,
        x_findings=report.get("findings", [])[:findings],
    )
