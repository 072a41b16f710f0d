"""The published tables: docs/reliability.md is written by `make chaos` and `make mutants`, each its part.

A run of some rows renews those rows; a soak adds a line. Nothing else of the page is touched.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.elsewhere import ELSEWHERE
from tests.chaos.invariants import Figures
from tests.chaos.soak import Soaked

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MATRIX, NOT_RUN, SOAKS, GUARDS = "The fault matrix", "Rows that are not run", "Soaks", "Guards"
MATRIX_HEAD = (
    "row", "what goes wrong", "what must follow", "seen", "jobs", "lost", "doubled", "overlap, s",
    "steps repeated", "longest recovery, s",
)  # fmt: skip
SOAK_HEAD = (
    "seed", "minutes", "faults injected", "jobs", "invariants", "lost", "doubled", "overlap, s", "steps repeated",
    "recovery p50, s", "recovery p95, s", "which faults",
)  # fmt: skip
KEPT_SOAKS = 12


def matrix(results: Sequence[tuple[str, str, str, str, Figures | None]]) -> None:
    """Renews these rows: row, fault, expected, outcome, figures."""
    rows = {line[:2]: line for line in cells(MATRIX)}
    for row, fault, expected, seen, found in results:
        rows[row, fault] = (row, fault, expected, seen, *of_figures(found))
    write(MATRIX, table(MATRIX_HEAD, sorted(rows.values(), key=lambda line: (int(line[0][1:]), line[1]))))
    write(NOT_RUN, table(("row", "because"), list(ELSEWHERE.items())))


def soak(soaked: Soaked) -> None:
    """Adds a line."""
    write(SOAKS, table(SOAK_HEAD, [of_soak(soaked), *cells(SOAKS)][:KEPT_SOAKS]))


def guards(tried: Sequence[tuple[str, str, str]], names: Sequence[str]) -> None:
    """Renews these rows (name, what it is for, the tests that notice its removal); `names` are all guards, in order."""
    rows = {line[0]: line for line in (*cells(GUARDS), *tried)}
    known = [rows[name] for name in names if name in rows]
    write(GUARDS, table(("guard", "what it is for", "without it, these turn red"), known))


def of_figures(found: Figures | None) -> tuple[str, ...]:
    """The cells of one scenario."""
    if found is None:
        return ("–",) * 6
    longest = f"{max(found.recoveries):.1f}" if found.recoveries else "–"
    return (
        str(found.jobs), str(found.lost), str(found.doubled), f"{found.overlap:.1f}", str(found.repeated), longest,
    )  # fmt: skip


def of_soak(soaked: Soaked) -> tuple[str, ...]:
    """The cells of one soak."""
    found = soaked.figures
    kinds = ", ".join(f"{count} × {name}" for name, count in soaked.faults.most_common())
    return (
        str(soaked.seed), f"{soaked.minutes:g}", str(found.faults), str(found.jobs),
        "**broken**" if soaked.problems else "held", str(found.lost), str(found.doubled), f"{found.overlap:.1f}", str(found.repeated), *quantiles(found.recoveries), kinds,
    )  # fmt: skip


def quantiles(values: list[float]) -> tuple[str, str]:
    """The median and the 95th percentile, in words."""
    if len(values) < 2:
        only = f"{values[0]:.1f}" if values else "–"
        return only, only
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return f"{statistics.median(values):.1f}", f"{cuts[-1]:.1f}"


# --- the page -----------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(heading: str) -> tuple[str, str, str]:
    """What stands before the section's body, the body, what stands after it."""
    page = PAGE.read_text()
    start = page.index(f"## {heading}\n") + len(f"## {heading}\n")
    end = page.find("\n## ", start)
    return page[:start], page[start : end if end >= 0 else None], page[end:] if end >= 0 else ""


def cells(heading: str) -> list[tuple[str, ...]]:
    """The rows of the table under that heading."""
    lines = [line for line in section(heading)[1].splitlines() if line.startswith("| ")][2:]
    return [tuple(cell.strip() for cell in line.strip("| \n").split(" | ")) for line in lines]


def write(heading: str, body: str) -> None:
    """Replaces the table under that heading; words before it stay."""
    before, old, after = section(heading)
    words = "\n".join(line for line in old.splitlines() if not line.startswith("|")).strip()
    PAGE.write_text(f"{before}\n{words}\n\n{body}\n{after}".replace("\n\n\n", "\n\n"))
