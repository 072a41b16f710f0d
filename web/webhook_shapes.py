"""Webhooks and what they have heard, over the wire."""

from typing import Literal

from pydantic import Field

from web.shapes import Shape
from web.wire import Request

Occasions = list[Literal["started", "succeeded", "failed", "cancelled"]]
Kinds = list[Literal["train", "evaluate", "infer", "export", "import"]]
URL = Field(
    description="https://, a public host. What else is allowed: docs/notifications.md.", max_length=2000
)


class CreateWebhook(Request):
    """An address that hears of the team's jobs."""

    url: str = URL
    occasions: Occasions | None = Field(None, min_length=1, description="All where not given.")
    kinds: Kinds | None = Field(
        None, min_length=1, description="Of jobs; train, evaluate and infer where not given."
    )


class UpdateWebhook(Request):
    """What changes of it."""

    url: str | None = Field(None, max_length=2000)
    occasions: Occasions | None = Field(None, min_length=1)
    kinds: Kinds | None = Field(None, min_length=1)
    active: bool | None = Field(None, description="Switched off, it hears nothing; what waits is given up.")


class Webhook(Shape):
    """An address that hears of the team's jobs."""

    id: str
    object: Literal["webhook"] = "webhook"
    created_at: int
    url: str
    occasions: Occasions
    kinds: Kinds
    active: bool
    off_reason: str | None = Field(description="Why it was switched off, where nobody did it by hand.")
    secret: str | None = Field(
        None, description="`whsec_…`, with which messages are signed. Told once: when it is made."
    )


class Try(Shape):
    """One try to deliver."""

    at: str
    status: int | None = Field(description="Of the answer, where one came.")
    seconds: float
    said: str = Field(description="Why it failed; empty where the message was received.")


class Delivery(Shape):
    """A message to a webhook. Its id is the message's `webhook-id`."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    created_at: int
    type: str
    job_id: str | None
    state: Literal["waiting", "delivered", "given_up"]
    tries: list[Try] = Field(description="The last twenty, newest last.")
    next_try_at: int | None
