"""What this machine keeps between attempts, by content hash: base models, datasets, checkpoints.

An entry appears whole and verified or not at all: it is fetched beside its place and renamed. Entries
are removed, the longest unused first, when the disk gets short.
"""

import os
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from shared import storage
from shared.tables import BaseModel, Checkpoint, DatasetVersion

IN_USE_SECONDS = 3600.0  # an entry used within this time is never removed


class Cache:
    """A folder of verified entries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*/tmp-*"):
            remove(partial)

    def base_model(self, base: BaseModel) -> Path:
        """The folder of a ready base model. Raises storage.Away, storage.Corrupt."""
        prefix, manifest = base.prefix or "", base.manifest
        return self._entry(
            f"base/{base.content_hash}", lambda place: storage.get_folder(prefix, manifest, place)
        )

    def dataset(self, version: DatasetVersion) -> Path:
        """The Parquet file of a ready dataset version. Raises storage.Away, storage.Corrupt."""

        def fetch(place: Path) -> None:
            if storage.get(version.key or "", place) != version.content_hash:
                raise storage.Corrupt(f"{version.key} is not what was imported: its SHA-256 differs")

        return self._entry(f"datasets/{version.content_hash}.parquet", fetch)

    def servable(self, checkpoint: Checkpoint) -> Path:
        """The servable part of a checkpoint. Raises storage.Away, storage.Corrupt."""
        manifest = [entry for entry in checkpoint.manifest if entry["name"].startswith("servable/")]
        whole = self._entry(
            f"checkpoints/{checkpoint.id}",
            lambda place: storage.get_folder(checkpoint.prefix, manifest, place),
        )
        return whole / "servable"

    def prepared(self, team_id: str) -> Path:
        """Where the team's trainers keep tokenised data between attempts."""
        folder = self.folder / "prepared" / team_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _entry(self, name: str, fetch: Callable[[Path], None]) -> Path:
        place = self.folder / name
        with self._locks[name]:
            if not place.exists():
                partial = place.with_name(f"tmp-{secrets.token_hex(8)}")
                partial.parent.mkdir(parents=True, exist_ok=True)
                try:
                    fetch(partial)
                    partial.rename(place)
                finally:
                    remove(partial)
            os.utime(place)
        return place

    def trim(self, floor: int) -> None:
        """Removes entries that are not in use, the longest unused first, until `floor` bytes are free."""
        entries = [p for p in self.folder.glob("*/*") if p.parent.name != "prepared"]
        prepared = list(self.folder.glob("prepared/*/*"))
        for entry in sorted(entries + prepared, key=lambda path: path.stat().st_mtime):
            if shutil.disk_usage(self.folder).free >= floor:
                return
            if time.time() - entry.stat().st_mtime > IN_USE_SECONDS:
                remove(entry)


def remove(path: Path) -> None:
    """The file or folder is gone afterwards."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
