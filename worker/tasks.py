"""Celery's wake-ups. Run by `celery -A worker.tasks worker` and `celery -A worker.tasks beat`.

The process never loads a training library. Its main thread starts the zygote, since a zygote dies with
the thread that started it; each attempt has a thread; one more keeps the worker's row, the zygote and
a look of its own at each sweep interval, so that a lost wake-up costs no more than that; where no sweep is asked
for, it makes the rounds too.
"""

import logging
import time
from typing import Any

from celery.signals import worker_init, worker_shutdown, worker_shutting_down

from shared import queue, workers
from shared.db import transaction
from shared.tables import Slot
from worker import walls
from worker.contact import AWAY
from worker.machine import Machine
from worker.rounds import ROUNDS

log = logging.getLogger(__name__)

app = queue.celery()


class Here:
    """The machine of this process, once the worker has started."""

    machine: Machine | None = None


@worker_init.connect
def start(**_: Any) -> None:
    """In the main thread, before the first message."""
    walls.hide()  # its environment holds credentials
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
    """Takes jobs back from lost workers, and removes what was deleted."""
    ROUNDS.asked_at = time.monotonic()
    ROUNDS.sweep()
    ROUNDS.tidy()


@app.task(name=queue.TICK)
def tick() -> None:
    """Submits what the schedules have due."""
    ROUNDS.tick()


@app.task(name=queue.DELIVER)
def deliver() -> None:
    """Sends what webhooks and people are to hear."""
    ROUNDS.deliver()
