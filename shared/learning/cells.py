"""Cells of a dataset as text."""

from math import isnan
from typing import Any

from shared.errors import Refused


def words(value: Any, name: str) -> str:
    """A cell as text: numbers are written out, an empty cell is empty text. Raises Refused for anything else."""
    if value is None or (isinstance(value, float) and isnan(value)):
        return ""
    if not isinstance(value, str | int | float):
        raise Refused(f"«{name}» must be text.", param=name)
    return str(value)


def text(value: Any, name: str) -> str:
    """A cell that is text; an empty cell is empty text. Raises Refused for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(f"The {name} must be text, not {kind(value)}.", param=name, code="wrong_type")
    return value


def kind(value: Any) -> str:
    """What a value is, for a sentence."""
    known = {bool: "yes or no", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return known.get(type(value), "something else")
