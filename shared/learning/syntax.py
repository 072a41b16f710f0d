"""Whether a text is valid in the language that its file's name tells. Nothing of it is ever run."""

import ast
import json
import tomllib
import warnings
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

LONGEST = 200_000  # characters; a parser takes its time
PARSERS: dict[str, Callable[[str], Any]] = {
    ".py": ast.parse,
    ".pyi": ast.parse,
    ".json": json.loads,
    ".toml": tomllib.loads,
}
NAMES = "Python, JSON and TOML"


def known(path: str) -> bool:
    """Whether the syntax of such files can be checked."""
    return PurePosixPath(path).suffix.lower() in PARSERS


def valid(path: str, text: str) -> bool:
    """Whether the parser of the file's language takes the text. Text without sense or bottom is not valid."""
    parse = PARSERS[PurePosixPath(path).suffix.lower()]
    if len(text) > LONGEST:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
