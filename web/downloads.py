"""Downloads: addresses that a page or script keeps, each answered with a fresh signed link; and the
links themselves, which need no sign-in, stream with Range, ETag and a proper file name.
"""

import re
from collections.abc import Iterator, Sequence
from hashlib import sha256

from flask import Blueprint, Response, flash, g, redirect, request
from sqlmodel import Session, select
from werkzeug.http import parse_range_header
from werkzeug.wrappers import Response as Answer

from shared import checkpoints, downloads, jobs, media, queue, shards, storage
from shared.db import transaction
from shared.errors import NotFound, Refused
from shared.settings import settings
from shared.tables import Artifact, Checkpoint, File, Job, Ready
from web.jobs import name_of, own
from web.words import servable

pages = Blueprint("downloads", __name__)

HEAD = 256 * 1024  # of a file whose first lines are shown
Entries = list[tuple[str, str]]  # (name in the zip, key)


@pages.get("/download/<token>")
def open_link(token: str) -> Answer:
    """What a signed link opens: the store's own link where browsers reach it, else the bytes."""
    what = downloads.opened(token)
    if what.entries:
        return as_file(downloads.zipped(what.entries), what.filename, "application/zip")
    if settings().s3_public_url:
        return redirect(storage.presign(what.key, what.filename, settings().download_minutes * 60), 302)
    return ranged(what.key, what.filename)


def shown(key: str | None, name: str) -> Response:
    """A picture or sound of ours, under a name that never means other bytes: browsers show and keep it.
    Raises NotFound, and storage.Away soon: it is a part of a page.
    """
    if key is None:
        raise NotFound("file", name)
    try:
        with storage.hurried():
            answer = ranged(key, name)
    except storage.Missing:
        raise NotFound("file", name) from None
    answer.mimetype = media.TYPES[name.rsplit(".", 1)[-1]]
    answer.headers.remove("Content-Disposition")
    answer.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    return answer


def ranged(key: str, filename: str) -> Response:
    """One object, or the part of it that Range asks for: 200, 206 or 416."""
    size = storage.size(key)
    etag = sha256(f"{key}:{size}".encode()).hexdigest()[:32]
    start, end = wanted(size, etag)
    if start > end and size:
        answer = Response(status=416)
        answer.headers["Content-Range"] = f"bytes */{size}"
        return answer
    if request.if_none_match.contains(etag):
        return Response(status=304, headers={"ETag": f'"{etag}"'})
    whole = (start, end) == (0, size - 1)
    if request.method == "HEAD":
        pieces, length = iter(()), end - start + 1
    else:
        pieces, length = storage.stream(key) if whole else storage.stream(key, start, end)
    answer = as_file(pieces, filename, "application/octet-stream")
    answer.status_code = 200 if whole else 206
    answer.headers["Content-Length"] = str(length)
    answer.headers["Accept-Ranges"] = "bytes"
    answer.set_etag(etag)
    if not whole:
        answer.headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return answer


def wanted(size: int, etag: str) -> tuple[int, int]:
    """First and last byte that are asked for; the whole for several ranges, another unit or an old ETag."""
    asked = parse_range_header(request.headers.get("Range"))
    mine = request.if_range.etag in (None, etag) and request.if_range.date is None
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1 or not mine:
        return 0, size - 1
    start, stop = asked.ranges[0]
    if start < 0:
        return max(0, size + start), size - 1
    return (start, min(size, stop or size) - 1) if start < size else (size, 0)


def as_file(pieces: Iterator[bytes], filename: str, kind: str) -> Response:
    """Bytes that a browser saves and never shows."""
    answer = Response(pieces, mimetype=kind, direct_passthrough=True)
    answer.headers["Content-Disposition"] = storage.disposition(filename)
    answer.headers["Cache-Control"] = "private, no-transform"
    return answer


def file_name(*parts: object) -> str:
    """A name that every file system takes: words with dashes."""
    return (
        re.sub(r"[^\w.]+", "-", "-".join(str(part) for part in parts if part), flags=re.UNICODE).strip("-.")
        or "download"
    )


# --- addresses of a page --------------------------------------------------------------------------


@pages.get("/checkpoints/<checkpoint_id>/download")
def checkpoint(checkpoint_id: str) -> Answer:
    """A checkpoint's folder as zip."""
    with transaction() as db:
        row, job = own_checkpoint(db, checkpoint_id)
        name = file_name(name_of(job), f"step-{row.step}", "adapter" if row.adapter else "model")
        return redirect(downloads.zip_link(entries_of(row, name), f"{name}.zip", row.team_id), 303)


@pages.get("/checkpoints/<checkpoint_id>/files/<path:name>")
def checkpoint_file(checkpoint_id: str, name: str) -> Answer:
    """One file of a checkpoint."""
    with transaction() as db:
        row, _ = own_checkpoint(db, checkpoint_id)
        if name not in [entry["name"] for entry in servable(row.manifest)]:
            raise NotFound("file", name)
        return redirect(
            downloads.link(f"{row.prefix}servable/{name}", name.rsplit("/", maxsplit=1)[-1], row.team_id), 303
        )


@pages.post("/checkpoints/<checkpoint_id>/merged")
def merge(checkpoint_id: str) -> Answer:
    """Have the merged model built; asking twice builds once."""
    return build(checkpoint_id, "merged", "The merged model is being built; its link appears in the table.")


