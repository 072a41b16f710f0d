"""A text file → its lines as Arrow columns, a few megabytes at a time and without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from shared.formats import BOM, LINE, MIB, BadRow, decoded

PIECE = 8 * MIB  # bytes that are read at once


def columns(file: BinaryIO) -> Iterator[tuple[pa.Array, pa.Array]]:
    """(line numbers from 1, lines with their ends) of a UTF-8 text from where the file stands. Raises BadRow where a
    line is too long or no UTF-8.
    """
    number = 0
    for piece in whole_lines(file):
        data = piece.removeprefix(BOM) if not number else piece
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
        if not len(ends) or ends[-1] < len(data):
            ends = np.append(ends, len(data))
        starts = np.concatenate([[0], ends]).astype(np.int32)
        check_lengths(data, starts, number)
        texts = pa.StringArray.from_buffers(len(ends), pa.py_buffer(starts.tobytes()), pa.py_buffer(data))
        check_letters(texts, data, starts, number)
        yield pa.array(np.arange(number + 1, number + 1 + len(ends))), texts
        number += len(ends)


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces that end with a line; only the last one may not. A line that is far too long is a piece."""
    held = b""
    while read := file.read(PIECE):
        held += read
        end = held.rfind(b"\n") + 1
        if end or len(held) > LINE + PIECE:
            yield held[: end or len(held)]
            held = held[end:] if end else b""
    if held:
        yield held


def check_lengths(data: bytes, starts: np.ndarray, before: int) -> None:
    """Raises BadRow for the first line that is too long; a line end beyond that length does not count."""
    lengths = np.diff(starts)
    for place in np.flatnonzero(lengths > LINE):
        line = data[starts[place] : starts[place + 1]]
        if len(line) > LINE + 2 or not line.endswith(b"\n"):
            row = before + int(place) + 1
            raise BadRow(row, f"Line {row} is longer than {LINE // MIB} MB. Split it, or leave that row out.")


def check_letters(texts: pa.Array, data: bytes, starts: np.ndarray, before: int) -> None:
    """Raises BadRow for the first line that is no UTF-8, with its place."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        for place in range(len(texts)):
            decoded(before + place + 1, data[starts[place] : starts[place + 1]])
        raise
