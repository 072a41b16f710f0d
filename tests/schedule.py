"""Which tests share a process where several run them."""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
ASKS = re.compile(r"[(,]\s*live\s*[:,)]")


class Together(LoadScopeScheduling):
    """A file's tests stay together. Those of all files that need the platform run in one process: it starts the only
    one, and no second one idles beside it.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", maxsplit=1)[0]
        return "live" if needs_the_platform(file) else file


@cache
def needs_the_platform(file: str) -> bool:
    """Whether its tests ask for the fixture `live`, as all with a browser do."""
    return file.startswith("tests/browser/") or bool(ASKS.search((ROOT / file).read_text()))
