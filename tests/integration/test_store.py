"""Checkpoints on their way to the store: files first, then the row that makes one exist."""

from urllib.parse import urlsplit

import pytest

from shared import checkpoints, jobs, storage
from shared.db import transaction
from shared.settings import settings
from tests.chaos.proxy import Proxy, Refuse
from tests.factories import a_job, a_team, a_worker
from tests.services import until
from worker.store import Store


@pytest.fixture
def link(stack, monkeypatch):
    """The way to the store, which can be broken."""
    proxy = Proxy()
    link = proxy.link(urlsplit(settings().s3_endpoint).port or 0)
    monkeypatch.setattr(settings(), "s3_endpoint", f"http://127.0.0.1:{link.port}")
    yield link
    proxy.close()


@pytest.fixture
def store(clean, link, tmp_path):
    """What a running attempt has finished, with a checkpoint of two files in its folder."""
    with transaction() as db:
        job, worker = a_job(db, a_team(db)), a_worker(db)
    with transaction() as db:
        attempt = jobs.claim(db, worker.id, "compute")
    assert attempt
    for name in ("servable/weights", "state/optimizer"):
        path = tmp_path / "checkpoints" / "step-000010" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode() * 1000)
    running = Store(job, attempt, tmp_path)
    yield running
    running.close()


def test_a_checkpoint_has_no_row_before_its_files_are_stored(store, link):
    link.set(Refuse())
    store.add({"step": 10, "data": {"name": "step-000010", "epoch": 1.0}})
    with pytest.raises(AssertionError):
        until(lambda: rows(store), 1.5)
    assert store.busy
    link.heal()
    until(lambda: rows(store), 60, "the row")
    (row,) = rows(store)
    assert [entry["name"] for entry in row.manifest] == ["servable/weights", "state/optimizer"]
    for entry in row.manifest:
        assert storage.read(row.prefix + entry["name"]) == entry["name"].encode() * 1000


def rows(store):
    with transaction() as db:
        return list(checkpoints.of(db, store.job.id))
