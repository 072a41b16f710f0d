"""Many encoded items in flat arrays: small in memory, and one safetensors file on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from shared.recipe import Item

NUMBER, LIST, ARRAY, OTHER = "number", "list", "array", "other"


class Items:
    """A list of items. Each holds, beside what the recipe put in, `row`: the place of its row.

    `kinds` says how each name is kept: numbers in one array; lists of numbers end to end with their
    ends beside; arrays of one shape stacked; anything else as JSON.
    """

    def __init__(self, arrays: dict[str, np.ndarray], kinds: dict[str, str], others: dict[str, list]) -> None:
        self.arrays, self.kinds, self.others = arrays, kinds, others
        self.rows: list[int] = arrays["rows"].tolist()
        self.lengths: list[int] = arrays["lengths"].tolist()

    @classmethod
    def pack(cls, items: list[Item], rows: list[int], length: Callable[[Item], int]) -> Items:
        """From a list of items that have the same names, and the place of each one's row."""
        arrays = {"rows": np.array(rows, np.int64), "lengths": np.array([length(i) for i in items], np.int64)}
        kinds, others = {}, {}
        for name, first in items[0].items():
            values = [item[name] for item in items]
            kinds[name] = kind = kind_of(first)
            if kind == NUMBER:
                arrays[f"value.{name}"] = np.array(values)
            elif kind == ARRAY:
                arrays[f"value.{name}"] = np.stack(values)
            elif kind == LIST:
                arrays[f"value.{name}"] = compact([number for value in values for number in value])
                arrays[f"end.{name}"] = np.cumsum([len(value) for value in values])
            else:
                others[name] = values
        return cls(arrays, kinds, others)

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
        half = path.with_name(f"{path.name}.{os.getpid()}")
        told = {"kinds": json.dumps(self.kinds), "others": json.dumps(self.others)}
        save_file(self.arrays, half, metadata=told)
        half.rename(path)

    @classmethod
    def load(cls, path: Path) -> Items:
        """What `save` wrote; the file counts as used now."""
        os.utime(path)
        with safe_open(path, framework="np") as file:
            told = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return cls(arrays, json.loads(told["kinds"]), json.loads(told["others"]))


def kind_of(value: Any) -> str:
    """How values like this one are kept."""
    if isinstance(value, np.ndarray):
        return ARRAY
    if isinstance(value, int | float):
        return NUMBER
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return LIST
    return OTHER


def compact(numbers: list[Any]) -> np.ndarray:
    """Whole numbers in 32 bits where they fit."""
    array = np.array(numbers)
    if array.dtype.kind == "i" and len(array) and abs(array).max() < 2**31:
        return array.astype(np.int32)
    return array
