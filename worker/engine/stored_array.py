"""Arrays in a safetensors file that are larger than memory likes: written piece by piece, read row by row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 8 * 1024**2  # bytes that are copied at once
NAMES = {
    "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "int64": "I64",
    "float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL",
}  # fmt: skip


class StoredArray:
    """[rows, …] from `offset` on in a file; a row is read from there when it is asked for."""

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...], offset: int) -> None:
        self.dtype, self.shape, self.offset = np.dtype(dtype), shape, offset
        self.size = self.dtype.itemsize * int(np.prod(shape[1:]))  # bytes of a row
        self.file = path.open("rb")  # stays readable when another attempt tidies the folder

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.size * self.shape[0]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        read = os.pread(self.file.fileno(), self.size, self.offset + row * self.size)
        return np.frombuffer(bytearray(read), self.dtype).reshape(self.shape[1:])

    def pieces(self) -> Iterator[bytes]:
        """All bytes, some at a time."""
        for start in range(0, self.nbytes, PIECE):
            yield os.pread(self.file.fileno(), min(PIECE, self.nbytes - start), self.offset + start)


def save(path: Path, arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    """A safetensors file of numpy's arrays and of stored ones (https://github.com/huggingface/safetensors#format)."""
    names = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)  # each begins where its type may
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        one = arrays[name]
        header[name] = {
            "dtype": NAMES[one.dtype.name],
            "shape": list(one.shape),
            "data_offsets": [end, end + one.nbytes],
        }
        end += one.nbytes
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    with path.open("wb") as file:
        file.write(len(told).to_bytes(8, "little") + told)
        for name in names:
            one = arrays[name]
            file.writelines(
                one.pieces() if isinstance(one, StoredArray) else [np.ascontiguousarray(one).tobytes()]
            )


def find(path: Path, name: str) -> StoredArray:
    """An array of a safetensors file, left where it is."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        told = json.loads(file.read(length))[name]
    dtype = next(mine for mine, theirs in NAMES.items() if theirs == told["dtype"])
    return StoredArray(path, dtype, tuple(told["shape"]), 8 + length + told["data_offsets"][0])
