"""Landlock: the kernel lets a trainer open what its attempt needs, and nothing else of this machine.

The attempt's folder and the team's prepared data may be written; what `attempt.json` names, Python and the
system's libraries may be read; the rest (another team's data, the services' folders, secrets, other processes'
`/proc`) can not be opened. One that is of a single process gets no TCP either. Source: Linux's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
VERSION, PATH_BENEATH = 1, 1
NO_NEW_PRIVS = 38
EXECUTE, READ_FILE, READ_DIR, IOCTL_DEVICE = 1 << 0, 1 << 2, 1 << 3, 1 << 15
OF_A_FILE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # rights that make sense for a file itself
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many kinds of access each version of Landlock knows
TCP_SINCE, BIND, CONNECT = 4, 1 << 0, 1 << 1
# Processes outside get no signal from inside, and their sockets without a file can not be reached.
SCOPES_SINCE, SCOPES = 6, 1 << 0 | 1 << 1

READ = READ_FILE | READ_DIR | EXECUTE
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/sys", "/run/nvidia-persistenced")
# Of the kernel's facts those that libraries ask for; other processes' are not among them.
FACTS = (
    "cpuinfo",
    "meminfo",
    "stat",
    "version",
    "filesystems",
    "loadavg",
    "uptime",
    "devices",
    "driver",
    "sys",
)
DEVICES = ("null", "zero", "full", "random", "urandom")
OF_A_GPU = ("nvidia*", "nvidia-caps", "kfd", "dri", "shm")  # whose drivers keep files in shared memory
OF_SEVERAL = ("shm",)
ROOT = Path(__file__).parents[1]

libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The version that the kernel speaks; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION)))


def restrict(folder: Path, given: dict[str, Any]) -> bool:
    """Walls around this process and its children, for the attempt of that folder, of whose `attempt.json` this
    is the content. False: the kernel has none.

    Raises OSError where the kernel has Landlock and refuses.
    """
    speaks = version()
    if not speaks:
        return False
    every = (1 << RIGHTS.get(speaks, max(RIGHTS.values()))) - 1
    cache = [Path(given["cache"])] if given.get("cache") else []
    alone = given.get("processes", 1) == 1  # several talk over the loopback, at ports of the kernel's choice
    ruleset = made(speaks, every, BIND | CONNECT if alone else 0)
    try:
        allow(ruleset, [folder, *cache], every & ~EXECUTE)
        allow(ruleset, devices(given), every & ~EXECUTE)
        facts = [Path("/proc", name) for name in (*FACTS, str(os.getpid()))]
        allow(ruleset, [*named(given), *python(), *map(Path, SYSTEM), *facts], READ & every)
        checked(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
        checked(libc.syscall(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)
    return True


def devices(given: dict[str, Any]) -> list[Path]:
    """What of /dev an attempt may write to. The shared memory, which others' are seen in, only where it must."""
    of_gpu = OF_A_GPU if given.get("device", "cpu") != "cpu" else ()
    of_several = OF_SEVERAL if given.get("processes", 1) > 1 else ()
    return [path for name in (*DEVICES, *of_gpu, *of_several) for path in Path("/dev").glob(name)]


def named(given: object) -> list[Path]:
    """The absolute paths in what `attempt.json` tells."""
    if isinstance(given, dict):
        return [path for value in given.values() for path in named(value)]
    return [Path(given)] if isinstance(given, str) and given.startswith("/") and "\0" not in given else []


def python() -> list[Path]:
    """Where this Python and our own engine are."""
    own = [ROOT / "shared", ROOT / "worker"]
    searched = [Path(entry) for entry in sys.path if entry and Path(entry) != ROOT]
    return [Path(sys.prefix), Path(sys.base_prefix), *own, *searched]


def made(speaks: int, every: int, net: int) -> int:
    """A ruleset that handles all of these rights, as far as the kernel knows them. Raises OSError."""
    attributes = struct.pack("Q", every)
    if speaks >= TCP_SINCE:
        attributes += struct.pack("Q", net)
    if speaks >= SCOPES_SINCE:
        attributes += struct.pack("Q", SCOPES)
    return checked(
        libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    )


def allow(ruleset: int, paths: Iterable[Path], rights: int) -> None:
    """These rights on the paths and below them; what is not there is passed over. Raises OSError."""
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            own = rights if path.is_dir() else rights & OF_A_FILE
            try:
                rule = struct.pack("=Qi", own, place)
                checked(libc.syscall(ADD_RULE, ctypes.c_int(ruleset), PATH_BENEATH, rule, ctypes.c_uint32(0)))
            finally:
                os.close(place)


def checked(result: int) -> int:
    """The result of a call of the C library. Raises OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "landlock")
    return result
