"""A stranger's picture → plain 8-bit PNG, grey or RGB, no side over 1024 pixels, nothing but pixels in it.

Runs in the importer's sandbox alone: decoders are where hostile files strike.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import Unreadable
from shared.formats import quoted

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
BYTES = 64 * 1024**2  # of one file
PIXELS = 64 * 1024**2  # before it is scaled down
LONGEST = 1024
PREVIEW = 128
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
Image.MAX_IMAGE_PIXELS = PIXELS


def mode_of(data: bytes) -> str:
    """«L» for a grey picture, «RGB» for a coloured one, by its header. Raises Unreadable."""
    with opened(data) as image:
        return "L" if image.mode in GREY else "RGB"


def canonical(data: bytes, mode: str) -> tuple[bytes, bool]:
    """(the picture as PNG of that mode, whether it was scaled down). Raises Unreadable with the reason.

    The first frame, upright as its camera says, on white where it is transparent.
    """
    with opened(data) as image:
        small = max(image.size) > LONGEST
        if small:
            image.draft(None, (LONGEST, LONGEST))  # JPEG: decodes no more than it needs
        plain = ImageOps.exif_transpose(image)
        if plain.has_transparency_data:
            layers = plain.convert("RGBA")
            plain = Image.new("RGBA", layers.size, "white")
            plain.alpha_composite(layers)
        if plain.mode.startswith("I"):  # 16 bits a pixel
            plain = plain.convert("I").point(lambda value: value / 256).convert("L")
        if small:
            plain.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        clean = Image.new(mode, plain.size)  # without the profile, comments and place of the original
        clean.paste(plain.convert(mode))
        return encoded(clean), small


@contextmanager
def opened(data: bytes) -> Generator[Any]:
    """The picture, not decoded yet. Raises Unreadable for whatever its decoder says, also within."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                yield image
    except (MemoryError, Unreadable):
        raise
    except UnidentifiedImageError:
        raise Unreadable("is no PNG, JPEG, WebP, BMP or GIF picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"has more than {PIXELS:,} pixels") from None
    except Exception as wrong:  # noqa: BLE001 - decoders raise anything over hostile bytes
        raise Unreadable(f"is a broken picture ({quoted(str(wrong))})") from None


def encoded(image: Any) -> bytes:
    """As PNG."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def size(png: bytes) -> tuple[int, int]:
    """Width and height of one of our own PNGs."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def preview(png: bytes) -> bytes:
    """One of our own PNGs, no side over 128 pixels."""
    if max(size(png)) <= PREVIEW:
        return png
    with Image.open(BytesIO(png)) as image:
        image.thumbnail((PREVIEW, PREVIEW))
        return encoded(image)
