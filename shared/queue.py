"""Wake-ups: Celery messages that say «look». They carry no authority and no work; losing one costs a sweep.

Every setting is here; `worker.tasks` has the tasks. A thread sends them, by an application of its own with
timeouts of a second: no web request waits for the broker, and a frozen one does not hold the thread for ever.
"""

import logging
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.settings import settings
from shared.tables import Slot

log = logging.getLogger(__name__)

LIST = "wake-ups"  # the broker's key
LOOK, SWEEP, TICK, DELIVER = "burnish.look", "burnish.sweep", "burnish.tick", "burnish.deliver"
TICK_SECONDS = 15.0
DELIVER_SECONDS = 5.0
DRAIN_SECONDS = 120.0  # time to leave to a worker that is told to stop: its trainers write a checkpoint
SEND_SECONDS = 3.0  # from the wish to the end of sending: a broker that takes longer is too slow
REST_SECONDS = 5.0  # after a failure nothing is sent for this long
# A message that nobody took for so long is worth nothing. The sender's clock says until when and the worker's
# whether: with less, a worker whose clock is fast would throw all of them away. (More apart, the store refuses it.)
KEPT_SECONDS = 1200.0
BOUNCES = 5  # times that a busy worker hands a wake-up on


@lru_cache(maxsize=1)
def celery() -> Celery:
    """The application that workers and beat run."""
    app = Celery("burnish", broker=settings().redis_url, set_as_current=True)
    app.conf.update(
        # a message is a hint: acknowledged at once, never redelivered, never kept
        task_acks_late=False,
        task_ignore_result=True,
        result_backend=None,
        task_default_queue=LIST,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        task_time_limit=None,
        task_soft_time_limit=None,
        # a busy worker leaves messages to the others
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_pool="threads",
        # three for sweep, tick and deliver
        worker_concurrency=settings().compute_slots + settings().light_slots + 3,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=0,  # Celery would sleep so long before it told us to drain
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # the broker may go and come back
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "health_check_interval": 10,
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
        },
        # beat ticks; what is due stands in Postgres
        beat_scheduler="celery.beat:Scheduler",
        beat_max_loop_interval=min(5.0, settings().sweep_seconds),
        beat_schedule={
            "sweep": entry(SWEEP, settings().sweep_seconds),
            "tick": entry(TICK, min(TICK_SECONDS, settings().sweep_seconds)),
            "deliver": entry(DELIVER, min(DELIVER_SECONDS, settings().sweep_seconds)),
        },
        timezone="UTC",
        enable_utc=True,
    )
    return app


def entry(task: str, seconds: float) -> dict:
    """A line of beat's schedule."""
    return {"task": task, "schedule": seconds, "options": {"expires": KEPT_SECONDS}}


@lru_cache(maxsize=1)
def publisher() -> Celery:
    """The application that only sends, and gives up after a second."""
    app = Celery("burnish-publisher", broker=settings().redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=LIST,
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        broker_connection_retry=False,
        broker_connection_max_retries=0,
        broker_transport_options={
            "socket_timeout": 1,
            "socket_connect_timeout": 1,
            "max_retries": 0,
            "retry_on_timeout": False,
        },
    )
    return app


class Sender:
    """The one thread that talks to the broker, so that nobody else waits for it.

    After a failure, and while a message takes too long, it rests: what comes then is dropped.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="wake")
        self.rests_until = 0.0
        self.sending = math.inf  # since when there was a wish for the message under way

    @property
    def rests(self) -> bool:
        moment = time.monotonic()
        return moment < self.rests_until or moment - self.sending > SEND_SECONDS

    def add(self, slot: str, bounces: int) -> None:
        """Sends the message as soon as those before it are sent."""
        if not self.rests:
            self.thread.submit(self.send, slot, bounces, time.monotonic())

    def send(self, slot: str, bounces: int, wished: float) -> None:
        """One message, in the thread."""
        if self.rests:
            return
        self.sending = wished
        try:
            publisher().send_task(
                LOOK,
                args=[slot, bounces],
                queue=LIST,
                expires=KEPT_SECONDS,
                retry=False,
                ignore_result=True,
            )
            if self.rests:
                raise TimeoutError(f"it takes longer than {SEND_SECONDS:g} s")
        except (OperationalError, RedisError, OSError) as away:
            self.rests_until = time.monotonic() + REST_SECONDS
            log.warning("The broker did not take a wake-up; the next sweep will find the job: %s", away)
        finally:
            self.sending = math.inf


@lru_cache(maxsize=1)
def sender() -> Sender:
    """This process's."""
    return Sender()


os.register_at_fork(after_in_child=sender.cache_clear)  # a forked child has no such thread


def wake(slot: Slot | str, bounces: int = BOUNCES) -> None:
    """Tells an idle worker to look for a job of that slot class. Call it after the commit.

    Never raises and never waits, also with a dead, frozen or slow broker: then a sweep finds the job.
    """
    sender().add(str(slot), bounces)
