"""One attempt at a job, start to end. The only place that knows database, store and trainer at once."""

import json
import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shared import events, jobs, queue, settling, storage
from shared.db import transaction
from shared.errors import Refused
from shared.settings import settings
from shared.tables import Attempt, EventType, Job, Kind, Outcome, Slot, State
from worker import exits, fetching, needs, preflight, results
from worker.cache import remove, size_of, touch
from worker.contact import AWAY
from worker.disk import NoRoom
from worker.exits import Circumstances, Ending
from worker.slots import lock
from worker.store import Store
from worker.tail import Tail, last_lines

if TYPE_CHECKING:
    from worker.machine import Machine
    from worker.zygote import Trainer

log = logging.getLogger(__name__)
T = TypeVar("T")

TURN_SECONDS = 0.1  # between two looks at a trainer
STORE_EVENTS_SECONDS = 0.3
REPORT_SECONDS = 1.0
ATTENTION_SECONDS = 2.0  # a cancel is heard at the next renewal
GRACE_SECONDS = 90.0  # for a checkpoint after SIGTERM, then SIGKILL
END_SECONDS = 30.0  # for the kernel to end a killed trainer
OUT_OF_CONTACT_SECONDS = 900.0  # without the database, then the trainer is stopped
HANGING_STEPS = 20  # times the usual step without a word
OTHERS_PATIENCE = 3  # what does not train speaks less often
PACES = 101  # steps from which the usual one is told
SLOTS_SECONDS = 10.0  # for the further slots of a wide job
WORDS = ("cancel", "overdue", "pause", "drain", "stop")  # of a renewal's answer, the first one counts
PATIENT = (None, "stop")
OUTPUT_LINES = 200
TOLD_BY_A_STAGE = ("detail", "done", "total", "rows_per_second", "tokens_per_second", "eta_seconds")


class LeaseLost(Exception):
    """Another attempt may hold the job already: nothing that this one says counts."""


class Asked(Exception):
    """The attempt is to stop, and no trainer runs that could be told."""


@dataclass
class Trip:
    """An attempt on its way: what it is, and what was seen so far."""

    machine: "Machine"
    job: Job
    attempt: Attempt
    folder: Path
    indices: list[int]  # of its slots
    store: Store
    tail: Tail
    trainer: "Trainer | None" = None
    over: threading.Event = field(default_factory=threading.Event)
    asked: str | None = None  # cancel, overdue, pause, drain, stop, hang
    renewed_at: float = field(default_factory=time.monotonic)
    stored_at: float = 0.0
    reported_at: float = 0.0
    heard_at: float = field(default_factory=time.monotonic)
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=PACES))  # seconds between steps
    stepped_at: float | None = None
    away: bool = False
    progress: dict[str, Any] = field(default_factory=dict)
    stage: str = "fetching"
    reported: tuple[Any, ...] = ()
    error: dict[str, Any] | None = None
    notes: int = 0
    need: needs.Need = field(default_factory=needs.Need)
    cached: list[Path] = field(default_factory=list)  # entries of the machine's cache that it uses

    @property
    def lease_id(self) -> str:
        return self.attempt.lease_id

    @property
    def promised(self) -> int:
        """Bytes of disk that it is still to write."""
        return self.need.fetched + max(0, self.need.written - size_of(self.folder))

    def line(self, level: str, message: str) -> dict[str, Any]:
        """A log line of the worker's own; their numbers count down from -1."""
        self.notes -= 1
        data = {"level": level, "message": message}
        return {"seq": self.notes, "at": time.time(), "type": "log", "step": None, "data": data}

    def touch_cached(self) -> None:
        """What it uses of the cache is not given up."""
        for place in self.cached:
            touch(place)


def run_next(machine: "Machine", slot: Slot, index: int) -> bool:
    """Claims the next job of that slot class and runs an attempt at it; False: there was none."""
    with transaction() as db:
        attempt = jobs.claim(db, machine.id, slot)
        job = db.get_one(Job, attempt.job_id) if attempt else None
    if attempt is None or job is None:
        return False
    more = machine.slots.take_more(slot, len(attempt.slots) - 1, SLOTS_SECONDS)
    if more is None:
        with transaction() as db:
            jobs.release(db, attempt.lease_id, "Another worker of the same machine keeps its slots.")
        return False
    try:
        travel(machine, job, attempt, [index, *more])
    finally:
        for other in more:
            machine.slots.give_back(slot, other, None)
            machine.look_soon(slot)
    return True


