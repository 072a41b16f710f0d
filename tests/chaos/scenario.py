"""The fault matrix: what goes wrong, what is expected, and how long it may take. One table of scenarios.

A scenario is a function of a `World`, registered by the number of its row. The rows that one machine
without a GPU cannot run, or that another test covers better, stand in `tests.chaos.elsewhere`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from tests.chaos.world import World

GROUPS = (
    "kills",
    "drains",
    "brokers",
    "databases",
    "backups",
    "stores",
    "messages",
    "clocks",
    "trainers",
    "people",
)


@dataclass(frozen=True)
class Scenario:
    """A row of the matrix, or a part of one."""

    row: str  # F1 … F44
    fault: str
    expected: str
    run: Callable[[World], None]
    short: bool = False  # part of the default test run

    @property
    def name(self) -> str:
        """As tests and tables name it."""
        return f"{self.row}: {self.fault}"


SCENARIOS: list[Scenario] = []


def scenario(
    row: str, fault: str, expected: str, *, short: bool = False
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Enters a function into the matrix."""

    def enter(run: Callable[[World], None]) -> Callable[[World], None]:
        SCENARIOS.append(Scenario(row, fault, expected, run, short))
        return run

    return enter


def matrix() -> list[Scenario]:
    """Every scenario, by row."""
    for group in GROUPS:
        import_module(f"tests.chaos.{group}")
    return sorted(SCENARIOS, key=lambda s: int(s.row[1:]))
