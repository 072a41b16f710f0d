"""Messages of webhooks are signed with a secret that stands nowhere and can be changed."""

import base64
import hashlib
import hmac
from pathlib import Path

import openai
import pytest
from sqlalchemy import text

from shared import webhooks
from shared.columns import now
from shared.db import engine, transaction
from shared.tables import Outcome
from tests.integration.webhooks.messages import a_life, fake_delivery
from worker import postman


def test_a_message_is_signed_by_the_standard_and_openais_library_unwraps_it(house, receiver):
    a_life(house, Outcome.FAILED)
    postman.deliver()
    for message in receiver.received:
        headers, body = message.headers, message.body
        assert headers["content-type"] == "application/json"
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = base64.b64decode(house.secret.removeprefix("whsec_"))
        assert len(key) == 32
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert abs(now().timestamp() - int(headers["webhook-timestamp"])) < 60
        client = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1")
        event = client.webhooks.unwrap(body.decode(), headers, secret=house.secret)
        assert event.id == headers["webhook-id"]
        other = "whsec_" + base64.b64encode(b"x" * 32).decode()
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.decode(), headers, secret=other)


def test_the_example_of_the_page_accepts_a_message_and_no_other(house, receiver):
    page = Path("docs/notifications.md").read_text()
    scope: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], scope)
    fake_delivery(house)
    postman.deliver()
    [message] = receiver.received
    assert scope["is_genuine"](house.secret, message.headers, message.body)
    assert not scope["is_genuine"](house.secret, message.headers, message.body + b" ")
    assert not scope["is_genuine"](house.secret, message.headers | {"webhook-timestamp": "1"}, message.body)


def test_for_a_day_after_a_rotation_both_secrets_sign(house, receiver):
    with transaction() as db:
        fresh = webhooks.rotate(db, webhooks.locked(db, house.team.id, house.webhook.id))
    assert fresh != house.secret
    fake_delivery(house)
    postman.deliver()
    with transaction() as db:
        webhooks.locked(db, house.team.id, house.webhook.id).old_until = now()
    fake_delivery(house)
    postman.deliver()
    both, one = (message.headers["webhook-signature"].split() for message in receiver.received)
    assert len(both) == 2
    assert len(one) == 1
    message = receiver.received[0]
    signed = webhooks.signature(house.secret, message.headers["webhook-id"], int(message.headers["webhook-timestamp"]), message.body.decode())  # fmt: skip
    assert both[1] == signed


def test_the_secret_stands_nowhere_in_the_database(house):
    with engine().connect() as connection:
        dump = str(connection.execute(text("SELECT to_jsonb(w) FROM webhooks w")).scalars().all())
    key = base64.b64decode(house.secret.removeprefix("whsec_"))
    assert house.webhook.id in dump
    for form in (house.secret.removeprefix("whsec_"), key.hex(), base64.b64encode(key).decode()):
        assert form not in dump
