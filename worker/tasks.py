"""Celery's wake-ups. Run by `celery -A worker.tasks worker` and `celery -A worker.tasks beat`.

The process never loads a training library. Its main thread starts the zygote, since a zygote dies with
the thread that started it; each attempt has a thread; one more keeps the worker's row, the zygote and
a look of its own at each sweep interval, so that a lost wake-up costs no more than that.
"""

import logging
import threading
from typing import Any

from celery.signals import worker_init, worker_shutdown, worker_shutting_down

from shared import queue, ranking, reaper, schedules, storage, workers
from shared.db import transaction
from shared.tables import Slot
from worker import janitor, postman
from worker.contact import AWAY
from worker.machine import Machine

log = logging.getLogger(__name__)

app = queue.celery()
MOST_WAKE_UPS = 20


class Here:
    """The machine of this process, once the worker has started."""

    machine: Machine | None = None
    posting = threading.Lock()


@worker_init.connect
def start(**_: Any) -> None:
    """In the main thread, before the first message."""
    try:
        machine = Machine()
        machine.start()
    except Exception as wrong:
        log.exception("The worker cannot start")
        raise SystemExit(1) from wrong  # Celery would go on after any other error
    Here.machine = machine


@worker_shutting_down.connect
def drain(**_: Any) -> None:
    """SIGTERM: attempts checkpoint and are given back; Celery waits for their threads."""
    if Here.machine is not None:
        Here.machine.drain()


@worker_shutdown.connect
def stop(**_: Any) -> None:
    """The last thing."""
    if Here.machine is not None:
        Here.machine.stop()


@app.task(name=queue.LOOK)
def look(slot: str, bounces: int = 0) -> None:
    """Runs jobs of that slot class until there is none; a busy worker hands the message on to an idle one."""
    machine = Here.machine
    if machine is None:
        return
    try:
        if not machine.look(Slot(slot)) and bounces > 0 and someone_is_free(slot, machine.id):
            queue.wake(slot, bounces - 1)
    except AWAY as away:
        log.warning("The database is away; the next sweep looks again: %s", away)


def someone_is_free(slot: str, besides: str) -> bool:
    """Whether another worker has a slot to spare."""
    with transaction() as db:
        return workers.free_slots(db, slot, besides) > 0


@app.task(name=queue.SWEEP)
def sweep() -> None:
    """Queues the jobs of lost workers again, and wakes as many slots as there are jobs and free slots."""
    try:
        with transaction() as db:
            lost = reaper.reap(db)
        if lost:
            log.warning("%d attempts were lost; their jobs are queued again", lost)
        with transaction() as db:
            wanted = {
                slot: min(ranking.waiting(db, slot, MOST_WAKE_UPS), workers.free_slots(db, slot))
                for slot in Slot
            }
    except AWAY as away:
        log.warning("The database is away; the next sweep tries again: %s", away)
        return
    for slot, count in wanted.items():
        for _ in range(count):
            queue.wake(slot)
    try:
        janitor.tidy()
    except (*AWAY, storage.Away) as away:
        log.warning("What was deleted is removed later: %s", away)


@app.task(name=queue.TICK)
def tick() -> None:
    """Submits what the schedules have due."""
    try:
        with transaction() as db:
            submitted = schedules.tick(db)
    except AWAY as away:
        log.warning("The database is away; the next tick tries again: %s", away)
        return
    for slot in {job.slot for job in submitted}:
        queue.wake(slot)


@app.task(name=queue.DELIVER)
def deliver() -> None:
    """Sends what webhooks and people are to hear; one thread of a worker does so at a time."""
    if not Here.posting.acquire(blocking=False):
        return
    try:
        postman.deliver()
    except AWAY as away:
        log.warning("The database is away; what is due is sent later: %s", away)
    finally:
        Here.posting.release()
