"""Workers: processes that offer slots. Each keeps its own row; a silent one is shown as such."""

import json
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, text
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from shared import ranking, resources, room
from shared.errors import NotFound
from shared.leases import clock
from shared.settings import settings
from shared.tables import Job, Slot, Worker

SILENT_HEARTBEATS = 6
ALLOW_NAMESPACES = (
    "allow the worker user namespaces (docker: security_opt «seccomp:unconfined»; "
    "Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)."
)
NO_WALL = {
    "landlock": "No file wall: boot a kernel from 5.13 on with Landlock (lsm=landlock,… on its command line).",
    "seccomp": "No process wall: run the worker on Linux on x86-64 or ARM64, with a kernel that has seccomp.",
}


def register(db: Session, worker: Worker) -> Worker:
    """A worker that starts, or whose row is gone."""
    worker.started_at = worker.heartbeat_at = clock(db)
    return db.merge(worker)


def beat(db: Session, worker_id: str, note: str = "", disk: dict[str, int] | None = None) -> bool:
    """The worker's sign of life, with the reason why it claims nothing just now and what it has of disk (see
    `shared.room`); False: it has no row.
    """
    seen = text("""
        UPDATE workers SET heartbeat_at = clock_timestamp(), note = :note, stopped_at = NULL,
               disk = coalesce(CAST(:disk AS jsonb), disk)
         WHERE id = :id""")
    told = {"note": note, "id": worker_id, "disk": json.dumps(disk) if disk else None}
    return db.connection().execute(seen, told).rowcount == 1


def drain(db: Session, worker_id: str) -> Worker:
    """The worker takes no more jobs; its attempts checkpoint and are given back. Raises NotFound."""
    worker = locked(db, worker_id)
    worker.draining_at = worker.draining_at or clock(db)
    return worker


def undrain(db: Session, worker_id: str) -> Worker:
    """A drained worker takes jobs again. Raises NotFound."""
    worker = locked(db, worker_id)
    worker.draining_at = None
    return worker


def locked(db: Session, worker_id: str) -> Worker:
    """The worker's row until the commit. Raises NotFound."""
    row = select(Worker).where(Worker.id == worker_id).with_for_update()
    worker = db.exec(row.execution_options(populate_existing=True)).one_or_none()
    if worker is None:
        raise NotFound("worker", worker_id)
    return worker


def stop(db: Session, worker_id: str) -> None:
    """The worker ends in order."""
    worker = db.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).one_or_none()
    if worker is not None:
        worker.stopped_at = clock(db)


def alive(db: Session) -> Sequence[Worker]:
    """The workers that have shown a sign of life lately, oldest first."""
    return db.exec(living()).all()


def living() -> SelectOfScalar[Worker]:
    """The select of them."""
    silent = timedelta(seconds=SILENT_HEARTBEATS * settings().heartbeat_seconds)
    lately = col(Worker.heartbeat_at) > func.clock_timestamp() - silent
    return select(Worker).where(lately, col(Worker.stopped_at).is_(None)).order_by(col(Worker.id))


def is_oldest(db: Session, worker_id: str) -> bool:
    """Whether it is the oldest of them: to it falls what one of them is to do for all."""
    oldest = db.exec(living().limit(1)).first()
    return oldest is not None and oldest.id == worker_id


def missing_walls(worker: Worker) -> list[str]:
    """A sentence for each wall that does not stand around its trainers, with what to do."""
    missing = [name for name, stands in worker.sandbox.items() if not stands]
    told = [NO_WALL[name] for name in missing if name in NO_WALL]
    if "network_namespace" in missing:  # one process alone is kept from the network by seccomp too
        around = " around jobs of several processes" if worker.sandbox.get("seccomp") else ""
        told.insert(0, f"No network wall{around}: {ALLOW_NAMESPACES}")
    return told


def takers(db: Session) -> list[Worker]:
    """The live workers that take jobs."""
    return [w for w in alive(db) if w.draining_at is None and not w.note]


def taken(db: Session, slot: Slot | str, worker_ids: Sequence[str]) -> dict[str, int]:
    """{worker: slots of that class that attempts occupy there}."""
    counted = text("""
        SELECT worker_id, sum(jsonb_array_length(slots)) AS slots FROM attempts
         WHERE ended_at IS NULL AND slots ->> 0 = :slot AND worker_id = ANY(:workers) GROUP BY worker_id""")
    rows = db.connection().execute(counted, {"slot": str(slot), "workers": list(worker_ids)})
    found = {row.worker_id: int(row.slots) for row in rows}
    return {worker_id: found.get(worker_id, 0) for worker_id in worker_ids}


def free_slots(db: Session, slot: Slot | str, besides: str = "") -> int:
    """Slots of that class that no attempt occupies, on live workers that take jobs, but for one worker."""
    known = [w for w in takers(db) if w.id != besides]
    busy = taken(db, slot, [w.id for w in known])
    return sum(max(0, w.slots.get(str(slot), 0) - busy[w.id]) for w in known)


def place(db: Session, worker_id: str, slot: Slot | str) -> ranking.Place | None:
    """What a job of that slot class finds on the worker; None: it takes no job now."""
    worker = db.exec(
        select(Worker).where(Worker.id == worker_id).execution_options(populate_existing=True)
    ).one_or_none()
    if worker is None or worker.draining_at is not None:
        return None
    has = resources.offer(worker, slot)
    free = has.slots - taken(db, slot, [worker_id])[worker_id]
    return ranking.Place(has, free, room=room.of(worker)) if free > 0 else None


def roomiest(db: Session, job: Job) -> str | None:
    """The worker that could hold the job and has the most slots free for it."""
    able = [w for w in takers(db) if resources.fits(job.resources, resources.offer(w, job.slot))]
    able = [w for w in able if room.has(w, job)]
    busy = taken(db, job.slot, [w.id for w in able])
    free = {w.id: resources.offer(w, job.slot).slots - busy[w.id] for w in able}
    return min(free, key=lambda worker_id: (-free[worker_id], worker_id), default=None)
