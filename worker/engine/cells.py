"""Pictures and sounds in the cells of a user's Parquet file: plain bytes, or `{bytes, path}` as datasets of
Hugging Face have them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from shared.errors import Unreadable
from worker.engine.media import Pictures, Reader, Sounds

PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8")
BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)


def may_hold_files(of: pa.DataType) -> bool:
    """Whether cells of that type may be files: bytes, or a struct of `bytes` and perhaps `path`."""
    if isinstance(of, pa.BaseExtensionType):
        return may_hold_files(of.storage_type)
    if not pa.types.is_struct(of):
        return any(test(of) for test in BYTES)
    fields = {field.name: field.type for field in of}
    return (
        "bytes" in fields
        and fields.keys() <= {"bytes", "path"}
        and any(test(fields["bytes"]) for test in BYTES)
    )


def reader_of(cell: Any) -> Reader | None:
    """What reads a column of such cells, by what this one begins with; None: nothing does."""
    head = (bytes_of(cell) or b"")[:16]
    if head.startswith(PICTURES) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return Pictures()
    return Sounds() if (head[:4], head[8:12]) == (b"RIFF", b"WAVE") else None


def bytes_of(cell: Any) -> bytes | None:
    """The file in a cell; None where there is none."""
    return cell.get("bytes") if isinstance(cell, dict) else cell


def content(cell: Any) -> bytes:
    """The file in a cell. Raises Unreadable where there is none."""
    if data := bytes_of(cell):
        return data
    named = isinstance(cell, dict) and data is None and cell.get("path")
    raise Unreadable("names a file whose bytes are not in the Parquet file" if named else "is empty")


def read(
    row: dict[str, Any], number: int, readers: dict[str, Reader], say: Callable[[str, str], None]
) -> bool:
    """Puts the plain form of its files into a row; False: one cannot be read, which `say(column, why)` tells."""
    for name, reader in readers.items():
        try:
            row[name] = reader.read(content(row[name]), f"row {number}")
        except Unreadable as wrong:
            say(name, str(wrong))
            return False
    return True
