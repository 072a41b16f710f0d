"""Messages of webhooks: what makes them, and what has become of them."""

import json
from datetime import timedelta

from sqlalchemy import update
from sqlmodel import col, select

from shared import jobs, outbox
from shared.columns import now
from shared.db import transaction
from shared.tables import Delivery, Kind, Outcome, State, Webhook
from tests.factories import a_job


def a_life(house, outcome=Outcome.SUCCEEDED, **fields):
    """A job from its start to that end."""
    with transaction() as db:
        job = a_job(db, house.team, Kind.INFER, name="nightly", **fields)
    with transaction() as db:
        attempt = jobs.claim(db, house.worker.id, "compute")
        assert attempt is not None
        assert attempt.job_id == job.id
    with transaction() as db:
        jobs.finish(db, attempt.lease_id, outcome, reason_code="diverged", reason="It diverged.")
    return job


def fake_delivery(house):
    """A delivery that waits for its first try."""
    with transaction() as db:
        job = a_job(db, house.team, Kind.INFER, state=State.SUCCEEDED)
        delivery = outbox.message(db, db.get_one(Webhook, house.webhook.id), "batch.completed", {}, job.id)
        db.add(delivery)
        return delivery


def let_time_pass(**fields):
    """What is due later is due now, or as told."""
    with transaction() as db:
        db.exec(update(Delivery).values(**(fields or {"due_at": now() - timedelta(seconds=1)})))


def deliveries():
    """All there are, the oldest first."""
    with transaction() as db:
        return db.exec(select(Delivery).order_by(col(Delivery.id))).all()


def the_delivery():
    """The only one there is."""
    [one] = deliveries()
    return one


def types(receiver):
    """Of what has come, in its order."""
    return [json.loads(one.body)["type"] for one in receiver.received]
