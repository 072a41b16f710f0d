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
