"""user add, token create: on the database of the stack that the environment or BURNISH_HOME names."""

import argparse
from typing import TYPE_CHECKING

from shared.commands.running import aim

if TYPE_CHECKING:
    from sqlmodel import Session


def add_user(arguments: argparse.Namespace) -> None:
    """Prints the one-time password alone on the last line."""
    from shared import teams
    from shared.db import transaction
    from shared.settings import settings

    aim()
    with transaction() as db:
        user, password = teams.add_user(
            db, arguments.email, arguments.team, arguments.role, operator=arguments.operator
        )
    print(
        f"{user.email} is {arguments.role} of «{arguments.team}». Sign in at {settings().public_url}/sign-in with"
    )
    print(password)


def create_token(arguments: argparse.Namespace) -> None:
    """Prints the token alone on the last line. It has the owner's rights and needs no person."""
    from shared.db import transaction

    aim()
    with transaction() as db:
        secret = token_of(db, arguments.team, arguments.name, operator=arguments.operator)
    print(f"A token of «{arguments.team}» with an owner's rights; it is shown this once:")
    print(secret)


def token_of(db: "Session", team: str, name: str, *, operator: bool = False) -> str:
    """A new token of that team, which is made where it is missing."""
    from sqlmodel import select

    from shared import teams
    from shared.tables import Role, Team

    row = db.exec(select(Team).where(Team.name == team.strip())).first() or teams.create_team(db, team)
    return teams.create_token(db, row, name, Role.OWNER, operator=operator)[1]
