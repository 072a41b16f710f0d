"""Label cells: words, numbers, yes and no as text, in an order that people expect."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import isnan
from typing import Any

from shared.errors import Refused


def label(value: Any) -> str | list[str] | None:
    """A label cell as text, a list cell as a list of texts; a list may be written as JSON, as CSV files do.
    Raises Refused for an object or lists in a list.
    """
    value = structured(value)
    inner = value if isinstance(value, list) else [value]
    if any(isinstance(one, dict | list) for one in inner):
        raise Refused(
            "A label must be a word, a number or a list of them, not an object or a list of lists.",
            param="label",
        )
    if isinstance(value, list):
        return [name for name in map(word, inner) if name]
    return word(value)


def structured(value: Any) -> Any:
    """The list or object that a text is the JSON of; any other cell as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def word(value: Any) -> str | None:
    """A single label as text."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def in_order(names: Iterable[str]) -> list[str]:
    """Labels sorted: by value where all are whole numbers, else by letters."""
    names = list(names)
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=int) if numeric else sorted(names)
