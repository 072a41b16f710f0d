"""The store: one bucket of any S3, by keys that the server makes.

    teams/<team>/files/<file id>                     what was uploaded
    teams/<team>/datasets/<version id>.parquet       rows
    teams/<team>/datasets/<version id>/preview/…     small pictures and sounds of the first rows
    teams/<team>/jobs/<job>/…                        checkpoints and artifacts
    base/<hash>/…                                    base models, read-only

A list of `{name, bytes, sha256}` (a manifest) goes with every folder; what comes back is compared
with it. Clients are made on first use in each process. Memory stays bounded whatever the size.
"""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.deadline import within as done_within
from shared.errors import Refused
from shared.settings import settings

PART = 8 * 1024**2  # of a multipart upload; the store wants at least 5 MiB
CHUNK = 1024**2  # of a download
CONFIG = Config(
    region_name="us-east-1",
    signature_version="s3v4",
    s3={"addressing_style": "path"},
    # checksums in trailers end up inside the file on some stores; the manifest's sha256 covers us
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    retries={"mode": "standard", "max_attempts": 4},
    connect_timeout=3,
    read_timeout=30,
    max_pool_connections=32,
)
SOON = 0.8  # seconds that a page waits for the store
HURRIED = CONFIG.merge(
    Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=SOON - 0.1,
        read_timeout=SOON - 0.1,
    )
)
TRANSFER = TransferConfig(multipart_threshold=2 * PART, multipart_chunksize=2 * PART, max_concurrency=4)


log = logging.getLogger(__name__)
hurry: ContextVar[bool] = ContextVar("hurry", default=False)
T = TypeVar("T")
R = TypeVar("R")


class Away(Exception):
    """The store does not answer, or not as a store should. Trying again later may help."""


class Corrupt(Exception):
    """The bytes that came back are not those that were stored."""


class Missing(Corrupt):
    """No such object."""


class Readable(Protocol):
    """What `put_stream` reads: an open file, a request's stream."""

    def read(self, size: int, /) -> bytes: ...


def put(key: str, path: Path) -> None:
    """Stores a file, in parts where it is large. Raises Away."""
    with asking(key):
        client().upload_file(str(path), bucket(), key, Config=TRANSFER)
        arrived(key, path.stat().st_size)


def put_bytes(key: str, data: bytes) -> None:
    """Stores a small object. Raises Away."""
    with asking(key):
        client().put_object(Bucket=bucket(), Key=key, Body=data)


def put_stream(key: str, stream: Readable, limit: int) -> tuple[int, str]:
    """Stores a stream of unknown length, two parts in memory at most.

    Returns its bytes and SHA-256. Raises Refused over `limit` bytes and Away; nothing stays behind.
    """
    head = filled(stream, PART)
    digest = hashlib.sha256(head)
    if len(head) < PART:
        within(len(head), limit)
        put_bytes(key, head)
        return len(head), digest.hexdigest()
    with asking(key):
        upload = client().create_multipart_upload(Bucket=bucket(), Key=key)["UploadId"]
        try:
            size = send_parts(key, upload, head, stream, digest, limit)
        except BaseException:
            client().abort_multipart_upload(Bucket=bucket(), Key=key, UploadId=upload)
            raise
        arrived(key, size)
    return size, digest.hexdigest()


def send_parts(key: str, upload: str, part: bytes, stream: Readable, digest: Any, limit: int) -> int:
    """Sends the parts in order while `digest` grows, and completes the upload. Returns the bytes."""
    done: list[dict[str, Any]] = []
    size = 0
    while part:
        size += len(part)
        within(size, limit)
        number = len(done) + 1
        answer = client().upload_part(Bucket=bucket(), Key=key, UploadId=upload, PartNumber=number, Body=part)
        done.append({"PartNumber": number, "ETag": answer["ETag"]})
        part = filled(stream, PART)
        digest.update(part)
    client().complete_multipart_upload(
        Bucket=bucket(), Key=key, UploadId=upload, MultipartUpload={"Parts": done}
    )
    return size


def get(key: str, path: Path) -> str:
    """Brings an object to `path` (whole or not at all) and returns its SHA-256. Raises Missing, Away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            pieces, _ = stream(key)
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def read(key: str) -> bytes:
    """A small object's bytes. Raises Missing, Away."""
    pieces, _ = stream(key)
    return b"".join(pieces)


