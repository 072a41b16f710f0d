"""What attempts report, line by line: appended fenced by the lease, read after a cursor, thinned for charts.

A line is known by (job, lease, seq): appending it twice stores it once. One attempt holds a job at a
time and appends in order, so that `Event.id` orders a job's events and serves as the cursor. An attempt
that resumes repeats steps of the one before; charts show the newest word about each step.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from shared import leases
from shared.tables import Event, EventType, Job

TOTAL_POINTS = 500
A_BUCKET = 100  # events looked at for each bucket of a chart, so that its cost does not grow with history
LONGEST_MESSAGE = 8192
CURVES = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "examples_per_second",
    "epoch",
    "memory_bytes",
)


def append(db: Session, lease_id: str, job: Job, events: Iterable[dict[str, Any]]) -> bool:
    """Stores a batch of lines as the engine wrote them; False: the lease is lost and nothing is stored.

    A line: {"seq": int from 1, "at": unix seconds, "type": str, "step": int | None, "data": {}}.
    """
    if leases.held(db, lease_id) is None:
        return False
    rows = [row(lease_id, job, event) for event in events]
    if rows:
        db.exec(insert(Event).values(rows).on_conflict_do_nothing())
    return True


def row(lease_id: str, job: Job, event: dict[str, Any]) -> dict[str, Any]:
    """The event's row."""
    data = event.get("data") or {}
    if isinstance(data.get("message"), str) and len(data["message"]) > LONGEST_MESSAGE:
        data = data | {"message": data["message"][:LONGEST_MESSAGE] + " …"}
    return {
        "job_id": job.id,
        "lease_id": lease_id,
        "team_id": job.team_id,
        "seq": event["seq"],
        "at": datetime.fromtimestamp(event["at"], UTC),
        "type": EventType(event["type"]),
        "step": event.get("step"),
        "data": storable(data),
    }


