"""What an attempt will occupy of the disk, reckoned before it begins: what it fetches, and what it writes.

An estimate: of a first checkpoint only the number of weights is known, of encoded rows only the Parquet file.
"""

from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session

from shared import checkpoints
from shared.base_models import is_scratch
from shared.tables import BaseModel, Checkpoint, DatasetVersion, File, Job, Kind
from worker.cache import Cache
from worker.fetching import Start, start_of

SLACK = 16 * 1024**2  # events, output, reports
ENCODED = 3  # times the Parquet file
UNPACKED = 4  # times an upload
HELD = 3  # checkpoints at once: the one that is written, the newest, the best
STATES = 3  # times the weights: they and the optimizer's two moments
ADAPTER = 0.05  # of the weights
WEIGHT = 4  # bytes


@dataclass(frozen=True)
class Need:
    """Bytes: `fetched` of what the cache lacks, `cached` of what it has, `written` in the attempt's folder;
    `places` in the cache.
    """

    fetched: int = 0
    cached: int = 0
    written: int = 0
    places: tuple[Path, ...] = ()

    @property
    def here(self) -> int:
        """With this cache as it is."""
        return self.fetched + self.written

    @property
    def anywhere(self) -> int:
        """Where nothing is cached yet."""
        return self.fetched + self.cached + self.written


def reckoned(db: Session, job: Job, cache: Cache) -> Need:
    """What an attempt at the job needs. Raises Refused as `start_of` does."""
    start = start_of(db, job) if job.kind is not Kind.IMPORT else None
    wanted = {
        cache.place(thing): size for thing, size in [*data(db, job), *(weights(start) if start else [])]
    }
    cached = sum(size for place, size in wanted.items() if place.exists())
    return Need(sum(wanted.values()) - cached, cached, SLACK + written(db, job, start), tuple(wanted))


def data(db: Session, job: Job) -> list[tuple[DatasetVersion, int]]:
    """The dataset versions that it reads."""
    if job.kind not in (Kind.TRAIN, Kind.EVALUATE, Kind.INFER):
        return []
    found = [db.get(DatasetVersion, v) for v in (job.dataset_version_id, job.valid_version_id) if v]
    return [(version, version.bytes) for version in found if version is not None]


def weights(start: Start) -> list[tuple[BaseModel | Checkpoint, int]]:
    """What it starts from."""
    points = [point for point in (start.full, start.adapter) if point is not None]
    found: list[tuple[BaseModel | Checkpoint, int]] = [(point, servable(point)) for point in points]
    if start.full is None and not is_scratch(start.base):
        found.append((start.base, sum(entry["bytes"] for entry in start.base.manifest)))
    return found


def servable(point: Checkpoint) -> int:
    """Bytes of its servable part."""
    return sum(entry["bytes"] for entry in point.manifest if entry["name"].startswith("servable/"))


def written(db: Session, job: Job, start: Start | None) -> int:
    """What it writes in its own folder and, encoded, beside it."""
    rows = sum(size for _, size in data(db, job))
    file = db.get(File, job.file_id) if job.file_id else None
    sent = file.bytes if file else 0
    if job.kind is Kind.IMPORT or start is None:
        return UNPACKED * sent
    if job.kind is Kind.EXPORT:
        return 2 * sum(size for _, size in weights(start))
    if job.kind is Kind.TRAIN:
        return ENCODED * rows + training(db, job, start)
    return ENCODED * (rows + sent)


def training(db: Session, job: Job, start: Start) -> int:
    """Checkpoints, and the one that it goes on from."""
    stored = checkpoints.to_go_on_from(db, job)
    if stored:
        return stored[0].bytes + HELD * max(point.bytes for point in stored)
    parameters = start.base.facts.get("parameters") or 0
    share = ADAPTER if job.spec.get("method") == "lora" else 1.0
    return round(HELD * STATES * WEIGHT * share * parameters)
