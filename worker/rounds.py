"""What some worker does again and again for everybody: it takes jobs back from lost workers, runs the schedules,
sends what people and webhooks are to hear.

Beat's messages ask for it. They may all be lost: without a broker, without beat, or with a clock so fast that each
looks stale. The oldest worker, if it has heard of no sweep for a while, therefore makes the rounds by itself.
Everything here may run twice at once.
"""

import logging
import threading
import time

from shared import queue, ranking, reaper, schedules, storage, workers
from shared.db import transaction
from shared.settings import settings
from shared.tables import Slot
from worker import janitor, postman
from worker.contact import AWAY

log = logging.getLogger(__name__)

MOST_WAKE_UPS = 20
PATIENCE = 3  # sweep intervals without a sweep


class Rounds:
    """Those of this process."""

    def __init__(self) -> None:
        self.asked_at = time.monotonic()
        self.posting = threading.Lock()
        self.thread: threading.Thread | None = None

    def missed(self) -> bool:
        """Whether nobody has asked for a sweep lately."""
        return time.monotonic() - self.asked_at > PATIENCE * settings().sweep_seconds

    def make_soon(self) -> None:
        """All of them in a thread of their own, unless they are being made."""
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self.make, name="rounds", daemon=True)
            self.thread.start()

    def make(self) -> None:
        """Each of them; one that fails holds up no other."""
        for one in (self.sweep, self.tick, self.deliver, self.tidy):
            try:
                one()
            except Exception:
                log.exception("The rounds stumbled")

    def sweep(self) -> None:
        """Queues the jobs of lost workers again, and wakes as many slots as there are jobs and free slots."""
        try:
            with transaction() as db:
                lost = reaper.reap(db)
            if lost:
                log.warning("%d attempts were lost; their jobs are queued again", lost)
            with transaction() as db:
                ranking.release(db)
                for slot in Slot:
                    ranking.let_in(db, slot)
                wanted = {
                    slot: min(ranking.waiting(db, slot, MOST_WAKE_UPS), workers.free_slots(db, slot))
                    for slot in Slot
                }
        except AWAY as away:
            log.warning("The database is away; the next sweep tries again: %s", away)
            return
        for slot, count in wanted.items():
            for _ in range(count):
                queue.wake(slot)

    def tidy(self) -> None:
        """Removes what was deleted from the store."""
        try:
            janitor.tidy()
        except (*AWAY, storage.Away) as away:
            log.warning("What was deleted is removed later: %s", away)

    def tick(self) -> None:
        """Submits what the schedules have due."""
        try:
            with transaction() as db:
                submitted = schedules.tick(db)
        except AWAY as away:
            log.warning("The database is away; the next tick tries again: %s", away)
            return
        for slot in {job.slot for job in submitted}:
            queue.wake(slot)

    def deliver(self) -> None:
        """Sends what webhooks and people are to hear; one thread of a worker does so at a time."""
        if not self.posting.acquire(blocking=False):
            return
        try:
            postman.deliver()
        except AWAY as away:
            log.warning("The database is away; what is due is sent later: %s", away)
        finally:
            self.posting.release()


ROUNDS = Rounds()