def travel(machine: "Machine", job: Job, attempt: Attempt, indices: list[int]) -> None:
    """The attempt in a folder of its own, which is gone afterwards."""
    folder = machine.attempts / attempt.lease_id
    try:
        folder.mkdir(parents=True)
        held = lock(folder / "lock")  # says that the folder is not a dead worker's
    except OSError as wrong:
        with transaction() as db:
            jobs.release(db, attempt.lease_id, f"The worker could not begin: {wrong}")
        remove(folder)
        return
    trip = Trip(
        machine, job, attempt, folder, indices, Store(job, attempt, folder), Tail(folder / "events.jsonl")
    )
    trip.progress = job.progress | ({"step": attempt.start_step} if "step" in job.progress else {})
    try:
        with machine.travelling(trip):
            go(trip)
    finally:
        trip.over.set()
        if trip.trainer is not None:
            trip.trainer.kill()
            with suppress(TimeoutError):  # until then it holds the slots
                trip.trainer.wait(END_SECONDS)
        trip.store.close()
        remove(folder)
        if held is not None:
            os.close(held)


def go(trip: Trip) -> None:
    """The attempt, from what it needs to what became of it."""
    try:
        if trip.job.cancel_requested_at:
            attend(trip, lambda: fetching.fetch_answers(trip))
            ending = exits.ASKED["cancel"]
            finish(trip, ending, attend(trip, lambda: results.collect(trip, ending)))
            return
        attend(trip, lambda: preflight.check(trip), heed)
        brief = attend(trip, lambda: fetching.brief(trip), heed)
        trip.need = replace(trip.need, fetched=0)
        trip.folder.joinpath("attempt.json").write_text(json.dumps(brief))
        memory_kills = exits.memory_kills()
        trainer = attend(trip, lambda: fork(trip), heed)
        code = watch(trip, trainer)
        ending = exits.read(code, trip.job, circumstances(trip, trainer, memory_kills))
        if ending.outcome == Outcome.CRASHED:
            tell_output(trip)
        attend_store(trip)
        result = attend(trip, lambda: results.collect(trip, ending))
        finish(trip, ending, result)
    except LeaseLost:
        log.warning("The lease of %s on %s is lost; what it did is dropped", trip.attempt.id, trip.job.id)
    except Asked:
        finish(trip, exits.unstarted(trip.asked or "drain", trip.job))
    except Refused as no:
        finish(trip, Ending(Outcome.FAILED, no.code, no.message, no.param), results.refused(no))
    except NoRoom as lacking:
        finish(
            trip,
            Ending(Outcome.RELEASED, "no_room", str(lacking)),
            preflight.remembered(trip, lacking.wanted),
        )
    except (storage.Away, storage.Corrupt, OSError) as away:
        log.exception("The attempt %s at %s is given back", trip.attempt.id, trip.job.id)
        finish(trip, exits.given_back(away))
    except Exception as bug:
        log.exception("The attempt %s at %s failed in the worker itself", trip.attempt.id, trip.job.id)
        finish(
            trip, Ending(Outcome.CRASHED, "worker_error", f"The worker failed: {type(bug).__name__}: {bug}")
        )


# --- while something goes on ------------------------------------------------------------------------


