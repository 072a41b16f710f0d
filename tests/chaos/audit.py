"""What the database itself writes down while things go wrong: every change of a job's state, every stored
checkpoint, and every row of an attempt that no longer held its job.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from shared.db import transaction

WATCH = """
CREATE TABLE IF NOT EXISTS chaos_audit (
    id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id text NOT NULL, what text NOT NULL, was text, now text, step int);

CREATE OR REPLACE FUNCTION chaos_state() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_audit (job_id, what, was, now)
    VALUES (NEW.id, 'state', CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state);
    RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER chaos_state_in AFTER INSERT ON jobs
    FOR EACH ROW EXECUTE FUNCTION chaos_state();
CREATE OR REPLACE TRIGGER chaos_state_of AFTER UPDATE ON jobs
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION chaos_state();

CREATE OR REPLACE FUNCTION chaos_holder() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NOT EXISTS (SELECT FROM attempts a JOIN jobs j ON j.attempt_id = a.id
                    WHERE a.lease_id = NEW.lease_id AND a.ended_at IS NULL) THEN
        INSERT INTO chaos_audit (job_id, what, was, now, step)
        VALUES (NEW.job_id, 'stale event', NEW.lease_id, NEW.type, NEW.step);
    END IF;
    RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER chaos_holder_of AFTER INSERT ON events
    FOR EACH ROW EXECUTE FUNCTION chaos_holder();

CREATE OR REPLACE FUNCTION chaos_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.deleted_at IS NULL THEN
        INSERT INTO chaos_audit (job_id, what, was, now, step)
        VALUES (NEW.job_id, CASE WHEN EXISTS (SELECT FROM attempts a JOIN jobs j ON j.attempt_id = a.id
                                               WHERE a.id = NEW.attempt_id AND a.ended_at IS NULL)
                                 THEN 'checkpoint' ELSE 'stale checkpoint' END,
                NEW.attempt_id, NEW.prefix, NEW.step);
    END IF;
    RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER chaos_checkpoint_of AFTER INSERT OR UPDATE OF prefix ON checkpoints
    FOR EACH ROW EXECUTE FUNCTION chaos_checkpoint();
"""


@dataclass(frozen=True)
class Line:
    """One thing that happened to a job. `was` and `now` are states, or what the row named."""

    at: datetime
    job_id: str
    what: str
    was: str | None
    now: str | None
    step: int | None


def watch() -> None:
    """From now on the database writes down what happens."""
    with transaction() as db:
        db.connection().execute(text(WATCH))


def of(job_ids: list[str]) -> list[Line]:
    """What happened to these jobs, in order."""
    told = text(
        "SELECT at, job_id, what, was, now, step FROM chaos_audit WHERE job_id = ANY(:jobs) ORDER BY id"
    )
    with transaction() as db:
        return [Line(*row) for row in db.connection().execute(told, {"jobs": job_ids}).all()]


def story(job_ids: list[str]) -> str:
    """The same and the timelines, to be printed with a failure."""
    lines = [
        f"{line.at:%H:%M:%S.%f} {line.job_id} {line.what}: {line.was} → {line.now} {line.step or ''}"
        for line in of(job_ids)
    ]
    told = text("""
        SELECT at, job_id, state, actor, reason FROM transitions WHERE job_id = ANY(:jobs) ORDER BY id""")
    with transaction() as db:
        rows = db.connection().execute(told, {"jobs": job_ids}).all()
    return "\n".join(
        lines + [f"{r.at:%H:%M:%S.%f} {r.job_id} {r.state} by {r.actor}: {r.reason}" for r in rows]
    )
