"""What this machine keeps between attempts, by content hash: base models, datasets, checkpoints.

An entry appears whole and verified or not at all: it is fetched beside its place and renamed. Entries
are removed, the longest unused first, when the disk gets short, as is what a killed worker had half fetched.
Several workers may share the folder.
"""

import os
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from glob import glob
from itertools import chain
from pathlib import Path

from shared import storage
from shared.tables import BaseModel, Checkpoint, DatasetVersion

IN_USE_SECONDS = 900.0  # an entry used within this time is never removed; running attempts touch theirs


class Cache:
    """A folder of verified entries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks: dict[Path, threading.Lock] = defaultdict(threading.Lock)
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, thing: BaseModel | DatasetVersion | Checkpoint) -> Path:
        """Where it lies once it is here."""
        if isinstance(thing, BaseModel):
            return self.folder / f"base/{thing.content_hash}"
        if isinstance(thing, DatasetVersion):
            return self.folder / f"datasets/{thing.content_hash}.parquet"
        return self.folder / f"checkpoints/{thing.id}"

    def base_model(self, base: BaseModel) -> Path:
        """The folder of a ready base model. Raises storage.Away, storage.Corrupt."""
        prefix, manifest = base.prefix or "", base.manifest
        return self._entry(self.place(base), lambda place: storage.get_folder(prefix, manifest, place))

    def dataset(self, version: DatasetVersion) -> Path:
        """The Parquet file of a ready dataset version. Raises storage.Away, storage.Corrupt."""

        def fetch(place: Path) -> None:
            if storage.get(version.key or "", place) != version.content_hash:
                raise storage.Corrupt(f"{version.key} is not what was imported: its SHA-256 differs")

        return self._entry(self.place(version), fetch)

    def servable(self, checkpoint: Checkpoint) -> Path:
        """The servable part of a checkpoint. Raises storage.Away, storage.Corrupt."""
        manifest = [entry for entry in checkpoint.manifest if entry["name"].startswith("servable/")]
        whole = self._entry(
            self.place(checkpoint),
            lambda place: storage.get_folder(checkpoint.prefix, manifest, place),
        )
        return whole / "servable"

    def prepared(self, team_id: str) -> Path:
        """Where the team's trainers keep tokenised data between attempts."""
        folder = self.folder / "prepared" / team_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _entry(self, place: Path, fetch: Callable[[Path], None]) -> Path:
        with self._locks[place]:
            if not place.exists():
                partial = place.with_name(f"tmp-{secrets.token_hex(8)}")
                partial.parent.mkdir(parents=True, exist_ok=True)
                try:
                    fetch(partial)
                    put(partial, place)
                finally:
                    remove(partial)
            touch(place)
        return place

    def idle(self) -> list[Path]:
        """The entries that nobody uses, the longest unused first."""
        entries = [path for path in self.found("*/*") if path.parent.name != "prepared"]
        entries += self.found("prepared/*/*/*")
        used = {path: at for path in entries if (at := used_at(path))}
        before = time.time() - IN_USE_SECONDS
        return [path for path in sorted(used, key=used.__getitem__) if used[path] < before]

    def found(self, pattern: str) -> list[Path]:
        """The paths like that; what goes meanwhile is left out."""
        names = glob(pattern, root_dir=self.folder)  # noqa: PTH207 - Path.glob raises where a folder goes
        return [self.folder / name for name in names]

    def trim(self, wanted: int) -> None:
        """Removes idle entries, the longest unused first, until `wanted` bytes are free."""
        for entry in self.idle():
            if shutil.disk_usage(self.folder).free >= wanted:
                return
            remove(entry)


def touch(place: Path) -> None:
    """It is used now."""
    with suppress(FileNotFoundError):
        os.utime(place)


def put(partial: Path, place: Path) -> None:
    """It is there now, unless another worker of this home was quicker."""
    try:
        partial.rename(place)
    except OSError:
        if not place.exists():
            raise


def used_at(path: Path) -> float | None:
    """When an entry was used last, or a partial one written; None: it is gone."""
    return max((one.st_mtime for one in everything(path)), default=None)


def size_of(path: Path) -> int:
    """Bytes that a file or folder occupies; what goes meanwhile counts as nothing."""
    return sum(one.st_blocks * 512 for one in everything(path))


def everything(path: Path) -> Iterator[os.stat_result]:
    """The file's or folder's status, then that of all below it; what goes meanwhile is left out."""
    below = (Path(at, name) for at, folders, files in os.walk(path) for name in (*folders, *files))
    for one in chain([path], below):
        with suppress(OSError):
            yield one.lstat()


def remove(path: Path) -> None:
    """The file or folder is gone afterwards."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
