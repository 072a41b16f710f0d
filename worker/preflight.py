"""Before an attempt begins: whether the disk has room for what it needs."""

from typing import TYPE_CHECKING, Any

from sqlmodel import Session

from shared import jobs, resources, room, workers
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Job, Worker
from worker import needs, results
from worker.disk import NoRoom

if TYPE_CHECKING:
    from worker.runner import Trip


def check(trip: "Trip") -> None:
    """Promises the attempt what it needs of the disk; what the cache does not use goes for it.

    Raises NoRoom where it does not suffice, Refused where the disk of no live worker that could run it could ever
    hold it.
    """
    disk = trip.machine.disk
    with transaction() as db:
        need = needs.reckoned(db, trip.job, disk.cache)
        most = room.ever(able(db, trip.job))
    trip.cached = list(need.places)
    trip.touch_cached()
    if most is not None and need.anywhere > most:
        raise too_large(need.anywhere, most)
    with disk.booking:
        if not disk.make_room(need.here):
            raise NoRoom(need.anywhere, disk.free - disk.floor - disk.promised())
        trip.need = need


def able(db: Session, job: Job) -> list[Worker]:
    """The live workers that could run the job if only the disk were large enough."""
    return [w for w in workers.alive(db) if resources.fits(job.resources, resources.offer(w, job.slot))]


def too_large(wanted: int, most: int) -> Refused:
    """The refusal of what fits on no disk."""
    return Refused(
        f"It needs about {room.gib(wanted)} of a worker's disk for its data, model and checkpoints, and the largest"
        f" disk of a worker holds {room.gib(max(0, most))} above its floor.",
        code="disk_too_small",
    )


def remembered(trip: "Trip", wanted: int) -> results.Result:
    """The job says from now on how much of a disk it needs, so that only a worker with room claims it."""

    def record(db: Session) -> dict[str, Any]:
        if job := jobs.held_job(db, trip.lease_id):
            job.disk_bytes = wanted
        return {}

    return results.Result(record)
