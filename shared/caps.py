"""Caps: the most slots that a team, or everybody together, may occupy at once. Set by operators.

`shared.jobs.claim` keeps them, under the slot class's lock: a lowered cap ends nothing that runs.
"""

from collections.abc import Sequence

from sqlalchemy import text
from sqlmodel import Session, col, select

from shared.errors import Refused
from shared.tables import Cap, Slot, Team

MOST = 10_000


def lock(db: Session, slot: Slot | str, seconds: float | None = None) -> None:
    """Until the commit nobody else claims jobs of that class or changes its caps. Who waits has a place in a line,
    and loses it with an OperationalError after these seconds, or as for any lock.
    """
    statement = text("""
        SELECT set_config('lock_timeout', coalesce(:wait, before), true),
               pg_advisory_xact_lock(hashtext('claim'), hashtext(:slot)),
               set_config('lock_timeout', before, true)
          FROM current_setting('lock_timeout') AS before""")
    wait = None if seconds is None else f"{seconds:g}s"
    db.connection().execute(statement, {"slot": str(slot), "wait": wait})


def put(db: Session, slot: Slot, slots: int | None, team_id: str | None = None) -> None:
    """Sets the cap of a team, or without one of all teams together; None lifts it. Raises Refused."""
    if slots is not None and not 0 <= slots <= MOST:
        raise Refused(f"A cap is a whole number from 0 to {MOST:,}, or none.", param="slots")
    lock(db, slot)
    known = db.exec(
        select(Cap).where(Cap.slot == slot, col(Cap.team_id).is_not_distinct_from(team_id))
    ).first()
    if slots is None:
        if known is not None:
            db.delete(known)
    elif known is not None:
        known.slots = slots
    else:
        db.add(Cap(team_id=team_id, slot=slot, slots=slots))
    db.flush()


def of(db: Session, slot: Slot | str) -> dict[str | None, int]:
    """{team: its cap}; under None that of all teams together."""
    return {cap.team_id: cap.slots for cap in db.exec(select(Cap).where(Cap.slot == slot))}


def read(value: str) -> int | None:
    """A cap as typed: a number, or nothing or «none» for none. Raises Refused."""
    typed = value.strip().lower()
    if typed in ("", "none"):
        return None
    if not typed.isdecimal():
        raise Refused(f"A cap is a whole number or «none»; «{value}» is neither.", param="slots")
    return int(typed)


def occupied(db: Session, slot: Slot | str) -> dict[str, int]:
    """{team: slots of that class that its attempts occupy now}."""
    counted = text("""
        SELECT team_id, sum(jsonb_array_length(slots)) AS slots FROM attempts
         WHERE ended_at IS NULL AND slots ->> 0 = :slot GROUP BY team_id""")
    return {row.team_id: int(row.slots) for row in db.connection().execute(counted, {"slot": str(slot)})}


def team_named(db: Session, name: str) -> Team:
    """The team of that name or id. Raises Refused."""
    found: Sequence[Team] = db.exec(select(Team).where((Team.name == name.strip()) | (Team.id == name))).all()
    if not found:
        raise Refused(f"There is no team «{name}».", param="team", code="not_found", status=404)
    return found[0]