def storable(value: Any) -> Any:
    """The same without what Postgres cannot keep as text: NUL and halves of surrogate pairs."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(str(name)): storable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [storable(one) for one in value]
    return value


def last_seq(db: Session, job_id: str, lease_id: str) -> int:
    """The last line of that attempt which is stored; 0: none."""
    stored = text("SELECT coalesce(max(seq), 0) FROM events WHERE job_id = :job AND lease_id = :lease")
    return db.connection().execute(stored, {"job": job_id, "lease": lease_id}).scalar_one()


def after(
    db: Session,
    job_id: str,
    cursor: int = 0,
    types: Iterable[EventType | str] | None = None,
    limit: int = 1000,
) -> Sequence[Event]:
    """A job's events with an id above `cursor`, oldest first. The next cursor is the last one's id."""
    wanted = select(Event).where(Event.job_id == job_id, col(Event.id) > cursor)
    if types is not None:
        wanted = wanted.where(col(Event.type).in_([EventType(t) for t in types]))
    return db.exec(wanted.order_by(col(Event.id)).limit(limit)).all()


def newest(db: Session, job_id: str, event_type: EventType, limit: int = 1) -> Sequence[Event]:
    """The last events of a type, newest first."""
    wanted = select(Event).where(Event.job_id == job_id, Event.type == event_type)
    return db.exec(wanted.order_by(col(Event.id).desc()).limit(limit)).all()


def series(db: Session, job_id: str, points: int = TOTAL_POINTS) -> dict[str, dict[str, list]]:
    """The curves of a job as aligned columns, at most `points` each, whatever the length of its history.

    {"train": {"step": [...], "loss": [...], "learning_rate": [...], …}, "valid": {"step": [...],
    "<metric>": [...]}, "base": {"<metric>": value}}. A missing value is None. Each stretch of steps keeps
    its lowest and its highest loss; the first and the last step are always there.
    """
    train = thinned(db, job_id, EventType.STEP, points, lowest="data->>'loss'")
    curves: dict[str, list] = {"step": [r.step for r in train]}
    for name in CURVES:
        values = [r.data.get(name) for r in train]
        if any(value is not None for value in values):
            curves[name] = values
    measured = thinned(db, job_id, EventType.EVAL, points, lowest="step")
    tuned = [r for r in measured if r.data.get("which") == "tuned"]
    base = next((r.data["metrics"] for r in measured if r.data.get("which") == "base"), {})
    names = sorted({name for r in tuned for name in r.data["metrics"]})
    valid: dict[str, list] = {"step": [r.step for r in tuned]}
    valid |= {name: [r.data["metrics"].get(name) for r in tuned] for name in names}
    return {"train": curves, "valid": valid, "base": base}


def thinned(db: Session, job_id: str, event_type: EventType, points: int, *, lowest: str) -> Sequence[Any]:
    """At most `points` events with a step, in order: from each bucket the lowest and the highest.

    The buckets are found by an index and of each at most `A_BUCKET` events are looked at.
    """
    chosen = text(f"""
        WITH span AS (
            SELECT (SELECT step FROM events WHERE job_id = :job AND type = :type AND step IS NOT NULL
                     ORDER BY step LIMIT 1) AS first,
                   (SELECT step FROM events WHERE job_id = :job AND type = :type AND step IS NOT NULL
                     ORDER BY step DESC LIMIT 1) AS last
        ), sized AS (
            SELECT first, last, greatest(1, ceil((last - first + 1) / :buckets ::numeric))::int AS width FROM span
        ), looked AS (
            SELECT start, e.* FROM sized, generate_series(first, last, width) AS start,
                   LATERAL (SELECT DISTINCT ON (step) step, id, data FROM (
                                SELECT step, id, data FROM events
                                 WHERE job_id = :job AND type = :type AND step >= start AND step < start + width
                                 ORDER BY step LIMIT :look) few
                             ORDER BY step, id DESC) e
        ), ranked AS (
            SELECT step, data,
                   row_number() OVER (PARTITION BY start ORDER BY ({lowest})::float8 NULLS LAST, step) AS low,
                   row_number() OVER (PARTITION BY start ORDER BY ({lowest})::float8 DESC NULLS LAST, step) AS high
              FROM looked)
        SELECT step, data FROM ranked, span
         WHERE low = 1 OR high = 1 OR step = first OR step = last
        UNION
        SELECT step, data FROM (SELECT step, data FROM events WHERE job_id = :job AND type = :type
                                   AND step = (SELECT last FROM span) ORDER BY id DESC LIMIT 1) ending
         ORDER BY step""")  # noqa: S608 - `lowest` is one of this file's expressions
    buckets = max(1, (points - 2) // 2)
    known = {"job": job_id, "type": event_type.value, "buckets": buckets, "look": A_BUCKET}
    return db.connection().execute(chosen, known).all()


def samples(db: Session, job_id: str, limit: int = 100) -> list[dict[str, Any]]:
    """The model's answers to held-out rows, oldest first: [{"step", "samples": [{prompt, expected, answer}]}]."""
    found = {e.step: e.data["samples"] for e in reversed(newest(db, job_id, EventType.SAMPLE, limit))}
    return [{"step": step, "samples": found[step]} for step in sorted(found, key=lambda step: step or 0)]


def logs(db: Session, job_id: str, limit: int = 200) -> list[dict[str, Any]]:
    """The last lines that it said, oldest first: [{"id", "at", "step", "level", "message"}]."""
    told = select(Event).where(Event.job_id == job_id, col(Event.type).in_([EventType.LOG, EventType.ERROR]))
    last = db.exec(told.order_by(col(Event.id).desc()).limit(limit)).all()
    return [
        {
            "id": e.id,
            "at": e.at,
            "step": e.step,
            "level": "error" if e.type == EventType.ERROR else e.data.get("level", "info"),
            "message": e.data.get("message", ""),
        }
        for e in reversed(last)
    ]
