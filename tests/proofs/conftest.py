"""What the proofs found, as a page of docs/bench: written when every proof has run and passed."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.bench import sections

PAGE = "learning.md"
Found = Callable[[str], None]


@pytest.fixture
def found(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Found:
    """Call it with what the proof found, one sentence at a time."""
    first, *_ = (request.module.__doc__ or "").split("\n\n")
    record_property("proves", " ".join(first.split()))

    def tell(sentence: str) -> None:
        record_property("found", sentence)
        print(sentence)

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The page, unless a proof failed or was left out."""
    passed = [report for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
    proven = {Path(report.nodeid.split("::")[0]).name for report in passed}
    everything = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    if proven != everything or terminalreporter.stats.get("failed"):
        return
    rows = "\n".join(row(report) for report in passed)
    minutes = sum(report.duration for report in passed) / 60
    sections.write(
        PAGE,
        "What was learned, beside a baseline",
        f"| what is proven | what was found | minutes |\n|---|---|--:|\n{rows}\n\n{minutes:.0f} minutes in all on"
        f" {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}.",
    )


def row(report: pytest.TestReport) -> str:
    """The table's row of a proof."""
    (proves, *_), sentences = (
        [str(value) for key, value in report.user_properties if key == name] for name in ("proves", "found")
    )
    return f"| {proves} | {'; '.join(sentences)} | {report.duration / 60:.1f} |"
