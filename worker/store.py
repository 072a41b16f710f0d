"""Checkpoints, shards of answers, and the pictures and sounds of samples, on their way to the store while
the trainer goes on. Files first, then the row that makes a checkpoint or a shard exist.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shared import checkpoints, media, shards, storage
from shared.db import transaction
from shared.tables import Attempt, Job
from worker.cache import remove
from worker.contact import AWAY

log = logging.getLogger(__name__)

RETRIED = (storage.Away, *AWAY)
LONGEST_PAUSE = 15.0


class Store:
    """What one attempt has finished, stored in its order by one thread."""

    def __init__(self, job: Job, attempt: Attempt, folder: Path) -> None:
        self.job, self.attempt, self.folder = job, attempt, folder
        self.lease_lost = False
        self._given_up = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._pending: list[Future[None]] = []
        self._stored: list[str] = []

    def add(self, event: dict[str, Any]) -> None:
        """A checkpoint that the trainer has finished writing."""
        self._pending.append(self._pool.submit(self._keep, event))

    def add_shard(self, event: dict[str, Any]) -> None:
        """A shard that the trainer has finished writing; the pictures and sounds beside it go first."""
        name = str(event["data"].get("name"))
        for beside in event["data"].get("media") or ():
            self._pending.append(self._pool.submit(self._keep_media, Path(beside).name))
        if shards.NAME.fullmatch(name):
            self._pending.append(self._pool.submit(self._keep_shard, name))

    def add_media(self, event: dict[str, Any]) -> None:
        """The pictures and sounds that a sample event names."""
        for sample in event["data"].get("samples") or ():
            for value in sample.values():
                if isinstance(value, dict) and "media" in value:
                    self._pending.append(self._pool.submit(self._keep_media, Path(value["media"]).name))

    @property
    def busy(self) -> bool:
        """Whether something is still on its way."""
        return any(not future.done() for future in self._pending)

    def close(self) -> None:
        """Nothing more is stored; what is on its way is given up."""
        self._given_up.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def raise_failures(self) -> None:
        """Raises what storing failed of, if it did."""
        for future in self._pending:
            future.result()

    def _keep(self, event: dict[str, Any]) -> None:
        name = Path(event["data"]["name"]).name
        place = self.folder / "checkpoints" / name
        number, lease = self.attempt.number, self.attempt.lease_id
        prefix = checkpoints.prefix(self.job, number, lease, name)
        manifest = self._persist(lambda: storage.put_folder(prefix, place))
        row = {"step": event["step"], "prefix": prefix, "manifest": manifest} | described(event["data"])
        self._persist(lambda: self._record(row))
        self._let_go(name, best=bool(event["data"].get("best")))

    def _keep_media(self, name: str) -> None:
        key, place = media.key(self.job, name), self.folder / "media" / name
        if key and place.is_file():
            self._persist(lambda: storage.put(key, place))

    def _keep_shard(self, name: str) -> None:
        prefix = shards.prefix(self.job, self.attempt.number, self.attempt.lease_id, name)
        place = shards.place(self.folder) / name
        manifest = self._persist(lambda: storage.put_folder(prefix, place))
        self._persist(lambda: self._record_shard(name, prefix, manifest))

    def _record(self, row: dict[str, Any]) -> None:
        with transaction() as db:
            self.lease_lost = checkpoints.record(db, self.attempt.lease_id, **row) is None

    def _record_shard(self, name: str, prefix: str, manifest: list[dict[str, Any]]) -> None:
        with transaction() as db:
            self.lease_lost = shards.record(db, self.attempt.lease_id, name, prefix, manifest) is None

    def _persist(self, action: Callable[[], Any]) -> Any:
        """Does it, again and again while store or database are away."""
        pause = 0.5
        while True:
            try:
                return action()
            except RETRIED as away:
                log.warning("A checkpoint of %s waits to be stored: %s", self.job.id, away)
                if self._given_up.wait(pause):
                    raise
                pause = min(LONGEST_PAUSE, pause * 2)

    def _let_go(self, name: str, *, best: bool) -> None:
        """Frees the disk of stored checkpoints but the last one and the best."""
        for old in self._stored:
            remove(self.folder / "checkpoints" / old)
        self._stored = [] if best else [name]


def described(data: dict[str, Any]) -> dict[str, Any]:
    """The columns of a checkpoint's row that the trainer tells."""
    measured = {
        k if k.startswith("valid_") else f"valid_{k}": v for k, v in (data.get("metrics") or {}).items()
    }
    if data.get("train_loss") is not None:
        measured["train_loss"] = data["train_loss"]
    return {"epoch": float(data.get("epoch") or 0), "metrics": measured, "adapter": bool(data.get("adapter"))}
