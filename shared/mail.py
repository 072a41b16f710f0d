"""E-mail over SMTP, where the operator has set it. No request waits for it and none fails by it."""

import logging
import smtplib
import ssl
import threading
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from urllib.parse import unquote, urlsplit

from shared.columns import now
from shared.settings import settings

log = logging.getLogger(__name__)
SECONDS = 10  # for each word with the server
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
    kind = smtplib.SMTP_SSL if server.scheme == "smtps" else smtplib.SMTP
    with kind(server.hostname or "localhost", server.port or 0, timeout=SECONDS) as smtp:
        smtp.ehlo_or_helo_if_needed()  # before it, nothing is known of what the server can do
        if server.scheme == "smtp" and smtp.has_extn("starttls"):
            smtp.starttls(context=ssl.create_default_context())
        if server.username:
            smtp.login(unquote(server.username), unquote(server.password or ""))
        smtp.send_message(message)