def attend(trip: Trip, action: Callable[[], T], each_turn: Callable[[Trip], None] = lambda _: None) -> T:
    """The action's value; meanwhile the lease is renewed. Raises what it raises, LeaseLost."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="attend")
    try:
        future: Future[T] = pool.submit(action)
        while not wait([future], timeout=TURN_SECONDS).done:
            beat(trip)
            each_turn(trip)
        return future.result()
    finally:
        pool.shutdown(wait=False)


def heed(trip: Trip) -> None:
    """Raises Asked where the attempt is to stop."""
    if trip.asked:
        raise Asked


def attend_store(trip: Trip) -> None:
    """Waits until every checkpoint is stored, as long as there is hope. Raises storage.Away, LeaseLost."""
    hope_until = time.monotonic() + OUT_OF_CONTACT_SECONDS
    if trip.store.busy:
        trip.stage = "uploading"
    while trip.store.busy:
        time.sleep(TURN_SECONDS)
        beat(trip)
        if time.monotonic() > hope_until:
            raise storage.Away("The store or the database did not answer for 15 minutes.")
    trip.store.raise_failures()
    if trip.store.lease_lost:
        raise LeaseLost


def fork(trip: Trip) -> "Trainer":
    """The trainer. A zygote that starts may take a while: one that comes after the trip is over is killed."""
    trip.trainer = trainer = trip.machine.fork(trip.folder, trip.job.slot, trip.indices)
    if trip.over.is_set():
        trainer.kill()
    return trainer


def watch(trip: Trip, trainer: "Trainer") -> int:
    """Attends the trainer to its end; returns its exit code. Passes on what is asked of it."""
    kill_at, sufficed = float("inf"), False
    trip.heard_at = time.monotonic()
    while (code := trainer.poll()) is None:
        with suppress(TimeoutError):
            trainer.wait(TURN_SECONDS)
        beat(trip)
        if trip.asked in PATIENT and is_silent(trip):
            trip.asked = "hang"
        if trip.asked == "stop":
            if not sufficed:
                trainer.suffice()
                sufficed = True
        elif trip.asked and kill_at == float("inf"):
            trainer.terminate()
            kill_at = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > kill_at:
            trainer.kill()
    while beat(trip, to_the_end=True):
        time.sleep(0 if not trip.away else TURN_SECONDS)
    return code


def is_silent(trip: Trip) -> bool:
    """Whether it has done nothing for so long that it must hang."""
    least = settings().hang_seconds * (1 if trip.job.kind == Kind.TRAIN else OTHERS_PATIENCE)
    pace = statistics.median(trip.paces) if trip.paces else 0.0
    return time.monotonic() - trip.heard_at > max(least, HANGING_STEPS * pace)


def beat(trip: Trip, *, to_the_end: bool = False) -> bool:
    """One turn: renews the lease when it is time, stores what was said, hears what is asked.

    While the database is away the trainer goes on and its lines wait in their file; the first word after
    is the renewal. True: there may be more lines. Raises LeaseLost, also after 15 minutes without contact.
    """
    moment = time.monotonic()
    if trip.machine.draining.is_set():
        ask(trip, "drain")
    if trip.store.lease_lost:
        raise LeaseLost
    try:
        if trip.away or moment - trip.renewed_at >= min(ATTENTION_SECONDS, settings().heartbeat_seconds):
            renew(trip)
        if to_the_end or moment - trip.stored_at >= STORE_EVENTS_SECONDS:
            return store_events(trip)
    except AWAY as away:
        if not trip.away:
            log.warning("The database is away; the attempt %s goes on: %s", trip.attempt.id, away)
        trip.away = True
        if time.monotonic() - trip.renewed_at > OUT_OF_CONTACT_SECONDS:
            raise LeaseLost from away
        time.sleep(min(1.0, settings().heartbeat_seconds))
        return True
    return False


def renew(trip: Trip) -> None:
    """Renews the lease and hears what is asked of the attempt."""
    with transaction() as db:
        asked = jobs.renew(db, trip.lease_id)
    if asked is None:
        raise LeaseLost
    trip.renewed_at, trip.away = time.monotonic(), False
    ask(trip, next((word for word in WORDS if getattr(asked, word)), None))


def ask(trip: Trip, word: str | None) -> None:
    """Notes what the attempt is to do; only a stop, which takes its time, gives way to something else."""
    if trip.asked in PATIENT and word:
        trip.asked = word


def store_events(trip: Trip) -> bool:
    """Stores the new lines and what follows from them, in one transaction. True: there may be more."""
    fresh = trip.tail.read()
    for event in fresh:
        notice(trip, event)
    moment = time.monotonic()
    trip.stored_at = moment
    due = moment - trip.reported_at >= REPORT_SECONDS or trip.stage != (trip.reported or ("",))[0]
    now_known = (trip.stage, trip.progress)
    if not fresh and (now_known == trip.reported or not due):
        trip.tail.commit()
        return False
    with transaction() as db:
        if due and not jobs.report(db, trip.lease_id, stage=trip.stage, progress=trip.progress):
            raise LeaseLost
        if fresh and not events.append(db, trip.lease_id, trip.job, fresh):
            raise LeaseLost
    if due:
        trip.reported, trip.reported_at = now_known, moment
    trip.tail.commit()
    for event in fresh:
        if event["type"] == EventType.CHECKPOINT:
            trip.store.add(event)
        elif event["type"] == EventType.SHARD:
            trip.store.add_shard(event)
        elif event["type"] == EventType.SAMPLE:
            trip.store.add_media(event)
    return bool(fresh)


def notice(trip: Trip, event: dict[str, Any]) -> None:
    """What a line means for the attempt. Hearing a line twice does no harm."""
    data = event["data"]
    moment = time.monotonic()
    if event["type"] != EventType.LOG:  # words are no work
        trip.heard_at = moment
    if event["type"] == EventType.STAGE and data.get("stage"):
        trip.stage = str(data["stage"])[:100]
        kept = {k: v for k, v in trip.progress.items() if k not in ("detail", "done", "total")}
        trip.progress = kept | {k: data[k] for k in TOLD_BY_A_STAGE if k in data}
    elif event["type"] == EventType.STEP:
        trip.progress = trip.progress | data | {"step": event["step"]}
        if trip.stepped_at is not None:
            trip.paces.append(moment - trip.stepped_at)
        trip.stepped_at = moment
    elif event["type"] == EventType.ERROR:
        trip.error = data


# --- its end ----------------------------------------------------------------------------------------


def circumstances(trip: Trip, trainer: "Trainer", memory_kills: int) -> Circumstances:
    """What is known as the trainer has ended."""
    said = last_lines(trip.folder / "output.log", 1)
    return Circumstances(
        asked=trip.asked,
        error=trip.error,
        zygote_died=not trainer.zygote.alive,
        memory_kills=exits.memory_kills() - memory_kills,
        disk_left=trip.machine.disk.free,
        said=said[-1] if said else "",
    )


def tell_output(trip: Trip) -> None:
    """The last lines that the dead trainer printed, as log lines."""
    lines = [trip.line("error", line) for line in last_lines(trip.folder / "output.log", OUTPUT_LINES)]
    persist(trip, lambda: tell(trip, lines))


def tell(trip: Trip, lines: list[dict[str, Any]]) -> None:
    """Stores lines of the worker's own."""
    with transaction() as db:
        if not events.append(db, trip.lease_id, trip.job, lines):
            raise LeaseLost


