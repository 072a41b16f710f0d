"""Sections of a page in docs/bench, each written by the benchmark that measured it."""

import os
import re
from pathlib import Path
from typing import TypeVar

BENCH = Path(__file__).parents[2] / "docs" / "bench"
QUICK = os.environ.get("BENCH_QUICK") == "1"  # small and unwritten: whether it still runs, not how fast
T = TypeVar("T")


def sized(whole: T, quick: T) -> T:
    """How much is measured."""
    return quick if QUICK else whole


def write(page: str, title: str, text: str) -> None:
    """Puts the section under that title in place of the one that was there, or at the end; prints it."""
    path = BENCH / page
    told = path.read_text() if path.exists() else ""
    section = f"## {title}\n\n{text.strip()}\n"
    print(section)
    if QUICK:
        return
    known = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if known.search(told):
        told = known.sub(lambda _: section + "\n", told)
    else:
        told = f"{told.rstrip()}\n\n{section}"
    path.write_text(told.rstrip() + "\n")


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
