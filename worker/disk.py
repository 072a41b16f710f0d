"""The disk under this worker's data folder: the floor that stays free, and what is promised to attempts."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from shared import room
from worker.cache import Cache, size_of


class Disk:
    """`promised` tells the bytes that running attempts are still to write; who promises more holds `booking`."""

    def __init__(self, home: Path, cache: Cache, floor: int, promised: Callable[[], int]) -> None:
        self.home, self.cache, self.floor, self.promised = home, cache, floor, promised
        self.booking = threading.Lock()

    @property
    def free(self) -> int:
        """Bytes that are free."""
        return shutil.disk_usage(self.home).free

    @property
    def short(self) -> bool:
        """Whether less is free than the floor."""
        return self.free < self.floor

    def state(self) -> dict[str, int]:
        """What the worker's row tells: see `shared.room`."""
        usage = shutil.disk_usage(self.home)
        spare = usage.free - self.floor - self.promised() + sum(map(size_of, self.cache.idle()))
        return {"free": usage.free, "floor": self.floor, "total": usage.total, "room": max(0, spare)}

    def relieve(self) -> None:
        """Gives up what the cache has not used for long where less is free than the floor."""
        if self.short:
            self.cache.trim(self.floor)

    def make_room(self, wanted: int) -> bool:
        """Whether so many bytes are free above the floor and beside what is promised; what the cache has not used
        for long goes for it.
        """
        target = wanted + self.floor + self.promised()
        self.cache.trim(target)
        return self.free >= target


class NoRoom(Exception):
    """An attempt needs more of the disk than there is: `wanted` bytes where nothing is cached yet."""

    def __init__(self, wanted: int, spare: int) -> None:
        self.wanted, self.spare = wanted, spare
        super().__init__(
            f"It needs about {room.gib(wanted)} of disk, and the worker had {room.gib(max(0, spare))} to spare."
        )
