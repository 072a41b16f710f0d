"""Alembic's entry: the tables are `shared.tables`, the connection is given or made from the settings."""

from alembic import context
from sqlmodel import SQLModel

from shared import tables  # noqa: F401 - registers the tables
from shared.db import engine


def include(item: object, name: str | None, kind: str, reflected: bool, _: object) -> bool:
    """The partitions of `events` are its own affair: the migration that makes it makes them."""
    partition = bool(name and name.startswith("events_p"))
    return not (reflected and (partition or (kind == "index" and on_partition(item))))


def on_partition(item: object) -> bool:
    table = getattr(item, "table", None)
    return table is not None and table.name.startswith("events_p")


def run() -> None:
    """Migrate over the connection in the config's attributes, else over one of our own."""
    given = context.config.attributes.get("connection")
    if given is not None:
        migrate(given)
        return
    with engine().begin() as connection:
        migrate(connection)


def migrate(connection: object) -> None:
    context.configure(
        connection=connection,  # ty: ignore[invalid-argument-type] - alembic's own type is wider
        target_metadata=SQLModel.metadata,
        include_object=include,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
