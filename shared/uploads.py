"""Uploads: bytes from outside, looked at where they lie, then stored under a key that the server makes."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import BinaryIO

from sqlalchemy import event
from sqlmodel import Session

from shared import storage
from shared.ids import new_id
from shared.settings import settings
from shared.tables import File


@contextmanager
def seekable(stream: BinaryIO) -> Generator[BinaryIO]:
    """The stream itself where it can seek, else its bytes in a temporary file, up to the limit."""
    if stream.seekable():
        yield stream
        return
    with TemporaryFile() as copy:
        size = 0
        while piece := stream.read(storage.CHUNK):
            size += len(piece)
            storage.within(size, settings().max_upload_bytes)
            copy.write(piece)
        copy.seek(0)
        yield copy


def check_size(source: BinaryIO) -> None:
    """Raises Refused over the limit, before a byte is stored."""
    storage.within(source.seek(0, 2), settings().max_upload_bytes)


def clean_filename(filename: str) -> str:
    """The name alone, printable, without the folders that some clients send along."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable()).strip()[:255] or "upload"


def store(source: BinaryIO, team_id: str, filename: str, purpose: str, created_by: str | None) -> File:
    """The bytes in the store, and their row, not in the database yet."""
    file_id = new_id("file-")
    key = f"teams/{team_id}/files/{file_id}"
    source.seek(0)
    size, sha256 = storage.put_stream(key, source, settings().max_upload_bytes)
    return File(
        id=file_id,
        team_id=team_id,
        purpose=purpose,
        filename=filename,
        bytes=size,
        sha256=sha256,
        key=key,
        created_by=created_by,
    )


def delete_after_commit(db: Session, keys: Sequence[str]) -> None:
    """The objects go once the rows are gone for good; what a crash leaves behind is swept as orphans."""

    def remove(_: Session) -> None:
        storage.let_go(lambda: [storage.delete(key) for key in keys])

    event.listen(db, "after_commit", remove, once=True)
