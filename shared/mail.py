"""E-mail over SMTP, where the operator has set it. No request waits for it and none fails by it."""

import logging
import smtplib
import socket
import ssl
import threading
from contextlib import suppress
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import Any
from urllib.parse import unquote, urlsplit

from shared.columns import now
from shared.settings import settings

log = logging.getLogger(__name__)
SECONDS = 10  # for each word with the server
SECONDS_IN_ALL = 20  # for a message; then the connection is cut
FAILURES = (OSError, smtplib.SMTPException)


def possible() -> bool:
    """Whether e-mail can be sent at all."""
    return bool(settings().smtp_url)


def send(to: str, subject: str, text: str) -> threading.Thread:
    """Send a message in the background, so that the time of an answer tells nothing; a failure is logged."""

    def sending() -> None:
        try:
            deliver(message)
        except FAILURES:
            log.exception("e-mail could not be sent")

    message = letter(to, subject, text)
    sender = threading.Thread(target=sending, daemon=True)
    sender.start()
    return sender


def letter(to: str, subject: str, text: str, name: str = "") -> EmailMessage:
    """A message of plain text; `name` is the same for each try to send the same message."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings().mail_from, to, subject
    message["Date"] = format_datetime(now())
    message["Message-ID"] = (
        make_msgid() if not name else f"<{name}@{urlsplit(settings().public_url).hostname}>"
    )
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers of absent people
    message.set_content(text)
    return message


def deliver(message: EmailMessage) -> None:
    """Hand the message to the operator's server. Raises what FAILURES names."""
    server = urlsplit(settings().smtp_url)
    kind = TimedByTLS if server.scheme == "smtps" else Timed
    with kind(server.hostname or "localhost", server.port or 0, timeout=SECONDS) as smtp:
        smtp.ehlo_or_helo_if_needed()  # before it, nothing is known of what the server can do
        if server.scheme == "smtp" and smtp.has_extn("starttls"):
            smtp.starttls(context=ssl.create_default_context())
        if server.username:
            smtp.login(unquote(server.username), unquote(server.password or ""))
        smtp.send_message(message)


class Timed(smtplib.SMTP):
    """A conversation that is over after SECONDS_IN_ALL, however slowly the server speaks."""

    def __init__(self, *where: Any, **more: Any) -> None:
        self.begin()
        super().__init__(*where, **more)

    def begin(self) -> None:
        """From now on the time runs."""
        self.line: socket.socket | None = None
        self.over = threading.Event()
        self.cutter = threading.Timer(SECONDS_IN_ALL, self.cut)
        self.cutter.daemon = True
        self.cutter.start()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        """The connection, of which `line` is a second handle that TLS does not take away."""
        made = super()._get_socket(host, port, timeout)  # ty: ignore[missing-attribute]
        self.line = made.dup()
        if self.over.is_set():
            self.cut()
        return made

    def cut(self) -> None:
        """End the conversation: whoever waits for a word gets the end of it."""
        self.over.set()
        if self.line is not None:
            with suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The end, from whichever side."""
        super().close()
        self.cutter.cancel()
        if self.line is not None:
            self.line.close()


class TimedByTLS(smtplib.SMTP_SSL, Timed):
    """The same, by TLS from the first word on."""

    def __init__(self, *where: Any, **more: Any) -> None:
        self.begin()  # SMTP_SSL passes Timed's by
        super().__init__(*where, **more)
