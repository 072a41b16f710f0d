"""/v1/webhooks: addresses that hear of the team's jobs, and what they have heard. Ours, not OpenAI's; the
messages are of OpenAI's shape, so that its client libraries unwrap them.
"""

from typing import cast

from flask import Blueprint, Response, g
from sqlmodel import select

from shared import outbox, webhooks
from shared.db import transaction
from shared.tables import Delivery, Sent, Webhook
from web import shapes, webhook_shapes, wire

api = Blueprint("api_webhooks", __name__, url_prefix="/v1")


@api.post("/webhooks")
@wire.operation(webhook_shapes.Webhook, body=webhook_shapes.CreateWebhook)
def create() -> Response:
    """Start a webhook. The answer holds its secret, this once."""
    asked = wire.body(webhook_shapes.CreateWebhook)
    with transaction() as db:
        given = {name: value for name, value in asked.model_dump().items() if value is not None}
        webhook, secret = webhooks.create(db, team_id=g.caller.team_id, created_by=g.caller.user_id, **given)
    return wire.answer(shape(webhook, secret))


@api.get("/webhooks")
@wire.operation(shapes.Page[webhook_shapes.Webhook], query=wire.Paging)
def index() -> Response:
    """List the team's webhooks, newest first."""
    asked = wire.query(wire.Paging)
    wanted = select(Webhook).where(Webhook.team_id == g.caller.team_id)
    with transaction() as db:
        rows, more = wire.cut(db, wanted, Webhook.id, asked)
    return wire.listed([shape(row) for row in rows], more)


@api.get("/webhooks/<webhook_id>")
@wire.operation(webhook_shapes.Webhook)
def retrieve(webhook_id: str) -> Response:
    """One webhook."""
    with transaction() as db:
        return wire.answer(shape(webhooks.get(db, g.caller.team_id, webhook_id)))


@api.post("/webhooks/<webhook_id>")
@wire.operation(webhook_shapes.Webhook, body=webhook_shapes.UpdateWebhook)
def update(webhook_id: str) -> Response:
    """Change a webhook: where it is, what it hears of, on or off."""
    with transaction() as db:
        webhook = webhooks.locked(db, g.caller.team_id, webhook_id)
        asked = wire.body(webhook_shapes.UpdateWebhook)
        webhooks.update(db, webhook, url=asked.url, occasions=asked.occasions, kinds=asked.kinds)
        if asked.active is not None and asked.active != webhook.active:
            (webhooks.switch_on if asked.active else outbox.switch_off)(db, webhook)
        return wire.answer(shape(webhook))


@api.delete("/webhooks/<webhook_id>")
@wire.operation(shapes.Deleted)
def delete(webhook_id: str) -> Response:
    """End a webhook, with what it was to hear and its log."""
    with transaction() as db:
        webhooks.delete(db, webhooks.locked(db, g.caller.team_id, webhook_id))
    return wire.answer(shapes.Deleted(id=webhook_id, object="webhook"))


@api.post("/webhooks/<webhook_id>/secret")
@wire.operation(webhook_shapes.Webhook)
def rotate(webhook_id: str) -> Response:
    """Make a new secret, told this once; for a day messages bear the signature of the old one too."""
    with transaction() as db:
        webhook = webhooks.locked(db, g.caller.team_id, webhook_id)
        return wire.answer(shape(webhook, webhooks.rotate(db, webhook)))


@api.post("/webhooks/<webhook_id>/test")
@wire.operation(webhook_shapes.Delivery)
def try_out(webhook_id: str) -> Response:
    """Send a message that tells of nothing, once, also while the webhook is off."""
    with transaction() as db:
        return wire.answer(delivery(outbox.try_out(db, webhooks.locked(db, g.caller.team_id, webhook_id))))


@api.get("/webhooks/<webhook_id>/deliveries")
@wire.operation(shapes.Page[webhook_shapes.Delivery], query=wire.Paging)
def deliveries(webhook_id: str) -> Response:
    """List what a webhook was to hear in the last thirty days, newest first, with every try."""
    asked = wire.query(wire.Paging)
    with transaction() as db:
        wanted = outbox.log(webhooks.get(db, g.caller.team_id, webhook_id))
        rows, more = wire.cut(db, wanted, Delivery.id, asked)
    return wire.listed([delivery(row) for row in rows], more)


@api.post("/webhooks/deliveries/<delivery_id>/again")
@wire.operation(webhook_shapes.Delivery)
def again(delivery_id: str) -> Response:
    """Deliver a message again, with the same id."""
    with transaction() as db:
        return wire.answer(delivery(outbox.again(db, g.caller.team_id, delivery_id)))


def shape(webhook: Webhook, secret: str | None = None) -> webhook_shapes.Webhook:
    """A webhook on the wire."""
    return webhook_shapes.Webhook(
        id=webhook.id,
        created_at=cast(int, wire.seconds(webhook.created_at)),
        url=webhook.url,
        occasions=webhook.occasions,
        kinds=webhook.kinds,
        active=webhook.active,
        off_reason=webhook.off_reason or None,
        secret=secret,
    )


def delivery(row: Delivery) -> webhook_shapes.Delivery:
    """A delivery on the wire."""
    return webhook_shapes.Delivery(
        id=row.id,
        created_at=cast(int, wire.seconds(row.created_at)),
        type=row.type,
        job_id=row.job_id,
        state=row.state.value,
        tries=[webhook_shapes.Try(**line) for line in row.log],
        next_try_at=wire.seconds(row.due_at) if row.state == Sent.WAITING else None,
    )
