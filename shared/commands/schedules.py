"""schedule add, list, on, off, runs, delete."""

import argparse
import time

from shared.client import connect
from shared.commands import knobs
from shared.commands.datasets import id_of


def add(arguments: argparse.Namespace) -> None:
    """A new schedule; its id is the last line."""
    from shared import recipe as recipes

    recipe = recipes.get(arguments.recipe)
    asked = knobs.read(recipe, arguments.rest)
    api = connect()
    body = {
        "name": arguments.name,
        "cron": arguments.cron,
        "zone": arguments.zone,
        "dataset": id_of(api, arguments.dataset),
        "model": arguments.base_model or recipe.default_base_model,
        "method": knobs.method(recipe, asked),
    }
    if arguments.processes is not None:
        body["resources"] = {"processes": arguments.processes}
    schedule = api.post("/schedules", body)
    print(f"Next: {moment(schedule['next_at'])}; its page: {schedule['x_page']}")
    print(schedule["id"])


def index(_: argparse.Namespace) -> None:
    """Every schedule, a line each."""
    for one in connect().every("/schedules"):
        state = moment(one["next_at"]) if one["active"] else "off"
        print(f"{one['id']}  {one['cron']:<16} {one['zone']:<16} {state:<17} {one['name']}")


def on(arguments: argparse.Namespace) -> None:
    """Let it submit jobs."""
    turn(arguments.id, active=True)


def off(arguments: argparse.Namespace) -> None:
    """Let it rest."""
    turn(arguments.id, active=False)


def turn(schedule_id: str, *, active: bool) -> None:
    one = connect().post(f"/schedules/{schedule_id}", {"active": active})
    print(f"«{one['name']}» is {'on' if one['active'] else 'off'}.")


def runs(arguments: argparse.Namespace) -> None:
    """Its nominal times, newest first."""
    for run in connect().get(f"/schedules/{arguments.id}/runs")["data"]:
        print(f"{run['nominal']}  {run['outcome']:<10} {run['job_id'] or run['reason']}")


def delete(arguments: argparse.Namespace) -> None:
    """End it; its jobs stay."""
    connect().ask("DELETE", f"/schedules/{arguments.id}")
    print("Deleted.")


def moment(at: int | None) -> str:
    """A time of this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "never"
