"""Which tests share a process where several run them."""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
FOLDERS = ("tests/integration/runner",)  # whose files share a worker
ASKS = re.compile(r"[(,]\s*live\s*[:,)]")


class Together(LoadScopeScheduling):
    """A file's tests stay together, and those of a folder that share a worker. Those of all files that need the
    platform run in one process: it starts the only one, and stops it after the last of them.
    """

    def _split_scope(self, nodeid: str) -> str:
        if needs_the_platform(nodeid):
            return "live"
        file = file_of(nodeid)
        return next((folder for folder in FOLDERS if file.startswith(folder)), file)


def file_of(nodeid: str) -> str:
    """The test's file, from the root of the project."""
    return nodeid.split("::", maxsplit=1)[0]


def needs_the_platform(nodeid: str) -> bool:
    """Whether the tests of its file ask for the fixture `live`, as all with a browser do."""
    file = file_of(nodeid)
    return file.startswith("tests/browser/") or asks(file)


@cache
def asks(file: str) -> bool:
    """Whether a function in it has the fixture `live` among its arguments."""
    return bool(ASKS.search((ROOT / file).read_text()))
