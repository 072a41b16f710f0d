"""The engine and the transaction: every statement of Burnish runs inside `transaction()`."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache

from sqlalchemy import Engine, create_engine
from sqlmodel import Session

from shared.settings import settings

SESSION_LIMITS = (
    "-c statement_timeout=15s -c lock_timeout=2s -c idle_in_transaction_session_timeout=30s -c timezone=UTC"
)


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The connection pool of this process; made on first use, so that forks do not share it."""
    return create_engine(
        settings().database_url,
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
        pool_timeout=5,
        connect_args={
            "connect_timeout": 5,
            "options": SESSION_LIMITS,
            "keepalives_idle": 10,
            "tcp_user_timeout": 20_000,
        },
    )


@contextmanager
def transaction() -> Generator[Session]:
    """A session that commits at the end and rolls back on an error. Keep it short.

    Rows stay readable after the commit.
    """
    with Session(engine(), expire_on_commit=False) as db, db.begin():
        yield db
