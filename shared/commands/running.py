"""up, demo, web, worker, beat, migrate."""

import argparse
import os
from contextlib import suppress
from typing import NoReturn

from shared.stack import Running, beat_command, home_folder, running, web_command, worker_command


def port_of(arguments: argparse.Namespace) -> int:
    """--port, else PORT, else 8000."""
    return arguments.port or int(os.environ.get("PORT") or 8000)


def up(arguments: argparse.Namespace) -> int:
    """The whole stack, until a signal comes."""
    try:
        up_there = running(home_folder(), port=port_of(arguments), host=arguments.host)
        with up_there as stack, suppress(KeyboardInterrupt):
            print(hint(), flush=True)
            stack.stay()
    except Running as other:
        print(f"Burnish is already running at {other}")
    return 0


def hint() -> str:
    """What to do next."""
    from sqlmodel import select

    from shared.db import transaction
    from shared.tables import User

    with transaction() as db:
        somebody = db.exec(select(User.id).limit(1)).first()
    if somebody:
        return "Ctrl-C stops it."
    return "Make the first account with: burnish user add you@example.com --team Team\nCtrl-C stops it."


def demo(arguments: argparse.Namespace) -> int:
    """The stack with the demo job; over a stack that is up already, the job alone."""
    from shared.demo import show

    try:
        with running(home_folder(), port=port_of(arguments), host=arguments.host) as stack:
            good = show(stack.url, tend=stack.tend)
            if arguments.once:
                return 0 if good else 1
            with suppress(KeyboardInterrupt):
                print("The stack stays up. Ctrl-C stops it.", flush=True)
                stack.stay()
            return 0
    except Running as other:
        print(f"Burnish is already running at {other}")
        return 0 if show(str(other)) else 1


def web(arguments: argparse.Namespace) -> NoReturn:
    """This process becomes gunicorn."""
    ready()
    become(web_command(arguments.host, port_of(arguments), arguments.processes))


def worker(_: argparse.Namespace) -> NoReturn:
    """This process becomes Celery's worker."""
    ready()
    become(worker_command())


def beat(_: argparse.Namespace) -> NoReturn:
    """This process becomes Celery's clock."""
    ready()
    become(beat_command())


def ready() -> None:
    """Settings that hold and a database of this version's revision. Raises RuntimeError."""
    from shared import migrate as migrations
    from shared.errors import Refused

    aim()
    try:
        migrations.require_current()
    except RuntimeError as old:
        raise Refused(str(old)) from old


def aim() -> None:
    """Point the settings at the stack that the environment or the data folder names."""
    from shared.stack import Home, use

    use(Home(home_folder()))


def become(command: list[str]) -> NoReturn:
    """Replace this process, so that signals reach the program itself."""
    os.environ["BURNISH_HOME"] = str(home_folder())
    home_folder().mkdir(parents=True, exist_ok=True)
    os.chdir(home_folder())
    os.execv(command[0], command)  # noqa: S606 - our own programs


def migrate(_: argparse.Namespace) -> None:
    """Migrations, the known base models, the bucket: all of them may be there already."""
    from shared import migrate as migrations
    from shared.stack import prepare

    aim()
    prepare()
    print(f"The database is at revision {migrations.current()}.")
