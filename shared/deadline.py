"""What may take longer than anybody waits: it goes on in a thread of its own, and the caller goes on without it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
LOOK = 0.1


def within(seconds: float, action: Callable[[], T], worth_it: Callable[[], bool] = lambda: True) -> T:
    """The action's value. Raises what it raises, and TimeoutError after so many seconds or once it is not worth it
    any more: the action is not ended then, and what comes of it is dropped.
    """
    future: Future[T] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except BaseException as wrong:  # noqa: BLE001 - the caller hears of it
            future.set_exception(wrong)

    until = time.monotonic() + seconds
    threading.Thread(target=act, name="within", daemon=True).start()
    while worth_it() and (left := until - time.monotonic()) > 0:
        if wait([future], min(LOOK, left)).done:
            return future.result()
    raise TimeoutError(f"Not within {seconds:g} s")
