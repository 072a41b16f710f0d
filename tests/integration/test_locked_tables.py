"""Somebody has a table to himself for longer than a lease: no worker can renew, so none is silent."""

import time
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from shared import jobs, reaper
from shared.db import transaction
from shared.settings import settings
from shared.tables import Attempt, Kind, State
from tests.factories import a_job, a_team, a_worker

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def attempt(monkeypatch):
    """It runs, and its lease ran out long ago."""
    monkeypatch.setattr(settings(), "lease_seconds", 0.3)
    monkeypatch.setattr(settings(), "heartbeat_seconds", 0.1)
    with transaction() as db:
        a_job(db, a_team(db), Kind.EXPORT)
        taken = jobs.claim(db, a_worker(db).id, "light")
        assert taken is not None
        taken.lease_expires_at -= timedelta(seconds=100)
    return taken


@pytest.mark.parametrize("table", ["jobs", "attempts"])
def test_nobody_is_suspected_while_a_table_is_locked(attempt, table):
    with transaction() as somebody:
        somebody.connection().execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        with pytest.raises(OperationalError), transaction() as db:
            reaper.reap(db)
        assert time.monotonic() - began < 1.5, "it waited for the lock"
    with transaction() as db:
        assert db.get_one(Attempt, attempt.id).suspect_since is None
        assert reaper.reap(db) == 0
        assert db.get_one(Attempt, attempt.id).suspect_since is not None
    with transaction() as db:
        assert jobs.renew(db, attempt.lease_id) is not None
        assert reaper.reap(db) == 0
        held = jobs.held_job(db, attempt.lease_id)
        assert held is not None
        assert held.state == State.RUNNING
