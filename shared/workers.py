"""Workers: processes that offer slots. Each keeps its own row; a silent one is shown as such."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, text
from sqlmodel import Session, col, select

from shared.leases import clock
from shared.settings import settings
from shared.tables import Slot, Worker

SILENT_HEARTBEATS = 6


def register(db: Session, worker: Worker) -> Worker:
    """A worker that starts, or whose row is gone."""
    worker.started_at = worker.heartbeat_at = clock(db)
    return db.merge(worker)


def beat(db: Session, worker_id: str, note: str = "") -> bool:
    """The worker's sign of life, with the reason why it claims nothing just now; False: it has no row."""
    worker = db.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).one_or_none()
    if worker is None:
        return False
    worker.heartbeat_at, worker.note, worker.stopped_at = clock(db), note, None
    return True


def drain(db: Session, worker_id: str) -> None:
    """The worker takes no more jobs; its attempts checkpoint and are given back."""
    worker = db.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).one_or_none()
    if worker is not None:
        worker.draining_at = worker.draining_at or clock(db)


def stop(db: Session, worker_id: str) -> None:
    """The worker ends in order."""
    worker = db.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).one_or_none()
    if worker is not None:
        worker.stopped_at = clock(db)


def alive(db: Session) -> Sequence[Worker]:
    """The workers that have shown a sign of life lately, oldest first."""
    silent = timedelta(seconds=SILENT_HEARTBEATS * settings().heartbeat_seconds)
    lately = col(Worker.heartbeat_at) > func.clock_timestamp() - silent
    return db.exec(
        select(Worker).where(lately, col(Worker.stopped_at).is_(None)).order_by(col(Worker.id))
    ).all()


def free_slots(db: Session, slot: Slot | str, besides: str = "") -> int:
    """Slots of that class that no attempt occupies, on live workers that take jobs, but for one worker."""
    counted = text("""
        SELECT w.id, count(a.id) AS taken FROM workers w
          LEFT JOIN attempts a ON a.worker_id = w.id AND a.ended_at IS NULL AND a.slots ->> 0 = :slot
         WHERE w.id = ANY(:workers) GROUP BY w.id""")
    takers = {w.id: w for w in alive(db) if w.draining_at is None and not w.note and w.id != besides}
    rows = db.connection().execute(counted, {"slot": str(slot), "workers": list(takers)}).all()
    return sum(max(0, takers[row.id].slots.get(str(slot), 0) - row.taken) for row in rows)
