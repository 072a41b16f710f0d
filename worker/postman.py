"""Sends what the outbox has due. Beat calls it every few seconds, in any worker.

A try is one request; what came of it is noted in a transaction of its own afterwards. Killed in between, the
delivery is due again when its lease ends, under the same id.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from shared import mail, outbox, outgoing
from shared.db import transaction
from shared.errors import Refused
from shared.outbox import Letter
from worker.contact import AWAY

log = logging.getLogger(__name__)

BATCH = 16  # taken at once: two rounds of twenty seconds at most, within the lease
AT_ONCE = 8
ROUND_SECONDS = 20.0  # after which it leaves the rest to the next call


BUSY = (429, 503)  # answers whose Retry-After counts


@dataclass(frozen=True)
class Outcome:
    """The status of the answer, why it failed or an empty text, and the pause that the receiver asks for."""

    status: int | None
    said: str
    pause: timedelta = timedelta(0)


def deliver() -> int:
    """Sends until nothing is due or the time is up. Returns how many tries it made. Raises what AWAY names."""
    ends, tries = time.monotonic() + ROUND_SECONDS, 0
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="postman") as pool:
        while time.monotonic() < ends:
            with transaction() as db:
                letters = outbox.take(db, BATCH)
            if not letters:
                break
            tries += len(letters)
            list(pool.map(carry, letters))
    return tries


def carry(letter: Letter) -> None:
    """One try, and what came of it."""
    began = time.monotonic()
    came = send(letter)
    try:
        with transaction() as db:
            seconds = time.monotonic() - began
            outbox.settle(db, letter, status=came.status, seconds=seconds, said=came.said, pause=came.pause)
    except AWAY as away:
        log.warning("The database is away; %s will be sent again: %s", letter.id, away)


def send(letter: Letter) -> Outcome:
    """What came of one try."""
    return by_post(letter) if letter.webhook_id else Outcome(None, by_mail(letter))


def by_mail(letter: Letter) -> str:
    """Why the e-mail was not taken; empty where it was."""
    if not letter.to:
        return "The person has left the team."
    if not mail.possible():
        return "SMTP_URL is not set."
    try:
        mail.deliver(mail.letter(letter.to, letter.subject, letter.body, letter.id))
    except mail.FAILURES as failed:
        log.warning("The e-mail %s could not be sent: %s", letter.id, failed)
        return f"The mail server did not take it: {failed}"
    return ""


def by_post(letter: Letter) -> Outcome:
    """What came of a request."""
    try:
        answer = outgoing.post(letter.url, letter.body.encode(), letter.headers)
    except (Refused, outgoing.Unreached) as failed:
        return Outcome(None, str(failed))
    said = complaint(answer.status)
    if answer.status not in BUSY or answer.pause is None:
        return Outcome(answer.status, said)
    asked = round(answer.pause.total_seconds())
    return Outcome(answer.status, f"{said} It asks for a pause of {asked:,} s.", answer.pause)


def complaint(status: int) -> str:
    """Why an answer does not count as received; empty where it does."""
    if 200 <= status < 300:
        return ""
    if 300 <= status < 400:
        return (
            f"It answered {status}, a redirect; these are not followed. Enter the address that it leads to."
        )
    return f"It answered {status}; an answer from 200 to 299 says that a message was received."
