"""Label cells: words, numbers, yes and no as text, in an order that people expect."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import isnan
from typing import Any

from shared.errors import Refused


def label(value: Any) -> str | list[str] | None:
    """A label cell as text, a list cell as a list of texts. Raises Refused for an object or lists in a list."""
    if nested(value):
        raise Refused(
            "A label must be a word, a number or a list of them, not an object or a list of lists.",
            param="label",
        )
    if isinstance(value, list):
        return [name for name in (label(one) for one in value) if isinstance(name, str) and name]
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def nested(value: Any) -> bool:
    """Whether a cell is an object or holds objects or lists; beside words, the importer writes these as JSON."""
    if isinstance(value, str) and value.startswith(("{", "[{", "[[")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    inner = value if isinstance(value, list) else []
    return isinstance(value, dict) or any(isinstance(one, list | dict) for one in inner)


def in_order(names: Iterable[str]) -> list[str]:
    """Labels sorted: by value where all are whole numbers, else by letters."""
    names = list(names)
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=int) if numeric else sorted(names)