@pages.post("/checkpoints/<checkpoint_id>/gguf")
def gguf(checkpoint_id: str) -> Answer:
    """Have the checkpoint built as one GGUF file; asking twice builds once."""
    return build(checkpoint_id, "gguf", "The GGUF file is being built; its link appears in the table.")


def build(checkpoint_id: str, form: str, said: str) -> Answer:
    """Have another form built where it is not there yet; ends on the page of the job that trained."""
    with transaction() as db:
        row, _ = own_checkpoint(db, checkpoint_id)
        job = jobs.submit_export(db, checkpoint=row, form=form, created_by=g.caller.user_id)
        done = job.finished_at is not None
    if not done:
        queue.wake(job.slot)
        flash(said, "good")
    return redirect(f"/jobs/{row.job_id}#downloads", 303)


@pages.get("/artifacts/<artifact_id>/download")
def artifact(artifact_id: str) -> Answer:
    """An artifact: its one file as it is, several as zip."""
    with transaction() as db:
        row = db.get(Artifact, artifact_id)
        if row is None or row.team_id != g.caller.team_id:
            raise NotFound("artifact", artifact_id)
        if row.state is not Ready.READY:
            raise Refused(
                "This is not ready to be downloaded yet. Load the job page again in a moment.", status=409
            )
        job = db.get_one(Job, row.job_id)
        return redirect(link_to(db, row, job), 303)


def link_to(db: Session, row: Artifact, job: Job) -> str:
    """A signed link to what the artifact holds."""
    name = file_name(name_of(job), row.form)
    file = db.get(File, row.file_id) if row.file_id else None
    if file is not None:
        ending = file.filename.rsplit(".", 1)[-1] if "." in file.filename else "bin"
        return downloads.link(file.key, f"{name}.{ending}", row.team_id)
    if len(row.manifest) == 1:
        only = row.manifest[0]["name"]
        return downloads.link(f"{row.prefix}{only}", only.split("/")[-1], row.team_id)
    return downloads.zip_link(
        [(f"{name}/{e['name']}", f"{row.prefix}{e['name']}") for e in row.manifest],
        f"{name}.zip",
        row.team_id,
    )


@pages.get("/jobs/<job_id>/download")
def everything(job_id: str) -> Answer:
    """Every checkpoint and every ready artifact of a job as one zip, streamed."""
    with transaction() as db:
        job = own(db, job_id)
        ready = select(Artifact).where(Artifact.job_id == job.id, Artifact.state == Ready.READY)
        made = db.exec(ready.where(~shards.IS_SHARD)).all()
        stored = checkpoints.of(db, job.id)
        name = file_name(name_of(job))
        entries = [entry for row in stored for entry in entries_of(row, f"{name}/step-{row.step}")]
        entries += [entry for row in made for entry in artifact_entries(db, row, name)]
    if not entries:
        raise Refused("There is nothing to download yet.", status=409)
    return as_file(downloads.zipped(entries), f"{name}.zip", "application/zip")


def entries_of(row: Checkpoint, folder: str) -> Entries:
    """The files of a checkpoint that people download."""
    return [(f"{folder}/{e['name']}", f"{row.prefix}servable/{e['name']}") for e in servable(row.manifest)]


def artifact_entries(db: Session, row: Artifact, folder: str) -> Entries:
    """The files of an artifact."""
    if row.manifest:
        return [(f"{folder}/{row.form}/{e['name']}", f"{row.prefix}{e['name']}") for e in row.manifest]
    file = db.get(File, row.file_id) if row.file_id else None
    return [(f"{folder}/{row.form}/{file.filename}", file.key)] if file else []


@pages.get("/files/<file_id>/download")
def uploaded(file_id: str) -> Answer:
    """A file as it was uploaded."""
    with transaction() as db:
        file = db.get(File, file_id)
        if file is None or file.team_id != g.caller.team_id or file.deleted_at:
            raise NotFound("file", file_id)
        return redirect(downloads.link(file.key, file.filename, file.team_id), 303)


def own_checkpoint(db: Session, checkpoint_id: str) -> tuple[Checkpoint, Job]:
    """The team's checkpoint and its job. Raises NotFound."""
    row = db.get(Checkpoint, checkpoint_id)
    if row is None or row.team_id != g.caller.team_id or row.deleted_at:
        raise NotFound("checkpoint", checkpoint_id)
    return row, db.get_one(Job, row.job_id)


def first_lines(db: Session, row: Artifact, count: int) -> Sequence[str]:
    """The first whole lines of an artifact of one text file. Raises storage.Away soon."""
    file = db.get(File, row.file_id) if row.file_id else None
    key = file.key if file else f"{row.prefix}{row.manifest[0]['name']}" if row.manifest else ""
    head = storage.soon(lambda: head_of(key)) if key else b""
    lines = head.decode("utf-8", "replace").split("\n")
    return [line for line in (lines if len(head) < HEAD else lines[:-1]) if line.strip()][:count]


def head_of(key: str) -> bytes:
    """The first bytes of an object; none where it is gone. Raises storage.Away."""
    try:
        end = min(HEAD, storage.size(key)) - 1
        return b"".join(storage.stream(key, 0, end)[0]) if end >= 0 else b""
    except storage.Missing:
        return b""
