"""team cap, team list, workers list, drain, undrain: for operators, on the database of the stack that the
environment or BURNISH_HOME names.
"""

import argparse

from shared.commands.running import aim
from shared.errors import Refused


def cap(arguments: argparse.Namespace) -> None:
    """Set or lift caps, then show them."""
    from shared import caps
    from shared.db import transaction
    from shared.tables import Slot

    if bool(arguments.team) == arguments.all:
        raise Refused("Name a team, or say --all for all teams together.")
    wanted = {slot: getattr(arguments, slot.value) for slot in Slot}
    if all(value is None for value in wanted.values()):
        raise Refused("Say how many slots: --compute 2, --light none.")
    aim()
    with transaction() as db:
        team_id = None if arguments.all else caps.team_named(db, arguments.team).id
        for slot, value in wanted.items():
            if value is not None:
                caps.put(db, slot, caps.read(value), team_id)
    teams(arguments)


def teams(_: argparse.Namespace) -> None:
    """A line a team: slots occupied, of its cap, and hours used within the last day."""
    from sqlmodel import select

    from shared import caps, ranking
    from shared.db import transaction
    from shared.tables import Slot, Team

    aim()
    with transaction() as db:
        named = {team.id: team.name for team in db.exec(select(Team).order_by(Team.name))}
        for slot in Slot:
            occupied, allowed, used = caps.occupied(db, slot), caps.of(db, slot), ranking.used(db, slot.value)
            print(f"{slot.value} slots: occupied, cap, hours used within a day")
            for team_id, name in named.items():
                hours = used.get(team_id, 0.0) / 3600
                print(
                    f"  {name:<30} {occupied.get(team_id, 0):>4} {said(allowed.get(team_id)):>6} {hours:>8.1f}"
                )
            together, hours = sum(occupied.values()), sum(used.values()) / 3600
            print(f"  {'all teams together':<30} {together:>4} {said(allowed.get(None)):>6} {hours:>8.1f}")


def said(cap: int | None) -> str:
    """A cap in a column."""
    return "none" if cap is None else str(cap)


def index(_: argparse.Namespace) -> None:
    """A line a worker."""
    from shared import workers
    from shared.db import transaction
    from shared.tables import Slot

    aim()
    with transaction() as db:
        alive = workers.alive(db)
        busy = {slot: workers.taken(db, slot, [w.id for w in alive]) for slot in Slot}
        for worker in alive:
            slots = ", ".join(
                f"{busy[slot][worker.id]} of {worker.slots.get(slot.value, 0)} {slot.value}" for slot in Slot
            )
            devices = ", ".join(device["name"] for device in worker.devices) or f"{worker.cpus} CPU cores"
            state = "draining" if worker.draining_at else (f"{worker.note}." if worker.note else "takes jobs")
            print(f"{worker.id}  {worker.host}  {worker.version}  {slots}  {devices}  {state}")
    if not alive:
        print("No worker is alive.")


def drain(arguments: argparse.Namespace) -> None:
    """No more jobs for that worker."""
    from shared import workers
    from shared.db import transaction

    aim()
    with transaction() as db:
        worker = workers.drain(db, arguments.id)
    print(f"The worker on {worker.host} saves what it does, gives it back and takes no more jobs.")


def undrain(arguments: argparse.Namespace) -> None:
    """It takes jobs again; what waits is found at its next look."""
    from shared import workers
    from shared.db import transaction

    aim()
    with transaction() as db:
        worker = workers.undrain(db, arguments.id)
    print(f"The worker on {worker.host} takes jobs again.")
