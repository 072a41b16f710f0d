"""A guard: what is removed, and the tests that must notice. `python -m tests.mutants` tries them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """What is removed: `old` stands exactly once in `file`, `new` takes its place; `tests` must turn red."""

    name: str
    protects: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