def stream(key: str, start: int | None = None, end: int | None = None) -> tuple[Iterator[bytes], int]:
    """The bytes from `start` to `end`, both counted from 0 and included, and how many there are.

    Raises Missing and Away, also while the bytes come.
    """
    wanted = {} if start is None else {"Range": f"bytes={start}-{'' if end is None else end}"}
    with asking(key):
        answer = client().get_object(Bucket=bucket(), Key=key, **wanted)
    return pieces_of(key, answer["Body"]), answer["ContentLength"]


def pieces_of(key: str, body: Any) -> Iterator[bytes]:
    """The body in pieces of a mebibyte; closes the connection at the end."""
    with asking(key), body:
        while piece := body.read(CHUNK):
            yield piece


def size(key: str) -> int:
    """The bytes of an object. Raises Missing, Away."""
    with asking(key):
        return client().head_object(Bucket=bucket(), Key=key)["ContentLength"]


def exists(key: str) -> bool:
    """Whether there is such an object. Raises Away."""
    try:
        size(key)
    except Missing:
        return False
    return True


def listed(prefix: str) -> Iterator[dict[str, Any]]:
    """The objects under a prefix: {"Key", "Size", "LastModified", …}. Raises Away."""
    with asking(prefix):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket(), Prefix=prefix):
            yield from page.get("Contents", [])


def delete(key: str) -> None:
    """Deletes one object; one that is not there is fine. Raises Away."""
    with asking(key):
        client().delete_object(Bucket=bucket(), Key=key)


def delete_prefix(prefix: str) -> None:
    """Deletes everything under a folder. `prefix` ends with a slash. Raises Away."""
    if not prefix.endswith("/") or prefix.count("/") < 2:
        raise ValueError(f"{prefix!r} is not a folder that may be deleted as a whole")
    keys = [{"Key": entry["Key"]} for entry in listed(prefix)]
    with asking(prefix):
        for first in range(0, len(keys), 1000):
            batch = {"Objects": keys[first : first + 1000], "Quiet": True}
            client().delete_objects(Bucket=bucket(), Delete=batch)


def put_folder(prefix: str, folder: Path) -> list[dict[str, Any]]:
    """Stores every file of a folder and returns the manifest, by name. Raises Away.

    Links are left out: a folder that a trainer wrote must not reach beyond itself.
    """
    manifest = manifest_of(folder)
    in_parallel(lambda entry: put(prefix + entry["name"], folder / entry["name"]), manifest)
    return manifest


def manifest_of(folder: Path) -> list[dict[str, Any]]:
    """{name, bytes, sha256} of every plain file in a folder, by name."""

    def described(path: Path) -> dict[str, Any]:
        name = path.relative_to(folder).as_posix()
        return {"name": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}

    return in_parallel(described, sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()))


def get_folder(prefix: str, manifest: list[dict[str, Any]], folder: Path) -> None:
    """Brings the manifest's files and compares each with its sha256. Raises Corrupt, Away."""

    def fetch(entry: dict[str, Any]) -> None:
        path = folder / entry["name"]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Corrupt(f"{prefix}: the manifest names {entry['name']!r}, outside its folder")
        if get(prefix + entry["name"], path) != entry["sha256"]:
            path.unlink()
            raise Corrupt(f"{prefix}{entry['name']} is not what was stored: its SHA-256 differs")

    folder.mkdir(parents=True, exist_ok=True)
    in_parallel(fetch, manifest)


def presign(key: str, filename: str, seconds: float) -> str:
    """A link of the store itself, as browsers reach it, good for `seconds`, for this object alone."""
    wanted = {"Bucket": bucket(), "Key": key, "ResponseContentDisposition": disposition(filename)}
    there = settings().s3_public_url or settings().s3_endpoint
    return connected(there).generate_presigned_url(
        "get_object", Params=wanted, ExpiresIn=max(1, int(seconds))
    )


def disposition(filename: str) -> str:
    """The Content-Disposition that saves under that name, whatever its letters."""
    clean = "".join(c for c in filename if c.isprintable() and c not in '/\\"') or "download"
    plain = clean.encode("ascii", "ignore").decode() or "download"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(clean, safe='')}"


