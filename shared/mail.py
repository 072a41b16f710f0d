"""E-mail over SMTP, where the operator has set it; nothing waits for it and nothing fails by it."""

import logging
import smtplib
import ssl
import threading
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

from shared.settings import settings

log = logging.getLogger(__name__)
SECONDS = 20


def possible() -> bool:
    """Whether e-mail can be sent at all."""
    return bool(settings().smtp_url)


def send(to: str, subject: str, text: str) -> threading.Thread:
    """Send a message in the background, so that the time of an answer tells nothing."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings().mail_from, to, subject
    message.set_content(text)
    sender = threading.Thread(target=_deliver, args=(settings().smtp_url, message), daemon=True)
    sender.start()
    return sender


def _deliver(url: str, message: EmailMessage) -> None:
    server = urlsplit(url)
    kind = smtplib.SMTP_SSL if server.scheme == "smtps" else smtplib.SMTP
    try:
        with kind(server.hostname or "localhost", server.port or 0, timeout=SECONDS) as smtp:
            if server.scheme == "smtp" and smtp.has_extn("starttls"):
                smtp.starttls(context=ssl.create_default_context())
            if server.username:
                smtp.login(unquote(server.username), unquote(server.password or ""))
            smtp.send_message(message)
    except (OSError, smtplib.SMTPException):
        log.exception("e-mail could not be sent")
