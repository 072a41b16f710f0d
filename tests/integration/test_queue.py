"""Wake-ups: the settings that the design pins, and a broker that is dead, frozen or full of old messages."""

import json
import os
import signal
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
import redis

from shared import queue
from shared.settings import settings
from shared.tables import Slot
from tests.chaos.proxy import Delay, Proxy


@pytest.fixture
def broker(stack):
    """The broker's client; afterwards the circuit is closed again."""
    queue.breaker.rests_until = 0.0
    with redis.Redis.from_url(settings().redis_url) as client:
        client.delete(queue.LIST)
        yield client
        client.delete(queue.LIST)
    queue.breaker.rests_until = 0.0


def test_the_settings_are_those_that_the_traps_demand(stack):
    pinned = {
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "task_ignore_result": True,
        "result_backend": None,
        "accept_content": ["json"],
        "task_serializer": "json",
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_remote_control": False,
        "worker_soft_shutdown_timeout": 0,
        "worker_send_task_events": False,
        "worker_pool": "threads",
    }
    assert {name: queue.celery().conf[name] for name in pinned} == pinned
    assert queue.celery().conf.worker_concurrency > settings().compute_slots + settings().light_slots
    options = queue.publisher().conf.broker_transport_options
    assert (options["socket_timeout"], options["socket_connect_timeout"], options["max_retries"]) == (1, 1, 0)
    assert set(queue.celery().conf.beat_schedule) == {"sweep", "tick", "deliver"}


def test_a_wake_up_is_one_message_that_expires_later_than_clocks_may_differ(broker):
    assert queue.wake(Slot.COMPUTE)
    assert broker.llen(queue.LIST) == 1
    until = datetime.fromisoformat(json.loads(broker.lindex(queue.LIST, 0))["headers"]["expires"])
    beats = [entry["options"]["expires"] for entry in queue.celery().conf.beat_schedule.values()]
    for seconds in [(until - datetime.now(UTC)).total_seconds(), *beats]:
        assert 15 * 60 < seconds <= 30 * 60


def test_a_frozen_broker_holds_nobody_longer_than_a_second(broker):
    pid = broker.info("server")["process_id"]
    assert queue.wake(Slot.COMPUTE)  # the connection is open
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert not queue.wake(Slot.COMPUTE)
        first = time.monotonic() - started
        assert not queue.wake(Slot.COMPUTE)  # the circuit is open: no wait at all
        both = time.monotonic() - started
    finally:
        os.kill(pid, signal.SIGCONT)
    assert first < 1.5
    assert both - first < 0.05
    queue.breaker.rests_until = 0.0
    assert queue.wake(Slot.COMPUTE)


def test_a_slow_broker_holds_nobody_longer_than_a_second(broker, monkeypatch):
    proxy = Proxy()
    there = urlsplit(settings().redis_url)
    link = proxy.link(there.port or 0)
    slow = there._replace(netloc=there.netloc.replace(f":{there.port}", f":{link.port}"))
    monkeypatch.setattr(settings(), "redis_url", slow.geturl())
    link.set(Delay(0.4))  # each way: every answer is in time
    queue.publisher.cache_clear()
    try:
        started = time.monotonic()
        assert not queue.wake(Slot.COMPUTE)
        assert time.monotonic() - started < 1.5
        assert queue.breaker.open
    finally:
        queue.publisher.cache_clear()
        queue.sender.cache_clear()
        proxy.close()


def test_a_dead_broker_holds_nobody(broker, monkeypatch):
    monkeypatch.setattr(settings(), "redis_url", "redis://127.0.0.1:1/0")
    queue.publisher.cache_clear()
    try:
        started = time.monotonic()
        assert not queue.wake(Slot.COMPUTE)
        assert time.monotonic() - started < 1.5
    finally:
        queue.publisher.cache_clear()
