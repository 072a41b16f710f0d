"""Kinds of columns, as `shared.tables` writes them. (Their times are the process's; leases go by the database's.)"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, DateTime, Enum, ForeignKey
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from shared.ids import new_id


def now() -> datetime:
    """This moment, aware, UTC. Leases never use it: the database's clock decides those."""
    return datetime.now(UTC)


def choice(
    kind: type[StrEnum],
    default: StrEnum | None = None,
    *,
    nullable: bool = False,
    server_default: str | None = None,
) -> Any:
    """A column of an enum, stored as text by value with a CHECK. `server_default` is for rows that are there."""
    column = Column(
        Enum(
            kind,
            native_enum=False,
            create_constraint=True,
            length=32,
            name=f"{kind.__name__.lower()}_values",
            values_callable=lambda members: [member.value for member in members],
        ),
        nullable=nullable,
        server_default=server_default,
    )
    return Field(sa_column=column) if default is None and not nullable else Field(default, sa_column=column)


def moment(*, made: bool = False) -> Any:
    """A nullable time; with `made`, the time of the row's making."""
    column = Column(DateTime(timezone=True), nullable=not made)
    return Field(default_factory=now, sa_column=column) if made else Field(None, sa_column=column)


def document(default: type[dict] | type[list] | None = dict, *, server_default: str | None = None) -> Any:
    """A JSONB column; `None` makes it nullable. Replace the value, never change it in place."""
    if default is None:
        return Field(None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    column = Column(JSONB, nullable=False, server_default=server_default)
    return Field(default_factory=default, sa_column=column)


def ident(prefix: str) -> Any:
    """The primary key, made by the server."""
    return Field(default_factory=lambda: new_id(prefix), primary_key=True)


def ref(table: str, *, nullable: bool = False, cascade: bool = False, index: bool = True) -> Any:
    """A reference to another table's id; made a list or deleted with it where `cascade`."""
    column = Column(
        ForeignKey(f"{table}.id", ondelete="CASCADE" if cascade else None),
        nullable=nullable,
        index=index,
    )
    return Field(None, sa_column=column) if nullable else Field(sa_column=column)
