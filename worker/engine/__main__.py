"""`python -m worker.engine DIR` does the attempt that DIR/attempt.json describes.

It writes DIR/events.jsonl, DIR/checkpoints/ and DIR/artifacts/; the exit code says how it ended (see
`worker.engine.attempt`). It needs no database, queue, web or bucket.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from transformers.utils import logging

from shared.errors import Refused
from worker.engine import attempt as ends
from worker.engine import exhausted
from worker.engine.attempt import Attempt, Diverged, Stop
from worker.engine.events import Events, Silence
from worker.engine.ranks import Ranks, together


def run(folder: Path, stop: Stop | None = None, forked: Callable[[], None] = lambda: None) -> int:
    """Do the attempt in that folder and return its exit code; what went wrong is the last event.

    `forked` is called when this process will fork no more: from there on it may have threads.
    """
    stop = stop or Stop().listen()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # peft still asks by the old name.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
    events = Events(folder)
    code = ended(events, lambda: do(Attempt.read(folder), events, stop, forked))
    try:
        events.close()
    except OSError as wrong:
        return ends.DISK if exhausted.disk(wrong) else code or ends.CRASHED
    return code


def ended(events: Events, work: Callable[[], int]) -> int:
    """The exit code of the work; what went wrong in it is told."""
    try:
        return work()
    except SystemExit as end:
        return int(end.code or 0)
    except Refused as wrong:
        events.error(wrong.code, wrong.message, param=wrong.param)
        return ends.USER
    except Diverged as wrong:
        events.error("diverged", str(wrong))
        return ends.DIVERGED
    except Exception as wrong:  # noqa: BLE001 - the border: the runner reads the code and the log
        if exhausted.memory(wrong):
            events.error("out_of_memory", out_of_memory(wrong), param="batch_size")
            return ends.MEMORY
        return full_disk(events) if exhausted.disk(wrong) else crashed(events)


def do(attempt: Attempt, events: Events, stop: Stop, forked: Callable[[], None]) -> int:
    """What the attempt's kind asks for."""
    if attempt.kind == "train":
        return together(
            attempt.processes, attempt.folder, lambda ranks: train(attempt, events, stop, ranks), forked
        )
    forked()
    if attempt.kind == "infer":
        from worker.engine.infer import infer

        return infer(attempt, events, stop)
    if attempt.kind == "evaluate":
        from worker.engine.evaluate import evaluate

        return evaluate(attempt, events, stop)
    if attempt.kind == "export":
        from worker.engine.export import export

        return export(attempt, events)
    from worker.engine import importer

    return importer.run(attempt, events)


def train(attempt: Attempt, events: Events, stop: Stop, ranks: Ranks) -> int:
    """The training as one of its processes; the first alone is heard."""
    from worker.engine import loop

    told = events if ranks.first else Silence()
    return ended(told, lambda: loop.train(attempt, told, stop, ranks))


def out_of_memory(wrong: Exception) -> str:
    """What to do about it."""
    first = str(wrong).split("\n", 1)[0][:300]
    return (
        f"The memory is too small for this job, even a row at a time: {first} "
        "Cut rows shorter («max_length»), train an adapter instead of all weights, or use a smaller base model."
    )


def full_disk(events: Events) -> int:
    """A full disk has a code of its own, as it is no fault of the job."""
    with suppress(OSError):  # there may be no room to say so
        events.error("disk_full", "The worker's disk is full; the job goes on from its last checkpoint.")
    return ends.DISK


def crashed(events: Events) -> int:
    """The traceback goes to the output's log, its last line to the events."""
    traceback.print_exc()
    last = traceback.format_exc().strip().rsplit("\n", 1)[-1]
    events.error("crashed", f"The trainer failed unexpectedly: {last[:500]}")
    return ends.CRASHED


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
