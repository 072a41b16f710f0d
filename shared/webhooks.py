"""Webhooks: addresses of a team that hear when its jobs start and end, each message signed.

The signature is that of Standard Webhooks (standardwebhooks.com, «Webhook Headers» and «Signature scheme»):
HMAC-SHA256 over «id.timestamp.body» with the bytes behind `whsec_`. A secret is made from SECRET_KEY and the
webhook's salt whenever it is needed, so that the database, a copy of it or a leak of it holds none.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlmodel import Session, col, select

from shared import outgoing
from shared.errors import NotFound, Refused
from shared.leases import clock
from shared.settings import settings
from shared.tables import Kind, Occasion, Webhook

MOST_OF_A_TEAM = 20
OVERLAP = timedelta(hours=24)  # in which the secret before a rotation signs too
PREFIX = "whsec_"
USUAL_KINDS = (Kind.TRAIN, Kind.EVALUATE, Kind.INFER)


def create(
    db: Session,
    *,
    team_id: str,
    url: str,
    occasions: Sequence[str] = tuple(Occasion),
    kinds: Sequence[str] = USUAL_KINDS,
    created_by: str | None = None,
) -> tuple[Webhook, str]:
    """A new webhook and its secret, which is shown this once. Raises Refused naming the field."""
    outgoing.target(url)
    if len(all_for(db, team_id)) >= MOST_OF_A_TEAM:
        raise Refused(f"A team has at most {MOST_OF_A_TEAM} webhooks. Delete one first.", code="too_many")
    webhook = Webhook(
        team_id=team_id,
        url=url,
        occasions=chosen(Occasion, occasions, "occasions"),
        kinds=chosen(Kind, kinds, "kinds"),
        salt=new_salt(),
        created_by=created_by,
    )
    db.add(webhook)
    db.flush()
    return webhook, secret(webhook.id, webhook.salt)


def update(
    db: Session,
    webhook: Webhook,
    *,
    url: str | None = None,
    occasions: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> Webhook:
    """Changes what is given; another address has not failed yet. Raises Refused naming the field."""
    if url is not None:
        outgoing.target(url)
        webhook.failing_since = webhook.failing_since if url == webhook.url else None
        webhook.url = url
    if occasions is not None:
        webhook.occasions = chosen(Occasion, occasions, "occasions")
    if kinds is not None:
        webhook.kinds = chosen(Kind, kinds, "kinds")
    db.flush()
    return webhook


def chosen(kind: type[Occasion] | type[Kind], words: Sequence[str], param: str) -> list[str]:
    """Some of an enum's words, in its order, each once. Raises Refused."""
    known = [word.value for word in kind]
    if not words or not set(words) <= set(known):
        raise Refused(f"Choose one or several of {', '.join(known)}.", param=param)
    return [word for word in known if word in words]


def get(db: Session, team_id: str, webhook_id: str) -> Webhook:
    """The team's webhook. Raises NotFound."""
    webhook = db.get(Webhook, webhook_id)
    if webhook is None or webhook.team_id != team_id:
        raise NotFound("webhook", webhook_id)
    return webhook


def locked(db: Session, team_id: str, webhook_id: str) -> Webhook:
    """The team's webhook, until the commit nobody else's to change. Raises NotFound."""
    webhook = locked_if_there(db, webhook_id)
    if webhook is None or webhook.team_id != team_id:
        raise NotFound("webhook", webhook_id)
    return webhook


def locked_if_there(db: Session, webhook_id: str) -> Webhook | None:
    """The webhook, locked, unless it is deleted.

    The lock is not one that hides the row from `outbox.tell`, which passes over what is being deleted.
    """
    own = select(Webhook).where(Webhook.id == webhook_id)
    return db.exec(own.with_for_update(key_share=True).execution_options(populate_existing=True)).first()


def all_for(db: Session, team_id: str) -> Sequence[Webhook]:
    """The team's webhooks, newest first."""
    return db.exec(select(Webhook).where(Webhook.team_id == team_id).order_by(col(Webhook.id).desc())).all()


def switch_on(db: Session, webhook: Webhook) -> None:
    """It hears again of what happens from now on."""
    webhook.active, webhook.off_reason, webhook.failing_since = True, "", None
    db.flush()


def rotate(db: Session, webhook: Webhook) -> str:
    """A new secret, shown this once. For a day each message bears the signature of the old one too."""
    webhook.old_salt, webhook.old_until = webhook.salt, clock(db) + OVERLAP
    webhook.salt = new_salt()
    db.flush()
    return secret(webhook.id, webhook.salt)


def delete(db: Session, webhook: Webhook) -> None:
    """It is gone, with what it was to hear and the log of what it has heard."""
    db.delete(webhook)
    db.flush()


# --- signing ----------------------------------------------------------------------------------------


def new_salt() -> str:
    """What makes a secret another one."""
    return secrets.token_hex(16)


def secret(webhook_id: str, salt: str) -> str:
    """The secret that goes with a salt, as a receiver is given it."""
    made = hmac.digest(settings().secret_key.encode(), f"{webhook_id}:{salt}".encode(), hashlib.sha256)
    return PREFIX + base64.b64encode(made).decode()


def signature(shown: str, message_id: str, timestamp: int, body: str) -> str:
    """One signature of a message, as its header has it."""
    key = base64.b64decode(shown.removeprefix(PREFIX))
    signed = hmac.digest(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


def headers(webhook: Webhook, message_id: str, body: str, at: datetime) -> dict[str, str]:
    """The headers of a message that goes out at that moment."""
    salts = [webhook.salt]
    if webhook.old_salt and webhook.old_until and at < webhook.old_until:
        salts.append(webhook.old_salt)
    timestamp = int(at.timestamp())
    signatures = [signature(secret(webhook.id, salt), message_id, timestamp, body) for salt in salts]
    return {
        "Content-Type": "application/json",
        "User-Agent": "Burnish-Webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
