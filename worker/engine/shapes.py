"""The type of a JSONL column, learned from every row; and how cells are put into it.

A column whose cells are alike keeps its type: text, numbers, truths, lists, objects. Cells that differ
become what holds them all: text beside numbers becomes text, a text beside lists of texts a list of
one, and objects that no struct can hold (free keys, mixed fields) JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa

EXACT = 2**53  # up to here a float holds every whole number
INT64 = 2**63
FIELDS = 64  # of a struct; an object with more kinds of keys is a free mapping
SCALARS = {"bool", "int", "long", "huge", "float", "str"}


class Shape:
    """What was seen in one place: kinds of values, the shape of list items, the shapes of fields."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.item: Shape | None = None
        self.fields: dict[str, Shape] = {}

    def observe(self, value: Any) -> None:
        """One more value in this place."""
        kind = kind_of(value)
        self.kinds.add(kind)
        if kind == "list":
            self.item = self.item or Shape()
            for inner in value:
                self.item.observe(inner)
        elif kind == "struct" and len(self.fields) <= FIELDS:
            for name, inner in value.items():
                self.fields.setdefault(name, Shape()).observe(inner)

    def arrow(self) -> pa.DataType | None:
        """The type that holds every value as it is; None where no single one does."""
        kinds = self.kinds - {"null"}
        if kinds == {"list"}:
            item = self.item.arrow() if self.item else pa.string()
            return pa.list_(item) if item else None
        if kinds == {"struct"}:
            return self.struct()
        return scalar_type(kinds)

    def struct(self) -> pa.DataType | None:
        """The struct of all fields, where there are few and each has a type."""
        if not 0 < len(self.fields) <= FIELDS:
            return None
        types = {name: field.arrow() for name, field in self.fields.items()}
        if not all(types.values()):
            return None
        return pa.struct(list(types.items()))


def kind_of(value: Any) -> str:
    """The kind of a JSON value; whole numbers by how wide a type they need."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= EXACT else "long" if -INT64 <= value < INT64 else "huge"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "str"
    return "list" if isinstance(value, list) else "struct"


def scalar_type(kinds: set[str]) -> pa.DataType | None:
    """The type of plain values; None where they are mixed."""
    if kinds <= {"str"}:
        return pa.string()  # a column of nulls too
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds <= {"int", "long"}:
        return pa.int64()
    if kinds <= {"int", "float"}:
        return pa.float64()
    return None


Cast = Callable[[Any], Any]


def column_type(shape: Shape) -> tuple[pa.DataType, Cast | None, str]:
    """(type, what to do to each cell first, a sentence for the user if cells were changed)."""
    if known := shape.arrow():
        return known, None, ""
    kinds = shape.kinds - {"null"}
    if kinds <= SCALARS:
        return pa.string(), as_text, "holds values of several kinds; all of them are kept as text."
    items = shape.item.kinds - {"null"} if shape.item else set()
    if kinds <= SCALARS | {"list"} and items <= SCALARS:
        return pa.list_(pa.string()), as_list, "holds lists and single values; each single one became a list."
    several = "holds values of several kinds; lists and objects among them are kept as JSON text."
    return pa.string(), as_json, several if kinds & SCALARS else ""


def as_text(value: Any) -> str | None:
    """A plain value as text."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def as_list(value: Any) -> list[str | None] | None:
    """A list of texts from a list or a single value."""
    if value is None:
        return None
    return [as_text(one) for one in (value if isinstance(value, list) else [value])]


def as_json(value: Any) -> str | None:
    """A nested value as JSON text; text stays as it is."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
