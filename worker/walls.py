"""The walls around a trainer: it runs code paths over files that strangers made, so it gets no network,
no credentials, no way to outlive its supervisor and no way to gain rights.

Everything here is libc by ctypes and is called between fork and the first line of the attempt.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker import landlock, limits, seccomp

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
PR_CAPBSET_DROP, PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, CAPABILITIES_3 = 24, 47, 4, 0x20080522
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
OOM_SCORE = 800  # when memory runs out the kernel ends the trainer, not the database

# What a trainer may know of its surroundings; everything else stays with the supervisor.
KEPT = {"PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "HOME"}
KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_")
SET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
# Libraries that start threads when they are imported would keep the zygote from forking.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
# Threads that wait do so for some microseconds and then sleep: ones that always sleep wake up late (a tenth slower),
# ones that spin starve those that work where a machine is busy (7 times slower was measured). Freed memory stays with the trainer, in huge pages: a step's tensors need no fresh ones.
FAST = {
    "GOMP_SPINCOUNT": "2000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864",
}

libc = ctypes.CDLL(None, use_errno=True)


def environment(surroundings: dict[str, str]) -> dict[str, str]:
    """What of an environment a trainer gets: an allow-list, and switches that keep libraries offline."""
    kept = {
        name: value for name, value in surroundings.items() if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    return kept | SET | ONE_THREAD | FAST


def die_with(parent: int) -> None:
    """Be killed when the parent thread ends, however it ends; leave at once if it has ended already."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """From now on what a descendant leaves behind when it ends becomes a child of this process."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """The living children of this process, which must have one thread; none where the kernel does not tell."""
    with suppress(OSError):
        return {int(pid) for pid in Path("/proc/thread-self/children").read_text().split()}
    return set()


def confine(parent: int, folder: Path) -> None:
    """Put the walls up around this process, for the attempt of that folder. It must have one thread."""
    given = json.loads((folder / "attempt.json").read_text())
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # its facts in /proc are its own again, not root's
    own_network()
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    limits.limit(folder, on_a_gpu=on_a_gpu(given), processes=processes(given))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    # A new user namespace is a change of credentials, which may take the death signal back.
    die_with(parent)
    landlock.restrict(folder, given)
    drop_capabilities()


def hide() -> None:
    """No other process of this user, but root's own, reads this one's memory, environment or descriptors."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop_capabilities() -> None:
    """Give up every right of root's, also one in a user namespace of its own. Raises OSError."""
    capability = 0
    while (
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
    ):  # until there is no such capability, or no right to
        capability += 1
    libc.prctl(PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0, 0, 0)
    if libc.capset(struct.pack("Ii", CAPABILITIES_3, 0), bytes(24)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")


def processes(given: dict[str, Any]) -> int:
    """How many processes an attempt is of."""
    return given.get("processes", 1)


def on_a_gpu(given: dict[str, Any]) -> bool:
    """Whether an attempt computes on one."""
    return given.get("device", "cpu") != "cpu"


def settle(pipe: int, folder: Path) -> None:
    """The last wall of a process that has started all that it may start; then the watch over the supervisor."""
    given = json.loads((folder / "attempt.json").read_text())
    seccomp.restrict(alone=processes(given) == 1)
    watch(pipe, end_group)


def own_network() -> bool:
    """An empty network namespace with a loopback of its own, over which the processes of one attempt talk: not
    even the loopback of this machine is there. False where it is not allowed.
    """
    allowed = (os.geteuid() == 0 and libc.unshare(CLONE_NEWNET) == 0) or own_user()
    if allowed:
        with suppress(OSError):
            raise_loopback()
    return allowed


def own_user() -> bool:
    """A network namespace by way of a user namespace, as one who is not root gets it."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return False
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def raise_loopback() -> None:
    """Bring `lo` of this network namespace up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        told = fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack_from("16xh", told)
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def watch(pipe: int, then: Callable[[], None]) -> None:
    """A thread that waits for the end of a pipe whose only writer is the supervisor, and calls `then`."""

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        then()

    threading.Thread(target=wait, name="watchdog", daemon=True).start()


def end_group() -> None:
    """End this process and everything that it started."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def sandbox_facts() -> dict[str, bool]:
    """Which walls stand on this machine; tried out in a process of its own."""
    tried = subprocess.run(
        [sys.executable, "-m", "worker.walls"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    linux = sys.platform == "linux"
    return {
        "network_namespace": tried.stdout.strip() == b"True",
        "no_new_privileges": linux,
        "dies_with_worker": linux,
        "landlock": landlock.version() > 0,
        "seccomp": seccomp.possible(),
    }


if __name__ == "__main__":
    sys.stdout.write(str(own_network()))
