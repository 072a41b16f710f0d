"""A worker in the test's own process."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from shared.settings import settings
from worker.machine import Machine


@contextmanager
def a_machine(**changed: Any) -> Generator[Machine]:
    """It works until the end, under settings changed so; its trainers have one thread."""
    for name, value in {"heartbeat_seconds": 0.3, "trainer_threads": 1, **changed}.items():
        setattr(settings(), name, value)
    worker = Machine()
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        assert worker.zygote
        worker.zygote.stop()
        settings.cache_clear()
