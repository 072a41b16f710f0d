"""This worker process: its row, its slots, its zygote, and what it is doing."""

import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import migrate, room, workers
from shared.db import transaction
from shared.errors import NotFound
from shared.ids import new_id
from shared.settings import settings
from shared.tables import Slot, Worker
from worker import runner
from worker.cache import Cache, remove
from worker.contact import AWAY
from worker.disk import Disk
from worker.rounds import ROUNDS
from worker.shelf import Shelf
from worker.slots import Slots, locked_elsewhere
from worker.zygote import Trainer, Zygote, sandbox_facts

if TYPE_CHECKING:
    from worker.runner import Trip

log = logging.getLogger(__name__)

ZYGOTE_SECONDS = 60.0
START_SECONDS = 60.0


class Machine:
    """What is one in a worker process. `start` is called in the main thread, `keep` runs in a thread of its own."""

    def __init__(self) -> None:
        known = settings()
        self.id = new_id("worker-")
        self.home = known.burnish_home.resolve()
        self.attempts = self.home / "attempts"
        self.attempts.mkdir(parents=True, exist_ok=True)
        self.cache = Cache(self.home / "cache")
        self.disk = Disk(self.home, self.cache, round(known.disk_floor_gib * room.GIB), self.promised)
        self.shelf = Shelf(self.id)
        self.counts = {Slot.COMPUTE: known.compute_slots, Slot.LIGHT: known.light_slots}
        self.slots = Slots(self.home / "slots", self.counts)
        self.devices = gpus()
        shared_out = len(os.sched_getaffinity(0)) // max(1, known.compute_slots)
        self.threads = known.trainer_threads or max(1, shared_out)
        self.draining = threading.Event()  # the process is to end
        self.stopping = threading.Event()
        self.note = ""
        self.trips: dict[str, Trip] = {}
        self.zygote: Zygote | None = None
        self._zygote_ready = threading.Condition()
        self._registering = threading.Lock()
        self._keeper = threading.Thread(target=self.keep, name="keeper", daemon=True)
        self._looks: list[threading.Thread] = []

    # --- its life ------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts the zygote (which must not die with a short-lived thread), tells the database, begins to keep."""
        self.remove_stale()
        self.zygote = Zygote.start()
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.register()
                break
            except AWAY:
                if time.monotonic() > deadline:
                    raise
                log.warning("The database does not answer yet")
                time.sleep(1.0)
        self._keeper.start()

    def register(self) -> None:
        """The worker's row."""
        migrate.require_current()
        row = Worker(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version("burnish"),
            slots={str(slot): count for slot, count in self.counts.items()},
            devices=self.devices,
            cpus=len(os.sched_getaffinity(0)),
            sandbox=sandbox_facts(),
            disk=self.disk.state(),
        )
        with self._registering, transaction() as db:
            workers.register(db, row)

    def keep(self) -> None:
        """Until the end: signs of life, the zygote's health, and at each sweep interval a look of its own, and the
        rounds where nobody asks for them.
        """
        looked = time.monotonic()
        while not self.stopping.wait(settings().heartbeat_seconds):
            try:
                self.revive_zygote()
                self.beat()
                if time.monotonic() - looked >= settings().sweep_seconds:
                    looked = time.monotonic()
                    for slot in Slot:
                        self.look_soon(slot)
                    if ROUNDS.missed() and self.is_oldest():
                        ROUNDS.make_soon()
            except AWAY as away:
                log.warning("The database is away: %s", away)
            except Exception:
                log.exception("The worker's keeper stumbled")

    def beat(self) -> None:
        """Shows a sign of life, with what there is of the disk and the reason for claiming nothing; where there is
        one no longer, looks for jobs.
        """
        for trip in list(self.trips.values()):
            trip.touch_cached()
        self.disk.relieve()
        self.shelf.look()
        state, before = self.disk.state(), self.note
        self.note = room.why_short(state, socket.gethostname()) if room.short(state) else self.shelf.note
        with transaction() as db:
            known = workers.beat(db, self.id, self.note, state)
        if not known:
            self.register()
        if before and not self.note:
            for slot in Slot:
                self.look_soon(slot)

    def promised(self) -> int:
        """Bytes of disk that running attempts are still to write."""
        return sum(trip.promised for trip in list(self.trips.values()))

    def drain(self) -> None:
        """The process is to end: no more jobs; attempts checkpoint and are given back."""
        self.draining.set()
        try:
            with transaction() as db:
                workers.drain(db, self.id)
        except (*AWAY, NotFound) as away:
            log.warning("The drain is not noted: %s", away)

    def is_oldest(self) -> bool:
        """Whether it makes the rounds where nobody asks: each sweep is heard by one worker, and the others miss it."""
        with transaction() as db:
            return workers.is_oldest(db, self.id)

    def stop(self) -> None:
        """The process ends: waits for what runs in threads of its own, and only then lets the keeper go, with whom
        a zygote that it has revived dies.
        """
        self.draining.set()
        for thread in self._looks:
            thread.join(timeout=runner.GRACE_SECONDS)
        self.stopping.set()
        try:
            with transaction() as db:
                workers.stop(db, self.id)
        except AWAY as away:
            log.warning("The database is away; the end is not noted: %s", away)

    # --- the zygote ----------------------------------------------------------------------------------
    @property
    def zygote_alive(self) -> bool:
        return self.zygote is not None and self.zygote.alive

    def revive_zygote(self) -> None:
        """Starts another zygote where it died. Called by the keeper alone: a zygote dies with the thread
        that started it.
        """
        if self.zygote_alive:
            return
        log.error("The zygote died; another one is started")
        with self._zygote_ready:
            self.zygote = Zygote.start()
            self._zygote_ready.notify_all()

    def fork(self, folder: Path, slot: Slot, indices: Sequence[int]) -> Trainer:
        """A trainer for that attempt folder in those slots. Raises OSError where no zygote can fork one."""
        with self._zygote_ready:
            self._zygote_ready.wait_for(lambda: self.zygote_alive, ZYGOTE_SECONDS)
            zygote = self.zygote
        if zygote is None:
            raise OSError("there is no zygote")
        try:
            return zygote.fork(folder, self.slots.locks(slot, indices))
        except RuntimeError as refused:
            raise OSError(str(refused)) from refused

    # --- looking for work ----------------------------------------------------------------------------
    def look(self, slot: Slot) -> bool:
        """Runs jobs of that class until there is none; False: no slot was free.

        A look that comes while a slot is about to be freed is not lost: the slot looks once more.
        """
        index = self.slots.take(slot)
        if index is None:
            return False
        try:
            while True:
                asked = self.slots.asked[slot]
                while self.ready and runner.run_next(self, slot, index):
                    pass
                if self.slots.give_back(slot, index, asked):
                    return True
        except BaseException:
            self.slots.give_back(slot, index, None)
            raise

    @property
    def ready(self) -> bool:
        """Whether it takes jobs. Of the disk the moment counts, not the last sign of life."""
        return not self.draining.is_set() and not self.note and not self.disk.short

    def look_soon(self, slot: Slot) -> None:
        """A look in a thread of its own, for when no wake-up came."""
        if not self.slots.free(slot) or not self.ready:
            return

        def look() -> None:
            try:
                self.look(slot)
            except AWAY as away:
                log.warning("The database is away: %s", away)
            except Exception:
                log.exception("A look for %s jobs failed", slot)

        self._looks = [thread for thread in self._looks if thread.is_alive()]
        thread = threading.Thread(target=look, name=f"look-{slot}", daemon=True)
        self._looks.append(thread)
        thread.start()

    @contextmanager
    def travelling(self, trip: "Trip") -> Generator[None]:
        """The trip is shown among those that go on."""
        self.trips[trip.lease_id] = trip
        try:
            yield
        finally:
            del self.trips[trip.lease_id]

    # --- this machine --------------------------------------------------------------------------------
    def device(self, slot: Slot, indices: Sequence[int]) -> str:
        """What a trainer in those slots computes on: their GPUs, with commas between them."""
        if slot is not Slot.COMPUTE or not self.devices:
            return "cpu"
        there, slots = len(self.devices), max(1, self.counts[slot])
        owned = [gpu for index in indices for gpu in range(index % there, there, slots)]
        return ",".join(f"cuda:{gpu}" for gpu in dict.fromkeys(owned))

    def remove_stale(self) -> None:
        """Removes the attempt folders that a worker left behind when it was killed.

        Another worker may live in the same home: a folder whose lock is held is not touched.
        """
        for folder in self.attempts.iterdir():
            if not locked_elsewhere(folder / "lock"):
                remove(folder)


def gpus() -> list[dict[str, Any]]:
    """The machine's GPUs as {name, memory_bytes}, without loading a training library."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return []
    with suppress(OSError, subprocess.SubprocessError):
        # The driver makes this device when it is first used, which takes rights that no trainer has.
        subprocess.run(["nvidia-modprobe", "-c0", "-u"], capture_output=True, timeout=20, check=False)  # noqa: S607 - as nvidia-smi
    rows = [line.rsplit(",", 1) for line in told.splitlines() if "," in line]
    return [{"name": name.strip(), "memory_bytes": int(float(size)) << 20} for name, size in rows]
