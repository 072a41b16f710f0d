"""The store as this worker finds it: while nothing can be put there, no job is begun that would end in vain."""

import logging
import time

from shared import storage

log = logging.getLogger(__name__)

KEY = "self-test/shelf"  # one object for all workers
PATIENCE = 5.0  # seconds that it fails before it counts as away: a busy machine is slow for a moment
NOTE = "has stopped claiming: the store does not take what is put there"


class Shelf:
    """`note` says why the worker claims nothing, if the store is the reason. A full store reads and does not write."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.failing: float | None = None  # since when
        self.away = False

    @property
    def note(self) -> str:
        return NOTE if self.away else ""

    def look(self) -> None:
        """Puts a few bytes there, in a second or not at all."""
        try:
            storage.soon(lambda: storage.put_bytes(KEY, self.worker_id.encode()))
        except (storage.Away, storage.Corrupt) as away:
            moment = time.monotonic()
            self.failing = self.failing or moment
            if not self.away and moment - self.failing >= PATIENCE:
                self.away = True
                log.warning("No more jobs are claimed until the store takes what is put there: %s", away)
        else:
            self.failing, self.away = None, False