def finish(trip: Trip, ending: Ending, result: results.Result | None = None) -> None:
    """Says what became of the attempt, with its results in the same transaction, and wakes who waited."""

    def say() -> tuple[State | None, set[Slot]]:
        with transaction() as db:
            if jobs.held_job(db, trip.lease_id) is None:
                return None, set()
            known = result.record(db) if result else {}
            jobs.report(db, trip.lease_id, progress=trip.progress)
            state = jobs.finish(
                db,
                trip.lease_id,
                ending.outcome,
                reason_code=ending.reason_code,
                reason=ending.reason,
                param=ending.param,
                **known,
            )
            return state, settling.woken_by(db, trip.job.id)

    try:
        state, woken = persist(trip, say)
    except LeaseLost:
        return
    if state is None:
        log.warning("The end of %s came too late: the lease was lost", trip.attempt.id)
    for slot in woken:
        trip.machine.look_soon(slot)
        queue.wake(slot)


def persist(trip: Trip, action: Callable[[], T]) -> T:
    """Does it in the database, again and again while that is away. Raises LeaseLost after 15 minutes."""
    while True:
        try:
            return action()
        except AWAY:
            log.warning("The database is away; the end of %s waits", trip.attempt.id)
            if time.monotonic() - trip.renewed_at > OUT_OF_CONTACT_SECONDS:
                raise LeaseLost from None
            time.sleep(1.0)
