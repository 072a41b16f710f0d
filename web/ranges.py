"""Stored bytes as an answer that can be resumed: Range, If-Range, ETag, a proper file name."""

from flask import Response, request
from werkzeug.http import generate_etag, parse_if_range_header

from shared import storage


def stored(
    key: str, *, size: int, filename: str, etag: str = "", media: str = "application/octet-stream"
) -> Response:
    """The object, or the part of it that was asked for. Raises storage.Missing and storage.Away."""
    etag = etag or generate_etag(key.encode())
    headers = {
        "ETag": f'"{etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": storage.disposition(filename),
        "Content-Type": media,
    }
    wanted = asked_part(size, etag)
    if wanted is None:
        body, length, status = storage.stream(key)[0], size, 200
    elif wanted == (0, 0):
        return Response("", 416, headers | {"Content-Range": f"bytes */{size}"})
    else:
        start, stop = wanted
        body, length, status = storage.stream(key, start, stop - 1)[0], stop - start, 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(
        b"" if request.method == "HEAD" else body, status, headers | {"Content-Length": str(length)}
    )


def asked_part(size: int, etag: str) -> tuple[int, int] | None:
    """(start, stop) of the one range that was asked for; None: all of it; (0, 0): past the end."""
    asked = request.range
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return None
    condition = parse_if_range_header(request.headers.get("If-Range"))
    if request.headers.get("If-Range") and condition.etag != etag:
        return None
    return asked.range_for_length(size) or (0, 0)
