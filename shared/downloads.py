"""Download links: absolute, signed by the app, good without a token for DOWNLOAD_MINUTES.

A link names one object, or several that come as one zip. Whoever makes a link has checked that the
team may read them; whoever opens one needs nothing else.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import RawIOBase
from posixpath import commonpath
from typing import Any

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from shared import storage
from shared.errors import Refused
from shared.settings import settings


@dataclass(frozen=True)
class Download:
    """What a link opens: the object `key`, or, where that is empty, `entries` (name, key) as a zip."""

    key: str
    filename: str
    team_id: str
    entries: tuple[tuple[str, str], ...] = ()


def link(key: str, filename: str, team_id: str) -> str:
    """An absolute link to one object, saved as `filename`."""
    return signed([key, filename, team_id])


def zip_link(entries: Sequence[tuple[str, str]], filename: str, team_id: str = "") -> str:
    """An absolute link to several objects (name in the zip, key) as one zip, saved as `filename`."""
    # what the keys share is written once: a request line has room for about 4,000 characters
    shared = commonpath([key for _, key in entries])
    rest = [[name, key.removeprefix(shared)] for name, key in entries]
    return signed(["", filename, team_id, shared, rest])


def opened(token: str) -> Download:
    """What a link's last part opens. Raises Refused: 410 when late, 404 when not ours."""
    try:
        what = signer().loads(token, max_age=int(settings().download_minutes * 60))
    except SignatureExpired:
        raise Refused(
            "This download link has expired. Open the page again, or ask the API again, for a fresh one.",
            code="link_expired",
            status=410,
        ) from None
    except BadSignature:
        raise Refused("This is not a download link of this server.", code="not_found", status=404) from None
    key, filename, team_id, *more = what
    if not more:
        return Download(key, filename, team_id)
    shared, rest = more
    return Download(key, filename, team_id, tuple((name, shared + end) for name, end in rest))


def zipped(entries: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """The objects as one zip, piece by piece, uncompressed: weights do not shrink.

    Raises storage.Missing and storage.Away, also while the bytes come.
    """
    sink = Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, key in entries:
            pieces, length = storage.stream(key)
            member = zipfile.ZipInfo(name)
            member.file_size = length
            with archive.open(member, "w", force_zip64=length >= zipfile.ZIP64_LIMIT) as file:
                for piece in pieces:
                    file.write(piece)
                    yield sink.taken()
            yield sink.taken()
    yield sink.taken()


class Sink(RawIOBase):
    """Where the zip is written: holds what nobody has taken yet. Not seekable, so never more."""

    def __init__(self) -> None:
        super().__init__()
        self.held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.held += data
        return len(data)

    def taken(self) -> bytes:
        """Everything written since the last time."""
        data = bytes(self.held)
        self.held.clear()
        return data


def signed(what: list) -> str:
    """The address under /download/ that carries `what`."""
    return f"{settings().public_url}/download/{signer().dumps(what)}"


def signer() -> URLSafeTimedSerializer:
    """Signs and opens, for this use of SECRET_KEY alone."""
    return URLSafeTimedSerializer(settings().secret_key, salt="burnish download")