def ensure_bucket() -> None:
    """Makes the bucket where it is missing. Raises Away."""
    with asking(bucket()):
        names = [b["Name"] for b in client().list_buckets().get("Buckets", [])]
        if bucket() not in names:
            client().create_bucket(Bucket=bucket())


def self_test() -> None:
    """Writes, reads back and compares objects of 0 B, 1 B and several parts. Raises Corrupt, Away."""
    for length in (0, 1, PART + 1):
        key, data = f"self-test/{os.getpid()}/{length}", os.urandom(length)
        put_stream(key, io.BytesIO(data), length)
        if read(key) != data:
            raise Corrupt(f"The store gave back other bytes than the {length} just written.")
        delete(key)


def bucket() -> str:
    """The one bucket: many buckets would each pre-grow volumes."""
    return settings().s3_bucket


@contextmanager
def hurried() -> Generator[None]:
    """What is asked inside is asked once and has to begin to come at once: somebody waits for a page."""
    before = hurry.set(True)
    try:
        yield
    finally:
        hurry.reset(before)


def soon(action: Callable[[], T], seconds: float = SOON) -> T:
    """The action's value, for a page. Raises what it raises, and Away where the store lets it wait for longer."""

    def hastily() -> T:
        with hurried():
            return action()

    with hurried():
        client()  # the first takes a moment, which is not the store's
    try:
        return done_within(seconds, hastily)
    except TimeoutError:
        raise Away(f"The store did not answer within {seconds:g} s.") from None


def let_go(action: Callable[[], object]) -> None:
    """Deletes what no row names any more. With a store that is away it goes on behind the caller's back, and what
    it does not reach stays.
    """

    def delete_it() -> None:
        try:
            action()
        except Away as away:
            log.warning("Something that was deleted stays in the store: %s", away)

    with suppress(TimeoutError):
        done_within(SOON, delete_it)


def client() -> Any:
    """This process's client; threads may share it."""
    return connected(settings().s3_endpoint, HURRIED if hurry.get() else CONFIG)


@lru_cache(maxsize=8)
def connected(endpoint: str, config: Config = CONFIG) -> Any:
    """A client for an address of the store."""
    known = settings()
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=known.aws_access_key_id,
        aws_secret_access_key=known.aws_secret_access_key,
        config=config,
    )


# a forked child must not use its parent's connections
os.register_at_fork(after_in_child=connected.cache_clear)


@contextmanager
def asking(key: str) -> Generator[None]:
    """Turns what boto3 raises into Missing and Away. That the whole bucket is gone says nothing of an object."""
    try:
        yield
    except ClientError as wrong:
        no_bucket = wrong.response["Error"]["Code"] == "NoSuchBucket"
        if wrong.response["ResponseMetadata"]["HTTPStatusCode"] == 404 and not no_bucket:
            raise Missing(f"The store has no «{key}».") from wrong
        raise Away(f"The store refused «{key}»: {wrong}") from wrong
    except (BotoCoreError, Boto3Error) as wrong:
        raise Away(f"The store does not answer for «{key}»: {wrong}") from wrong


def filled(stream: Readable, length: int) -> bytes:
    """`length` bytes, or what is left: a network stream gives fewer at a time."""
    pieces: list[bytes] = []
    wanted = length
    while wanted and (piece := stream.read(wanted)):
        pieces.append(piece)
        wanted -= len(piece)
    return b"".join(pieces)


def within(size: int, limit: int) -> None:
    """Raises Refused where `size` is over the limit."""
    if size > limit:
        raise Refused(
            f"The file is larger than {readable_size(limit)}, the most that one upload may have."
            " Split it into several files, or ask the operator to raise MAX_UPLOAD_BYTES.",
            param="file",
            code="file_too_large",
            status=413,
        )


def readable_size(count: float) -> str:
    """2 GiB, 1.5 MiB, 12 bytes."""
    units = ["bytes", "KiB", "MiB", "GiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.1f}".removesuffix(".0") + f" {units[0]}"


def arrived(key: str, length: int) -> None:
    """Raises Away unless the stored object has that many bytes."""
    try:
        there = size(key)
    except Missing as gone:
        raise Away(f"The store does not keep «{key}».") from gone
    if there != length:
        raise Away(f"The store kept {there} of {length} bytes of «{key}».")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_parallel(what: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """Does it to four things at a time; the results in order; the first error ends it."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(what, things))
