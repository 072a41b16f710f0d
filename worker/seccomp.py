"""Seccomp: what a trainer may not ask of the kernel once it has all its processes.

It starts no more of them, only threads: a fork bomb, a daemon and a shell are refused to every user, root too. One
that has no other processes to talk to opens no socket besides those of this machine's files: where there is no
network namespace it still reaches nothing. Source: Linux's Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from dataclasses import dataclass

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2
ALLOW, DENY = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # where they stand in `struct seccomp_data`
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
CLONE_THREAD = 0x10000

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Calls:
    """The numbers of system calls on one architecture."""

    architecture: int
    clone: int
    socket: int
    forks: tuple[int, ...] = ()
    foreign: int = 0xFFFFFFFF  # from here on the numbers are those of another interface
    clone3: int = 435


KNOWN = {
    "x86_64": Calls(0xC000003E, clone=56, socket=41, forks=(57, 58), foreign=0x40000000),
    "aarch64": Calls(0xC00000B7, clone=220, socket=198),
}


def possible() -> bool:
    """Whether this kernel and machine know the filter."""
    return sys.platform == "linux" and platform.machine() in KNOWN and libc.prctl(21, 0, 0, 0, 0) >= 0


def restrict(*, alone: bool) -> bool:
    """No more processes from here on, and, for one that is alone, no network. False: it is not known here.

    Raises OSError where the kernel refuses.
    """
    if not possible():
        return False
    program = written(KNOWN[platform.machine()], alone=alone)
    code = ctypes.create_string_buffer(program, len(program))
    told = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.c_char_p(told), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "seccomp")
    return True


def written(calls: Calls, *, alone: bool) -> bytes:
    """The filter. A jump tells how many instructions are left out where it holds, and where it does not."""
    refuse, unknown = DENY | errno.EPERM, DENY | errno.ENOSYS
    lines = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, calls.architecture),
        (RETURN, 0, 0, refuse),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, calls.foreign),
        (RETURN, 0, 0, refuse),
        # Its flags lie in memory, where a filter can not look; the C library then takes `clone`.
        (EQUAL, 0, 1, calls.clone3),
        (RETURN, 0, 0, unknown),
    ]
    for fork in calls.forks:
        lines += [(EQUAL, 0, 1, fork), (RETURN, 0, 0, refuse)]
    lines += [
        (EQUAL, 0, 4, calls.clone),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, refuse),
        (RETURN, 0, 0, ALLOW),
    ]
    if alone:
        lines += [
            (EQUAL, 0, 3, calls.socket),
            (LOAD, 0, 0, FIRST_ARGUMENT),
            (EQUAL, 1, 0, int(socket.AF_UNIX)),
            (RETURN, 0, 0, DENY | errno.EACCES),
        ]
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
