"""How often a job may be tried again, by what ended its attempts. Pure rules, no database.

| outcome of an attempt | tried again |
|---|---|
| failed: the user's to mend | never |
| crashed | after a back-off of 30 s, 1 min, 2 min …; three without a new checkpoint between them end the job |
| crashed twice in a row at the same step for the same reason | never: it would do so again |
| crashed for want of the machine's memory | once |
| lost, released: the machine's doing | at once and free, at most 20 times a day, with growing pauses |
| released as the disk became full | likewise, at most three times a day |
| released before it began, for want of room on the disk | once a worker has room; free and not counted |
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.tables import Attempt, Outcome

CRASHES = 3
HOST_MEMORY = "host_out_of_memory"
HOST_MEMORY_CRASHES = 2
FREE_A_DAY = 20
FREE_AT_ONCE = 3
LONGEST_PAUSE = 1800.0
FREE = (Outcome.LOST, Outcome.RELEASED)
NO_ROOM, DISK_FULL = "no_room", "disk_full"
FULL_A_DAY = 3


@dataclass(frozen=True)
class Verdict:
    """What follows an attempt: another one after `pause` seconds, or the end with a reason."""

    again: bool
    pause: float = 0.0
    reason_code: str = ""
    reason: str = ""


def verdict(history: Sequence[Attempt], newest_step: int, at: datetime, pause: float) -> Verdict:
    """What follows the attempt `history[0]`; the others are those before it, newest first.

    `newest_step` is the step of the newest stored checkpoint (0: none), `pause` the first back-off in
    seconds.
    """
    if history[0].outcome in FREE:
        return after_free(history, at, pause)
    return after_crash(history, newest_step, pause)


def after_free(history: Sequence[Attempt], at: datetime, pause: float) -> Verdict:
    """The machine's doing: not charged, but not for ever either."""
    day, last = at - timedelta(days=1), history[0]
    if last.reason_code == NO_ROOM:
        return Verdict(again=True, pause=pause)
    today = [a for a in history if a.outcome in FREE and a.ended_at is not None and a.ended_at > day]
    full = sum(a.reason_code == DISK_FULL for a in today)
    if last.reason_code == DISK_FULL and full >= FULL_A_DAY:
        told = f"It filled the disk of its worker {full} times in a day."
        return Verdict(again=False, reason_code=DISK_FULL, reason=told)
    times = sum(a.reason_code != NO_ROOM for a in today)
    if times > FREE_A_DAY:
        told = (
            f"Workers lost or gave back this job {times} times in a day. The last time: {last.reason}. "
            "Look at the workers on the queue page, then retry."
        )
        return Verdict(again=False, reason_code="infrastructure", reason=told)
    return Verdict(
        again=True, pause=backoff(times - FREE_AT_ONCE - 1, pause) if times > FREE_AT_ONCE else 0.0
    )


def after_crash(history: Sequence[Attempt], newest_step: int, pause: float) -> Verdict:
    """Crashes count from the last new checkpoint on: a job that gets on may crash now and then."""
    crashed = [a for a in history if a.outcome == Outcome.CRASHED and a.start_step >= newest_step]
    last = history[0]
    if poisoned(history):
        told = f"It crashed twice in a row at step {last.end_step:,}: {last.reason}"
        return Verdict(again=False, reason_code="poison", reason=told)
    most = HOST_MEMORY_CRASHES if last.reason_code == HOST_MEMORY else CRASHES
    if len(crashed) >= most:
        told = f"It crashed {len(crashed)} times without getting on. The last time: {last.reason}"
        return Verdict(again=False, reason_code=last.reason_code or "crashed", reason=told)
    return Verdict(again=True, pause=backoff(max(0, len(crashed) - 1), pause))


def poisoned(history: Sequence[Attempt]) -> bool:
    """Whether the last two crashes are one and the same: same cause, same step, which each had reached itself."""
    crashed = [a for a in history if a.outcome not in FREE][:2]
    return (
        len(crashed) == 2
        and all(a.outcome == Outcome.CRASHED and (a.end_step or 0) > a.start_step for a in crashed)
        and crashed[0].end_step == crashed[1].end_step
        and crashed[0].reason_code == crashed[1].reason_code
    )


def backoff(times: int, pause: float) -> float:
    """Seconds to wait: doubled each time, at most half an hour, give or take a fifth."""
    return min(LONGEST_PAUSE, pause * 2.0**times) * random.uniform(0.8, 1.2)
