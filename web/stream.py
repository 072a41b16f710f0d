"""Server-sent events of a job page: one poller a process reads the database for all its followers.

`GET /jobs/<id>/events?after=N` streams what came after event N (or after Last-Event-ID): `event:
event` with one event as JSON, `event: job` where the job itself has changed. Comments keep the
connection alive; a stream ends after a while and the browser comes again, so that a person who has
left the team is not followed for long. With `once=1`, or where all places are taken, one answer in
JSON says the same: the page polls then.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Blueprint, Response, jsonify, request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, col, select

from shared import events
from shared.db import transaction
from shared.tables import FINAL, Event, Job
from web.jobs import own

log = logging.getLogger(__name__)
pages = Blueprint("stream", __name__)

INTERVAL = 0.5  # seconds between two looks at the database
KEEP_ALIVE = 10
LONGEST = 60  # seconds of one stream; the browser reconnects with Last-Event-ID
PLACES = 600  # streams at once in a process: each holds a thread, of which some stay for everything else
BATCH = 500
AWAY = (DBAPIError, PoolTimeout)
WAITING = 1000  # messages that a slow follower may be behind before it is let go


@dataclass(eq=False)
class Follower:
    """One open stream."""

    job_id: str
    inbox: queue.Queue = field(default_factory=lambda: queue.Queue(WAITING))
    behind: bool = False  # it did not read: its stream ends, and the browser comes again for what it missed


class Poller:
    """Reads new events of every followed job and hands them to the followers, in memory."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.followers: dict[str, set[Follower]] = {}
        self.cursors: dict[str, int] = {}
        self.marks: dict[str, str] = {}
        self.thread: threading.Thread | None = None

    def join(self, follower: Follower, cursor: int) -> bool:
        """Follow a job; False where every place is taken.

        What came between `cursor` and where the poller stands, the follower reads by itself.
        """
        with self.lock:
            if sum(len(those) for those in self.followers.values()) >= PLACES:
                return False
            self.followers.setdefault(follower.job_id, set()).add(follower)
            self.cursors.setdefault(follower.job_id, cursor)
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self.run, name="events", daemon=True)
                self.thread.start()
        return True

    def leave(self, follower: Follower) -> None:
        """The stream is closed."""
        with self.lock:
            those = self.followers.get(follower.job_id, set())
            those.discard(follower)
            if not those:
                for table in (self.followers, self.cursors, self.marks):
                    table.pop(follower.job_id, None)

    def run(self) -> None:
        """Look again and again while anybody follows."""
        while True:
            with self.lock:
                if not self.followers:
                    self.thread = None
                    return
                cursors = dict(self.cursors)
            try:
                self.look(cursors)
            except AWAY:
                time.sleep(1)  # the database is away; followers are kept alive meanwhile
            time.sleep(INTERVAL)

    def look(self, cursors: dict[str, int]) -> None:
        """One round: the jobs' rows in one query, then the events of each that has any."""
        with transaction() as db:
            rows = db.exec(select(Job).where(col(Job.id).in_(cursors))).all()
            for job in rows:
                found = list(events.after(db, job.id, cursors[job.id], limit=BATCH))
                told = summary(job)
                self.hand_out(job.id, found, told)

    def hand_out(self, job_id: str, found: list[Event], told: dict[str, Any]) -> None:
        """To each follower of the job; one that does not read is let go."""
        with self.lock:
            messages = [("event", event.id, as_json(event)) for event in found]
            if found and job_id in self.cursors:
                self.cursors[job_id] = max(self.cursors[job_id], found[-1].id or 0)
            state = json.dumps(told)
            if self.marks.get(job_id) != state:
                self.marks[job_id] = state
                messages.append(("job", None, state))
            for follower in self.followers.get(job_id, ()):
                for message in messages:
                    if follower.inbox.full():
                        follower.behind = True
                        break
                    follower.inbox.put_nowait(message)


POLLER = Poller()


@pages.get("/jobs/<job_id>/events")
def follow(job_id: str) -> Response:
    """The stream, or one answer of it (`once=1`)."""
    cursor = asked_cursor()
    with transaction() as db:
        job = own(db, job_id)
        if "once" in request.args:
            return jsonify(answer(db, job, cursor))
        first = summary(job)
    follower = Follower(job_id)
    if not POLLER.join(follower, cursor):
        return Response(status=204)  # tells an EventSource to stop; the page polls from now on
    stream = Response(messages(follower, cursor, first), mimetype="text/event-stream")
    stream.headers["X-Accel-Buffering"] = "no"
    return stream


def asked_cursor() -> int:
    """Where the follower stands: the last event that it has seen."""
    sent = request.headers.get("Last-Event-ID") or request.args.get("after", "0")
    return int(sent) if sent.isdigit() else 0


def messages(follower: Follower, cursor: int, first: dict[str, Any]) -> Iterator[str]:
    """What goes down the wire, each event once and in order."""
    ends = time.monotonic() + LONGEST
    try:
        yield "retry: 1000\n\n" + message("job", None, json.dumps(first))
        for event in missed(follower.job_id, cursor):
            cursor = event.id or cursor
            yield message("event", event.id, as_json(event))
        while not follower.behind and (left := ends - time.monotonic()) > 0:
            try:
                kind, number, data = follower.inbox.get(timeout=min(KEEP_ALIVE, left))
            except queue.Empty:
                yield ": still here\n\n"
                continue
            if number is not None and number <= cursor:
                continue  # read already while catching up
            cursor = number if number is not None else cursor
            yield message(kind, number, data)
    except AWAY:
        log.warning("The database is away; the followers of %s come again", follower.job_id)
    finally:
        POLLER.leave(follower)


def missed(job_id: str, cursor: int) -> Iterator[Event]:
    """Everything stored after the cursor, in batches, each in a transaction of its own."""
    while True:
        with transaction() as db:
            found = events.after(db, job_id, cursor, limit=BATCH)
        yield from found
        if len(found) < BATCH:
            return
        cursor = found[-1].id or cursor


def message(kind: str, number: int | None, data: str) -> str:
    """One server-sent event; `data` is JSON and so has no line breaks."""
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {kind}\ndata: {data}\n\n"


def answer(db: Session, job: Job, cursor: int) -> dict[str, Any]:
    """The same for a page that polls."""
    found = events.after(db, job.id, cursor, limit=BATCH)
    return {"events": [json.loads(as_json(event)) for event in found], "job": summary(job)}


def as_json(event: Event) -> str:
    """An event as the page reads it."""
    told = {
        "id": event.id,
        "at": event.at.isoformat(timespec="milliseconds"),
        "type": event.type.value,
        "step": event.step,
        "data": event.data,
    }
    return json.dumps(told, ensure_ascii=True)


def summary(job: Job) -> dict[str, Any]:
    """What makes the page worth fetching again when it changes: `mark`; and whether it has ended."""
    asked = bool(job.cancel_requested_at), bool(job.pause_requested_at), bool(job.stop_requested_at)
    mark = f"{job.state}/{job.stage}/{job.attempts}/{asked}/{job.best_checkpoint_id}"
    return {"state": job.state.value, "stage": job.stage, "final": job.state in FINAL, "mark": mark}
