"""How a trainer's end is read: its exit code, what it said last, and what it had been asked."""

import errno
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.budgets import HOST_MEMORY
from shared.tables import Job, Outcome

DONE, USER_ERROR, OUT_OF_MEMORY, DISK_FULL, DIVERGED, STOPPED = 0, 10, 20, 30, 40, 75
FULL = (errno.ENOSPC, errno.EDQUOT)
NOTHING_LEFT = 1024**2  # bytes of a disk that count as none


@dataclass(frozen=True)
class Ending:
    """An attempt's outcome, and the sentence for people."""

    outcome: Outcome
    reason_code: str | None = None
    reason: str | None = None
    param: str | None = None


ASKED = {
    "cancel": Ending(Outcome.CANCELLED, "cancelled", "It was cancelled."),
    "pause": Ending(Outcome.RELEASED, "pause", "Paused."),
    "drain": Ending(Outcome.RELEASED, "drain", "The worker was asked to stop."),
    "stop": Ending(Outcome.CANCELLED, "stopped", "It was stopped."),
    "hang": Ending(
        Outcome.CRASHED, "hang", "It made no progress for much longer than a step takes, and was stopped."
    ),
}


FULL_DISK = Ending(
    Outcome.RELEASED, "disk_full", "The worker's disk became full while it ran. Free some space there."
)


def given_back(wrong: BaseException) -> Ending:
    """Of an attempt that the worker could not go on with: its disk is full, or the store is away."""
    if isinstance(wrong, OSError) and wrong.errno in FULL:
        return FULL_DISK
    return Ending(Outcome.RELEASED, "infrastructure", f"The worker could not go on: {wrong}")


def unstarted(word: str, job: Job) -> Ending:
    """Of an attempt that did nothing. A cancelled job goes back: an earlier attempt may have answered something."""
    ending = asked(word, job)
    return ending if ending.outcome == Outcome.FAILED else replace(ending, outcome=Outcome.RELEASED)


@dataclass(frozen=True)
class Circumstances:
    """What was known when the trainer ended."""

    asked: str | None = None  # cancel, overdue, pause, drain, stop, hang
    error: dict[str, Any] | None = None  # the data of its last error event
    zygote_died: bool = False
    memory_kills: int = 0  # by the kernel on this machine meanwhile
    said: str = ""  # the last line of its output
    disk_left: int = 2**62  # bytes


def read(code: int, job: Job, known: Circumstances) -> Ending:
    """The ending that an exit code (negative: a signal) stands for."""
    if code == DONE:
        early = ("stopped_early", "It was stopped early, as asked.") if known.asked == "stop" else ()
        return Ending(Outcome.SUCCEEDED, *early)
    if code in (USER_ERROR, OUT_OF_MEMORY, DIVERGED) and known.asked in (None, "stop", "hang"):
        return users_to_mend(code, job, known.error or {})
    if known.asked:
        return asked(known.asked, job)
    if code == STOPPED:
        return Ending(Outcome.RELEASED, "stopped", "The trainer was stopped from outside.")
    if code == DISK_FULL or known.disk_left < NOTHING_LEFT:  # also where it could not even say so
        return FULL_DISK
    if known.zygote_died:
        return Ending(Outcome.RELEASED, "zygote", "The process that forks trainers died on the worker.")
    return crashed(code, known)


def asked(word: str, job: Job) -> Ending:
    """The ending of an attempt that did as it was asked."""
    if word == "overdue":
        told = f"It took longer than {span(job.max_run_seconds or 0)}, the longest that it may run."
        return Ending(Outcome.FAILED, "max_run_time", told, "max_run_seconds")
    return ASKED[word]


def span(seconds: int) -> str:
    """«2 h», «1 h 30 min», «45 min», «90 s»."""
    hours, rest = divmod(seconds, 3600)
    if seconds < 600 and rest % 60:
        return f"{seconds} s"
    words = [f"{hours} h"] if hours else []
    return " ".join([*words, *([f"{rest // 60} min"] if rest >= 60 or not words else [])])


def users_to_mend(code: int, job: Job, error: dict[str, Any]) -> Ending:
    """What goes wrong again however often it is tried: the data, the spec, the memory it asks for."""
    message = str(error.get("message") or "") or None
    if code == OUT_OF_MEMORY:
        batch = job.spec.get("batch_size")
        smaller = (
            f"Set the batch size to {max(1, batch // 2)} (it is {batch})" if batch else "Use a smaller batch"
        )
        told = f"The memory of the device was not enough. {smaller} or shorten the longest row, then retry."
        return Ending(Outcome.FAILED, "out_of_memory", message or told, "batch_size" if batch else None)
    if code == DIVERGED:
        told = "The loss stopped being a number. Lower the learning rate, then retry."
        return Ending(Outcome.FAILED, "diverged", message or told, error.get("param") or "learning_rate")
    told = message or "The data or the settings do not fit. The log says more."
    return Ending(Outcome.FAILED, str(error.get("code") or "user_error"), told, error.get("param"))


def crashed(code: int, known: Circumstances) -> Ending:
    """A death that nobody asked for."""
    if code == -signal.SIGKILL and known.memory_kills:
        told = "The machine ran out of memory and the kernel killed the trainer."
        return Ending(Outcome.CRASHED, HOST_MEMORY, told)
    how = f"exit code {code}"
    if code < 0:
        how = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    said = f" Its last words: {known.said[:300]}" if known.said else ""
    return Ending(Outcome.CRASHED, how.replace(" ", "_").lower(), f"The trainer died ({how}).{said}")


def memory_kills() -> int:
    """Processes that the kernel has killed for want of memory, in this cgroup or on this machine."""
    for path, key in ((Path("/sys/fs/cgroup/memory.events"), "oom_kill"), (Path("/proc/vmstat"), "oom_kill")):
        try:
            values = dict(line.split()[:2] for line in path.read_text().splitlines())
        except OSError:
            continue
        if key in values:
            return int(values[key])
    return 0
