"""How far a job is, in a terminal: one line that renews itself, or plain lines where none can."""

import shutil
import sys
import time
from typing import Any, TextIO

FINAL = ("succeeded", "failed", "cancelled")
STEPPING = ("training", "evaluating", "pausing", "cancelling")  # stages in which steps say something
QUIET_SECONDS = 5  # between two plain lines of the same stage
WIDTH = 24


class Line:
    """A line of progress on a terminal or in a log."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.renews = self.out.isatty()
        self.shown = ""
        self.stage = ""
        self.began = time.monotonic()
        self.at = 0.0

    def show(self, stage: str, text: str) -> None:
        """Say how far it is; in a log only when something has changed for a while."""
        line = f"{stage:<12} {text}".rstrip()
        if self.renews:
            self.out.write("\r\033[K" + line[: shutil.get_terminal_size().columns - 1])
        elif stage != self.stage or (time.monotonic() - self.at > QUIET_SECONDS and line != self.shown):
            self.at = time.monotonic()
            self.out.write(f"{lasting(self.at - self.began):>10}  {line}\n")
        self.shown, self.stage = line, stage
        self.out.flush()

    def say(self, text: str) -> None:
        """A lasting line above the progress."""
        self.out.write(("\r\033[K" if self.renews else "") + text + "\n")
        self.out.flush()

    def end(self) -> None:
        """Leave the last state standing."""
        if self.renews and self.shown:
            self.out.write("\n")
        self.shown = ""
        self.out.flush()


def bar(share: float) -> str:
    """A bar that is filled to that share."""
    full = round(min(max(share, 0), 1) * WIDTH)
    return "█" * full + "░" * (WIDTH - full)


def lasting(seconds: float) -> str:
    """A time span in words: 45 s, 3 min 5 s, 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(value: Any) -> str:
    """A metric, short."""
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def of_job(job: dict[str, Any]) -> tuple[str, str]:
    """(stage, text) of a job as the API gives it."""
    state, progress = job.get("x_state") or job["status"], job.get("x_progress") or {}
    stage = progress.get("stage") or state
    if state == "queued" and job.get("x_queue_position"):
        return "queued", f"number {job['x_queue_position']} in the queue"
    if stage == "waiting":
        return stage, "for the import of its data or base model"
    step, total = progress.get("step"), progress.get("total_steps")
    if stage not in STEPPING or not total:
        return stage, counted(progress)
    parts = [bar((step or 0) / total), f"step {step or 0}/{total}"]
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("tokens_per_second"):
        parts.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    if progress.get("eta_seconds") is not None:
        parts.append(f"about {lasting(progress['eta_seconds'])} left")
    return stage, "  ".join(parts)


def counted(progress: dict[str, Any]) -> str:
    """How much of what is being done is done, where that is told."""
    detail, done, total = (progress.get(name) for name in ("detail", "done", "total"))
    parts = [bar((done or 0) / total), f"{done or 0} of {total}"] if total else []
    return "  ".join([*parts, str(detail or "")]).rstrip()


def of_bytes(name: str, have: int, size: int) -> tuple[str, str]:
    """(stage, text) of a transfer."""
    return "downloading", f"{bar(have / size if size else 1)}  {megabytes(have)} of {megabytes(size)}  {name}"


def megabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
