"""What a trainer takes of the machine at most, by the limits that every Linux has.

    a file     as large as the disk that the attempt lies on
    memory     as much as there is (of a container: as it may have); not on a GPU, whose driver reserves far more
               than it uses
    threads    THREADS and PER_CPU for each core, in each process; the kernel counts a user's, so that what the user
               runs besides is added, and it does not count root's

New processes are refused by worker/seccomp.py. When memory runs out all the same, the kernel ends a trainer first.
"""

from __future__ import annotations

import os
import resource
import shutil
from contextlib import suppress
from pathlib import Path

THREADS, PER_CPU = 256, 16
MOST = 1 << 20  # threads that are looked for
OF_A_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def limit(folder: Path, *, on_a_gpu: bool, processes: int) -> None:
    """The limits, for this process and what it starts. It must have one thread."""
    bound(resource.RLIMIT_CORE, 0)
    bound(resource.RLIMIT_FSIZE, shutil.disk_usage(folder).total)
    if not on_a_gpu:
        bound(resource.RLIMIT_DATA, memory())
    bound(resource.RLIMIT_NPROC, running() + processes * (THREADS + PER_CPU * (os.cpu_count() or 1)))


def bound(kind: int, most: int) -> None:
    """At most that, where not less is allowed already."""
    hard = resource.getrlimit(kind)[1]
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


def memory() -> int:
    """Bytes that this machine or container has, swap among them."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    there = sum(int(facts[name].split()[0]) << 10 for name in ("MemTotal", "SwapTotal"))
    with suppress(OSError, ValueError):
        there = min(there, int(OF_A_CONTAINER.read_text()))
    return there


def running() -> int:
    """About how many threads the kernel counts for this user: the first power of two that lets one more begin.

    They are not all to be seen: other containers may run as the same user.
    """
    before, count = resource.getrlimit(resource.RLIMIT_NPROC), 16
    top = MOST if before[1] == resource.RLIM_INFINITY else min(MOST, before[1])
    try:
        while count < top:
            resource.setrlimit(resource.RLIMIT_NPROC, (count, before[1]))
            if one_begins():
                break
            count *= 2
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)
    return count


def one_begins() -> bool:
    """Whether a process can be started."""
    try:
        pid = os.fork()
    except BlockingIOError:
        return False
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True
