"""Wake-ups: the settings that the design pins, and a broker that is dead, frozen or full of old messages."""

import json
import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
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
    """The broker's client, and a new sender."""
    queue.sender.cache_clear()
    with redis.Redis.from_url(settings().redis_url) as client:
        client.delete(queue.LIST)
        yield client
        sent()
        client.delete(queue.LIST)
    queue.sender.cache_clear()


def sent() -> None:
    """Waits until what is to be sent is sent, or given up."""
    queue.sender().thread.submit(int).result()


@contextmanager
def another_broker(url: str) -> Generator[None]:
    """Wake-ups go there meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings(), "redis_url", url)
        queue.publisher.cache_clear()
        queue.sender.cache_clear()
        try:
            yield
        finally:
            sent()
            queue.publisher.cache_clear()
            queue.sender.cache_clear()


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
    queue.wake(Slot.COMPUTE)
    sent()
    assert broker.llen(queue.LIST) == 1
    until = datetime.fromisoformat(json.loads(broker.lindex(queue.LIST, 0))["headers"]["expires"])
    beats = [entry["options"]["expires"] for entry in queue.celery().conf.beat_schedule.values()]
    for seconds in [(until - datetime.now(UTC)).total_seconds(), *beats]:
        assert 15 * 60 < seconds <= 30 * 60


def test_a_frozen_broker_holds_nobody(broker):
    pid = broker.info("server")["process_id"]
    queue.wake(Slot.COMPUTE)
    sent()  # the connection is open
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for _ in range(20):
            queue.wake(Slot.COMPUTE)
        assert time.monotonic() - started < 0.5
        sent()
        assert time.monotonic() - started < 3  # the first one's time-out, and the others are dropped
        assert queue.sender().rests
    finally:
        os.kill(pid, signal.SIGCONT)
    broker.delete(queue.LIST)
    queue.sender().rests_until = 0.0
    queue.wake(Slot.COMPUTE)
    sent()
    assert broker.llen(queue.LIST) == 1


def test_a_slow_broker_holds_nobody_and_nothing_piles_up(broker):
    proxy = Proxy()
    there = urlsplit(settings().redis_url)
    link = proxy.link(there.port or 0)
    link.set(Delay(0.4))  # each way: every answer is in time
    slow = there._replace(netloc=there.netloc.replace(f":{there.port}", f":{link.port}")).geturl()
    try:
        with another_broker(slow):
            started = time.monotonic()
            for _ in range(20):
                queue.wake(Slot.COMPUTE)
            assert time.monotonic() - started < 0.5
            sent()
            assert queue.sender().rests
            assert broker.llen(queue.LIST) < 5
    finally:
        proxy.close()


def test_a_dead_broker_holds_nobody(broker):
    with another_broker("redis://127.0.0.1:1/0"):
        started = time.monotonic()
        queue.wake(Slot.COMPUTE)
        sent()
        assert time.monotonic() - started < 1.5
        assert queue.sender().rests
