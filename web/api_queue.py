"""/v1/queue, /v1/caps, /v1/workers: who may use how much, and the workers; operators set and drain."""

from typing import Any, Literal

from flask import Blueprint, Response
from pydantic import Field
from sqlmodel import Session

from shared import caps, workers
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Slot, Worker
from web import queue, waiting, wire
from web.shapes import Page, Shape

api = Blueprint("api_queue", __name__, url_prefix="/v1")


class Share(Shape):
    """What a team occupies of a class of slot, may occupy at once, and used."""

    occupied: int
    cap: int | None = Field(description="null: none is set.")
    used_seconds: float = Field(description="Seconds of slots within the last day.")


class Shares(Shape):
    """A team's share of each class of slot; without a team that of all together."""

    object: Literal["queue.share"] = "queue.share"
    id: str | None = Field(description="The team; null: all teams together.")
    name: str
    compute: Share
    light: Share


class SetCaps(wire.Request):
    """The most slots at once: a number, or null to lift the cap; a class that is not named stays as it is."""

    team: str | None = Field(None, description="Id or name; all teams together where not given.")
    compute: int | None = Field(None, ge=0, le=caps.MOST)
    light: int | None = Field(None, ge=0, le=caps.MOST)


class WorkerState(Shape):
    """A worker that is alive."""

    id: str
    object: Literal["worker"] = "worker"
    host: str
    version: str
    status: Literal["takes_jobs", "draining", "not_claiming"]
    note: str = Field(description="Why it claims nothing, if so.")
    slots: dict[str, int]
    occupied: dict[str, int]
    devices: list[dict[str, Any]]
    cpus: int
    disk: dict[str, int] = Field(
        description="Bytes: free, floor (kept free), total, room (to be had by a job)."
    )
    heartbeat_at: int | None


@api.get("/queue")
@wire.operation(Page[Shares])
def index() -> Response:
    """List what the team and all teams together occupy, may occupy and used; to an operator every team."""
    with transaction() as db:
        return told(db)


@api.post("/caps")
@wire.operation(Page[Shares], body=SetCaps)
def put() -> Response:
    """Set or lift caps, as an operator. What runs already goes on."""
    asked = wire.body(SetCaps)
    named = [slot for slot in Slot if slot.value in asked.model_fields_set]
    if not named:
        raise Refused(
            "Say how many slots: «compute» or «light».", param="compute", code="missing_required_parameter"
        )
    with transaction() as db:
        team_id = caps.team_named(db, asked.team).id if asked.team else None
        for slot in named:
            caps.put(db, slot, getattr(asked, slot.value), team_id)
    queue.wake()
    with transaction() as db:
        return told(db)


@api.get("/workers")
@wire.operation(Page[WorkerState])
def workers_alive() -> Response:
    """List the workers that are alive."""
    with transaction() as db:
        alive = workers.alive(db)
        busy = {slot.value: workers.taken(db, slot, [w.id for w in alive]) for slot in Slot}
        return wire.listed(
            [shape(w, {name: taken[w.id] for name, taken in busy.items()}) for w in alive], False
        )


@api.post("/workers/<worker_id>/drain")
@wire.operation(WorkerState)
def drain(worker_id: str) -> Response:
    """No more jobs for that worker, as an operator; what it does is saved and goes on elsewhere."""
    with transaction() as db:
        return one(db, workers.drain(db, worker_id))


@api.post("/workers/<worker_id>/undrain")
@wire.operation(WorkerState)
def undrain(worker_id: str) -> Response:
    """That worker takes jobs again, as an operator."""
    with transaction() as db:
        answer = one(db, workers.undrain(db, worker_id))
    queue.wake()
    return answer


def told(db: Session) -> Response:
    """The shares that the caller may see, the own team's first, all together last."""
    by_slot = {slot.value: waiting.usage(db, slot) for slot in Slot}
    return wire.listed([shares(team_id, name, by_slot) for team_id, name in queue.teams_seen(db)], False)


def shares(team_id: str | None, name: str, by_slot: dict[str, Any]) -> Shares:
    """A team's shares on the wire."""
    plain = {
        slot: Share(occupied=of.occupied, cap=of.cap, used_seconds=round(of.used, 1))
        for slot, of in ((slot, usage(team_id)) for slot, usage in by_slot.items())
    }
    return Shares(id=team_id, name=name, compute=plain["compute"], light=plain["light"])


def one(db: Session, worker: Worker) -> Response:
    """One worker."""
    busy = {slot.value: workers.taken(db, slot, [worker.id])[worker.id] for slot in Slot}
    return wire.answer(shape(worker, busy))


def shape(worker: Worker, occupied: dict[str, int]) -> WorkerState:
    """A worker on the wire."""
    status = "draining" if worker.draining_at else "not_claiming" if worker.note else "takes_jobs"
    return WorkerState(
        id=worker.id,
        host=worker.host,
        version=worker.version,
        status=status,
        note=worker.note,
        slots=worker.slots,
        occupied=occupied,
        devices=worker.devices,
        cpus=worker.cpus,
        disk=worker.disk,
        heartbeat_at=wire.seconds(worker.heartbeat_at),
    )
