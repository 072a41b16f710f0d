"""Which processes run, as /proc tells, and a sampler that notes which trainers live at which moment."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from pathlib import Path

SAMPLE_SECONDS = 0.1
LOOK_SECONDS = 1.0  # between two looks for new zygotes


def stat(pid: int) -> list[str]:
    """State, parent, group … of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def everybody() -> dict[int, list[str]]:
    """What `stat` says of every process."""
    found = {int(name): stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - sampled often
    return {pid: told for pid, told in found.items() if told}


def descendants(top: int) -> set[int]:
    """Every process below that one, wherever its session."""
    parents = {pid: int(told[1]) for pid, told in everybody().items()}
    found: set[int] = set()
    fresh = {top}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def living(pids: set[int]) -> set[int]:
    """Those that still run (a zombie that waits for its reaper does not)."""
    return {pid for pid in pids if (told := stat(pid)) and told[0] not in "ZX"}


def command(pid: int) -> str:
    """Its command line; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def children(pid: int) -> set[int]:
    """The processes that any of its threads has started."""
    found: set[int] = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def zygote_of(worker: int) -> int:
    """The zygote of that worker process."""
    below = [pid for pid in living(children(worker)) if "worker.zygote" in command(pid)]
    if len(below) != 1:
        raise AssertionError(f"The worker {worker} has {len(below)} zygotes.")
    return below[0]


def trainers_of(worker: int) -> set[int]:
    """The trainers of that worker process: what its zygote has forked."""
    return living({trainer for zygote in children(worker) for trainer in children(zygote)})


def lease_of(pid: int) -> str | None:
    """The lease that a trainer works under: it keeps a file of its attempt's folder open."""
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                parts = link.readlink().parts
                if "attempts" in parts[:-1] and parts[-1] == "events.jsonl":
                    return parts[parts.index("attempts") + 1]
    return None


class Sampler:
    """Looks at every trainer ten times a second: which leases have a living one, and how long two at once.

    A trainer that was seen once is followed until it is gone, whoever its parent is by then.
    """

    def __init__(self, workers: Callable[[], set[int]]) -> None:
        self.workers = workers
        self.known: dict[int, str] = {}  # living trainers by pid, with their lease
        self.together: dict[frozenset[str], float] = defaultdict(float)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="sampler", daemon=True)
        self.thread.start()

    def run(self) -> None:
        before, looked, zygotes = time.monotonic(), 0.0, set()
        while not self.over.wait(SAMPLE_SECONDS):
            moment = time.monotonic()
            if moment - looked > LOOK_SECONDS:
                zygotes = {zygote for worker in self.workers() for zygote in children(worker)}
                looked = moment
            for pid in {trainer for zygote in zygotes for trainer in children(zygote)} - set(self.known):
                if lease := lease_of(pid):
                    self.known[pid] = lease
            alive = living(set(self.known))
            self.known = {pid: lease for pid, lease in self.known.items() if pid in alive}
            for one, other in combinations(sorted(set(self.known.values())), 2):
                self.together[frozenset((one, other))] += moment - before
            before = moment

    def close(self) -> None:
        self.over.set()
        self.thread.join(5)
