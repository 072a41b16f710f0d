"""The tables come from migrations alone: up, down, and nothing that the code has and they have not."""

from datetime import UTC, datetime, timedelta

import pytest
from alembic import command
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from shared import migrate
from shared.settings import settings

NOON, DAY = datetime(2026, 11, 1, 12, tzinfo=UTC), timedelta(days=1)
WHOLE = dict.fromkeys(("name", "stage"), "") | dict.fromkeys(
    ("spec", "asked", "labels", "columns", "resources", "progress", "scores"), "{}"
) | {"team_id": "team-a", "kind": "train", "slot": "compute", "seed": 0, "priority": 0, "rank_at": NOON,
     "attempts": 0, "created_at": NOON}  # fmt: skip


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


ODD = [  # state, further columns, and what the row says after the upgrade
    ("queued", {"attempts": -1}, {"attempts": 0}),
    ("queued", {"attempt_id": "attempt-x"}, {"attempt_id": None}),
    ("queued", {"pause_requested_at": NOON}, {"pause_requested_at": None}),
    ("running", {"attempt_id": "attempt-x", "run_after": NOON}, {"run_after": None, "attempt_id": "attempt-x"}),
    ("paused", {"cancel_requested_at": NOON}, {"cancel_requested_at": None}),
    ("paused", {"finished_at": NOON, "deleted_at": NOON}, {"finished_at": None, "deleted_at": None}),
    ("failed", {}, {"finished_at": NOON}),
    ("succeeded", {"finished_at": NOON, "swept_at": NOON - DAY}, {"swept_at": None, "finished_at": NOON}),
    ("cancelled", {"finished_at": NOON, "cancel_requested_at": NOON, "swept_at": NOON + DAY},
     {"cancel_requested_at": NOON, "swept_at": NOON + DAY}),
]  # fmt: skip


def test_rows_of_before_are_mended_before_they_are_held_to_the_promises(empty_database):
    migrate.upgrade("0006", over=empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("INSERT INTO teams (id, name, created_at) VALUES ('team-a', 'A', now())"))
        for number, (state, more, _) in enumerate(ODD):
            row = WHOLE | {"id": f"ftjob-{number}", "state": state} | more
            names = ", ".join(f'"{name}"' for name in row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO jobs ({names}) VALUES ({values})"), row)
    migrate.upgrade(over=empty_database)
    with empty_database.connect() as connection:
        rows = connection.execute(text("SELECT * FROM jobs ORDER BY id")).mappings().all()
    for row, (state, _, told) in zip(rows, ODD, strict=True):
        assert (row["state"], {name: row[name] for name in told}) == (state, told)
    migrate.downgrade("0006", over=empty_database)
    migrate.upgrade(over=empty_database)
