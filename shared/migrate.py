"""Brings the database to the newest revision, one process at a time, and says which one it has."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from shared.db import engine

FOLDER = Path(__file__).parent.parent / "migrations"
ADVISORY_LOCK = 0x6275726E  # «burn»


def config() -> Config:
    """Alembic's configuration without an .ini file."""
    made = Config()
    made.set_main_option("script_location", str(FOLDER))
    return made


def head() -> str:
    """The newest revision that this code knows."""
    newest = ScriptDirectory.from_config(config()).get_current_head()
    if newest is None:
        raise RuntimeError(f"No migration in {FOLDER}.")
    return newest


def current(over: Engine | None = None) -> str | None:
    """The revision of the database; None before the first migration."""
    with (over or engine()).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(to: str = "head", over: Engine | None = None) -> None:
    """Migrate up to `to`. A second process waits for the first and finds nothing to do."""
    with (over or engine()).begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '120s'; SET LOCAL statement_timeout = '600s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        with_connection = config()
        with_connection.attributes["connection"] = connection
        command.upgrade(with_connection, to)


def downgrade(to: str, over: Engine | None = None) -> None:
    """Migrate down to `to` («base» is empty)."""
    with (over or engine()).begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        with_connection = config()
        with_connection.attributes["connection"] = connection
        command.downgrade(with_connection, to)


def require_current() -> None:
    """Raises RuntimeError where code and database are of different revisions: web and worker do not start."""
    found, wanted = current(), head()
    if found != wanted:
        raise RuntimeError(
            f"The database is at revision {found}, this program knows {wanted}. Run «burnish migrate» first."
        )
