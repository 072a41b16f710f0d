"""The slots of a worker: how many attempts run at once, by class. Each is a lock of the kernel's, too, which the
attempt's trainer inherits: it is free when both are done with it.
"""

import fcntl
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from shared.tables import Slot


class Slots:
    """How many attempts run at once, by class. A slot is also a lock of the kernel's, so that two workers
    in one home do not use the same device.
    """

    def __init__(self, folder: Path, counts: dict[Slot, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.asked: dict[Slot, int] = defaultdict(int)
        self._free = {slot: list(range(count)) for slot, count in counts.items()}
        self._locks: dict[tuple[Slot, int], int] = {}
        self._mutex = threading.Lock()

    def take(self, slot: Slot) -> int | None:
        """The index of a slot that is free from now on not; None: there is none."""
        with self._mutex:
            self.asked[slot] += 1
            for index in self._free[slot]:
                handle = lock(self.folder / f"{slot}-{index}.lock")
                if handle is not None:
                    self._free[slot].remove(index)
                    self._locks[slot, index] = handle
                    return index
        return None

    def take_more(self, slot: Slot, count: int, seconds: float) -> list[int] | None:
        """The indices of that many further slots; None where they do not get free in that time: somebody looks
        there just now and will find nothing, but another worker of this home may keep them.
        """
        deadline, got = time.monotonic() + seconds, []
        while len(got) < count:
            if (index := self.take(slot)) is not None:
                got.append(index)
            elif time.monotonic() > deadline:
                for index in got:
                    self.give_back(slot, index, None)
                return None
            else:
                time.sleep(0.02)
        return got

    def give_back(self, slot: Slot, index: int, asked: int | None) -> bool:
        """Frees the slot, unless somebody asked for one since `asked` was read (then False)."""
        with self._mutex:
            if asked is not None and self.asked[slot] != asked:
                return False
            os.close(self._locks.pop((slot, index)))
            self._free[slot].append(index)
            self._free[slot].sort()
            return True

    def locks(self, slot: Slot, indices: Sequence[int]) -> list[int]:
        """The descriptors that hold the locks of these slots, for a trainer to hold them too."""
        with self._mutex:
            return [self._locks[slot, index] for index in indices]

    def free(self, slot: Slot) -> bool:
        """Whether a slot of that class is free in this process."""
        return bool(self._free[slot])


def lock(path: Path) -> int | None:
    """A descriptor that holds the file's lock until it is closed everywhere; None: another holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def locked_elsewhere(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    handle = lock(path)
    if handle is None:
        return True
    os.close(handle)
    return False
