"""Pictures as bytes and as arrays. A PNG's head is read and a PNG is written without any library, so that
recipes can show an example where none is installed.

The format: PNG specification, third edition (2025), https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

from shared.errors import Refused

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = 26  # bytes until the kind of colours is known
CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # by PNG's kind of colours; transparency is laid on white
LARGEST = 4096  # pixels of a side
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
)


def png(pixels: bytes, width: int, height: int, channels: int) -> bytes:
    """A PNG of 8-bit grey (1 channel) or RGB (3) values, row by row from the top."""
    line = width * channels
    lines = b"".join(b"\0" + pixels[start : start + line] for start in range(0, line * height, line))
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return SIGNATURE + body


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG: its length, kind, body and checksum."""
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def look(content: bytes) -> tuple[int, int, int]:
    """(width, height, channels) by the PNG's head alone. Raises Refused."""
    if not content.startswith(SIGNATURE) or content[12:16] != b"IHDR" or len(content) < HEAD:
        raise Refused("This is no PNG picture.")
    width, height, depth, colours = struct.unpack(">IIBB", content[16:HEAD])
    if colours not in CHANNELS or not width or not height:
        raise Refused("The picture is damaged.")
    if depth > 8:
        raise Refused(f"The picture has {depth} bits a channel: save it with 8.")
    if max(width, height) > LARGEST:
        raise Refused(f"The picture is {width} × {height} pixels; {LARGEST} a side are the most.")
    return width, height, CHANNELS[colours]


def read(content: bytes, channels: int, size: int | None = None) -> Any:
    """The picture as uint8 [height, width, channels]; scaled to a square of `size`, cut in the middle, where
    that is given. Raises Refused.
    """
    look(content)
    import numpy as np
    from PIL import Image, ImageOps

    try:
        picture: Any = Image.open(BytesIO(content), formats=["PNG"])
        picture.load()
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert({1: "L", 3: "RGB"}[channels])
        if size is not None and picture.size != (size, size):
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    except BROKEN:
        raise Refused("The picture is damaged.") from None
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def written(pixels: Any) -> bytes:
    """A PNG of uint8 [height, width, channels]."""
    height, width, channels = pixels.shape
    return png(pixels.tobytes(), width, height, channels)
