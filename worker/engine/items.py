"""Many encoded items in flat arrays: small in memory, and one safetensors file on disk, where pictures and sounds
stay until they are asked for.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

from shared.recipe import Item
from worker.engine.memory import half_of
from worker.engine.stored_array import StoredArray, find, save

NUMBER, LIST, ARRAY, OTHER = "number", "list", "array", "other"


class Items:
    """A list of items. Each holds, beside what the recipe put in, `row`: the place of its row.

    `kinds` says how each name is kept: numbers in one array; lists of numbers end to end with their
    ends beside; arrays of one shape stacked; anything else as JSON.
    """

    def __init__(self, arrays: dict[str, Any], kinds: dict[str, str], others: dict[str, list]) -> None:
        self.arrays, self.kinds, self.others = arrays, kinds, others
        self.rows: list[int] = arrays["rows"].tolist()
        self.lengths: list[int] = arrays["lengths"].tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Item:
        item: Item = {"row": self.rows[place]}
        for name, kind in self.kinds.items():
            if kind == OTHER:
                item[name] = self.others[name][place]
                continue
            values = self.arrays[f"value.{name}"]
            if kind == LIST:
                ends = self.arrays[f"end.{name}"]
                item[name] = values[ends[place - 1] if place else 0 : ends[place]].tolist()
            else:
                item[name] = values[place] if kind == ARRAY else values[place].item()
        return item

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        half = half_of(path)
        save(half, self.arrays, {"kinds": json.dumps(self.kinds), "others": json.dumps(self.others)})
        half.rename(path)

    @classmethod
    def load(cls, path: Path) -> Items:
        """What `save` wrote; the file counts as used now."""
        os.utime(path)
        with safe_open(path, framework="np") as file:
            told = file.metadata()
            kinds = json.loads(told["kinds"])
            on_disk = {f"value.{name}" for name, kind in kinds.items() if kind == ARRAY}
            names = file.keys()
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in names if name not in on_disk}
        return cls(arrays | {name: find(path, name) for name in on_disk}, kinds, json.loads(told["others"]))


class Packer:
    """Makes `Items` of items that have the same names, one after the other. With a folder, arrays go to files
    there at once; `close` removes them.
    """

    def __init__(self, length: Callable[[Item], int], folder: Path | None = None) -> None:
        self.length, self.folder = length, folder
        self.rows, self.lengths = array("q"), array("q")
        self.kinds: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.ends: dict[str, array] = {}
        self.files: dict[str, BinaryIO] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, item: Item) -> None:
        """One more item, of the row at that place."""
        if not self.kinds:
            self.begin(item)
        self.rows.append(row)
        self.lengths.append(self.length(item))
        for name, kind in self.kinds.items():
            if kind == LIST:
                self.values[name] = extended(self.values[name], item[name])
                self.ends[name].append(len(self.values[name]))
            elif name in self.files:
                self.files[name].write(item[name].tobytes())
            else:
                self.values[name].append(item[name])

    def begin(self, first: Item) -> None:
        """How each name is kept, by the first item."""
        self.kinds = {name: kind_of(value) for name, value in first.items()}
        for number, (name, kind) in enumerate(self.kinds.items()):
            self.values[name], self.ends[name] = (array("q") if kind == LIST else []), array("q")
            if kind == ARRAY and self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                place = half_of(self.folder / f"values.{number}")
                self.files[name] = place.open("w+b")
                self.values[name] = (place, first[name].dtype, first[name].shape)

    def packed(self) -> Items:
        """All of them."""
        arrays: dict[str, Any] = {"rows": np.array(self.rows), "lengths": np.array(self.lengths)}
        others = {}
        for name, kind in self.kinds.items():
            values = self.values[name]
            if name in self.files:
                self.files[name].flush()
                place, dtype, shape = values
                arrays[f"value.{name}"] = StoredArray(place, dtype, (len(self), *shape), 0)
            elif kind == ARRAY:
                arrays[f"value.{name}"] = np.stack(values)
            elif kind == LIST:
                arrays[f"value.{name}"], arrays[f"end.{name}"] = compact(values), np.array(self.ends[name])
            elif kind == NUMBER:
                arrays[f"value.{name}"] = np.array(values)
            else:
                others[name] = values
        return Items(arrays, self.kinds, others)

    def close(self) -> None:
        """Takes the files away again."""
        for name, file in self.files.items():
            file.close()
            self.values[name][0].unlink(missing_ok=True)


def kind_of(value: Any) -> str:
    """How values like this one are kept."""
    if isinstance(value, np.ndarray):
        return ARRAY
    if isinstance(value, int | float):
        return NUMBER
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return LIST
    return OTHER


def extended(numbers: array, more: list[int | float]) -> array:
    """The numbers with more behind them; whole ones until the first that is not."""
    length = len(numbers)
    try:
        numbers.extend(more)
    except TypeError:
        numbers = array("d", [*numbers[:length], *more])
    return numbers


def compact(numbers: array) -> np.ndarray:
    """Whole numbers in 32 bits where they fit."""
    values = np.array(numbers)
    if values.dtype.kind == "i" and len(values) and max(values.max(), -values.min()) < 2**31:
        return values.astype(np.int32)
    return values
