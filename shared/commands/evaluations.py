"""Evaluations as the command line asks for them and tells of them."""

from pathlib import Path
from typing import Any

from shared import progress
from shared.client import Api, fetch
from shared.errors import Refused

EVALUATIONS = "/evaluations"
PREFIX = "evaluate-"  # of the ids of evaluations


def pair(text: str) -> tuple[str, str]:
    """MINE=THEIRS as a pair. Raises Refused."""
    mine, found, theirs = text.partition("=")
    if not (mine and found and theirs):
        raise Refused(f"«{text}» names no two columns: write the recipe's, =, and the dataset's.")
    return mine, theirs


def tell(told: dict[str, Any]) -> None:
    """The metrics of an evaluation that has succeeded, with their intervals."""
    print(f"succeeded: {told['model']} on {told['rows']} rows")
    for name, value in told["metrics"].items():
        low, high = told["intervals"].get(name, (None, None))
        print(f"  {name:<16} {progress.score(value):>10}  {progress.score(low)} to {progress.score(high)}")


def download(api: Api, evaluation_id: str, to: str | None) -> None:
    """The results of every row and the report, into a folder. Raises Refused where there are none yet."""
    told = api.get(f"{EVALUATIONS}/{evaluation_id}")
    if not told["result_files"]:
        raise Refused(f"{evaluation_id} is {told['status']} and has no results to download.")
    line, folder = progress.Line(), Path(to or evaluation_id)
    got = fetch(
        lambda: [api.entry(file) for file in told["result_files"]],
        folder,
        lambda *moved: line.show(*progress.of_bytes(*moved)),
    )
    line.end()
    print(f"{len(got)} files of {evaluation_id} in")
    print(folder)
