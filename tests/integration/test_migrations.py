"""The tables come from migrations alone: up, down, and nothing that the code has and they have not."""

import pytest
from alembic import command
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from shared import migrate
from shared.settings import settings


@pytest.fixture
def empty_database(stack):
    """An engine on a database of its own, gone after the test."""
    admin = create_engine(settings().database_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS migrations_alone WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE migrations_alone"))
    over = create_engine(admin.url.set(database="migrations_alone"), poolclass=NullPool)
    yield over
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE migrations_alone WITH (FORCE)"))


def test_migrations_go_up_and_down_and_up_again(empty_database):
    migrate.upgrade(over=empty_database)
    assert migrate.current(empty_database) == migrate.head()
    migrate.downgrade("base", over=empty_database)
    assert migrate.current(empty_database) is None
    with empty_database.connect() as connection:
        left = connection.execute(
            text(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            )
        ).scalars()
        assert left.all() == []
    migrate.upgrade(over=empty_database)


def test_the_tables_of_the_code_are_those_of_the_migrations(empty_database):
    migrate.upgrade(over=empty_database)
    with empty_database.begin() as connection:
        configured = migrate.config()
        configured.attributes["connection"] = connection
        command.check(configured)  # raises where an upgrade would be generated
