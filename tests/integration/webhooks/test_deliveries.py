"""Deliveries are tried again, logged, given up, and sent by one sender at a time; kills lose nothing."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from email.utils import format_datetime

import pytest
from sqlalchemy import text
from sqlmodel import select

from shared import outbox, webhooks
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.settings import settings
from shared.tables import Delivery, Sent, Team, Webhook
from tests.factories import a_team
from tests.integration.webhooks.messages import deliveries, fake_delivery, let_time_pass, the_delivery
from tests.services import until
from worker import postman


def test_a_failed_try_is_made_again_later_and_later_until_it_is_given_up(house, receiver):
    fake_delivery(house)
    receiver.answers = [500] * outbox.TRIES
    pauses = []
    for _ in range(outbox.TRIES):
        assert postman.deliver() == 1
        one = the_delivery()
        pauses.append((one.due_at - now()) / timedelta(minutes=1))
        assert postman.deliver() == 0  # not before its time
        let_time_pass()
    assert one.state == Sent.GIVEN_UP
    assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
    for pause, planned in zip(pauses, outbox.PAUSES, strict=False):
        assert 0.79 <= pause / (planned / timedelta(minutes=1)) <= 1.2
    assert 0.7 < sum(outbox.PAUSES, timedelta()) / timedelta(days=1) < 1.1
    assert [line["status"] for line in one.log] == [500] * outbox.TRIES
    assert "It answered 500" in one.log[-1]["said"]
    assert postman.deliver() == 0


def test_after_a_success_nothing_is_sent_any_more(house, receiver):
    fake_delivery(house)
    receiver.answers = [500]
    postman.deliver()
    let_time_pass()
    postman.deliver()
    let_time_pass()
    assert postman.deliver() == 0
    one = the_delivery()
    assert (one.state, [line["status"] for line in one.log]) == (Sent.DELIVERED, [500, 204])
    assert len(receiver.received) == 2


@pytest.mark.parametrize(
    ("status", "asked", "least", "most"),
    [
        (429, "600", 600, 610),
        (503, format_datetime(now() + timedelta(hours=2)), 5400, 7200),
        (429, "99999999", 86_300, 86_400),  # a day at most
        (503, "soon", 48, 72),
        (429, "1", 48, 72),  # no sooner than without
        (500, "600", 48, 72),
    ],
    ids=["seconds", "date", "too long", "no time", "sooner", "no busy receiver"],  # the same in every process
)
def test_a_busy_receiver_is_left_alone_for_as_long_as_it_asks(house, receiver, status, asked, least, most):
    def busy(handler):
        handler.send_response(status)
        handler.send_header("Retry-After", asked)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    fake_delivery(house)
    receiver.then = busy
    assert postman.deliver() == 1
    one = the_delivery()
    assert least - 5 <= (one.due_at - now()).total_seconds() <= most
    assert f"It answered {status}" in one.log[0]["said"]
    assert ("asks for a pause" in one.log[0]["said"]) == (status != 500 and asked != "soon")


def test_a_redirect_is_a_failure_that_says_so(house, receiver):
    fake_delivery(house)
    receiver.answers = [307]
    postman.deliver()
    assert "not followed" in the_delivery().log[0]["said"]
    assert [one.path for one in receiver.received] == ["/hook"]


def test_what_may_not_be_reached_is_logged_with_the_way_out(house, receiver, monkeypatch):
    fake_delivery(house)
    monkeypatch.setattr(settings(), "webhook_hosts", "")
    postman.deliver()
    line = the_delivery().log[0]
    assert line["status"] is None
    assert "Use https" in line["said"]
    assert receiver.received == []


def test_a_delivery_is_one_senders_at_a_time_and_nobody_waits_for_it(house):
    for _ in range(3):
        fake_delivery(house)
    with transaction() as first:
        taken = outbox.take(first, 2)
        with transaction() as second:
            second.connection().execute(text("SET LOCAL lock_timeout = '200ms'"))
            rest = outbox.take(second, 5)
    assert len(taken) == 2
    assert len(rest) == 1
    with transaction() as db:
        assert outbox.take(db, 5) == []  # the leases hold after the commit too


def test_a_senders_word_after_its_lease_is_ignored(house):
    fake_delivery(house)
    with transaction() as db:
        [late] = outbox.take(db, 1)
    let_time_pass(sending_until=now() - timedelta(seconds=1))
    with transaction() as db:
        [mine] = outbox.take(db, 1)
        outbox.settle(db, late, status=204, seconds=1, said="")
        assert db.get_one(Delivery, mine.id).state == Sent.WAITING
        outbox.settle(db, mine, status=500, seconds=1, said="It answered 500.")
    assert [line["status"] for line in the_delivery().log] == [500]


SENDER = "from worker import postman; postman.deliver()"


def test_a_sender_that_is_killed_between_sending_and_noting_it_sends_again_under_the_same_id(house, receiver):
    fake_delivery(house)
    held = []
    receiver.then = lambda handler: held.append(handler.headers) or until(lambda: not receiver.then)
    here = os.environ | {"WEBHOOK_HOSTS": receiver.at}
    sender = subprocess.Popen([sys.executable, "-c", SENDER], env=here)
    until(lambda: held, what="the message has come")
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    receiver.then = None
    one = the_delivery()
    assert (one.state, one.log) == (Sent.WAITING, [])
    assert postman.deliver() == 0  # the dead sender's lease
    let_time_pass(sending_until=now() - timedelta(seconds=1))
    assert postman.deliver() == 1
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == one.id
    assert first.body == second.body
    assert the_delivery().state == Sent.DELIVERED


def test_a_delivery_that_kills_each_of_its_senders_ends_too(house):
    fake_delivery(house)
    for _ in range(outbox.TRIES):
        with transaction() as db:
            assert len(outbox.take(db, 1)) == 1
        let_time_pass(sending_until=now() - timedelta(seconds=1))
    with transaction() as db:
        assert outbox.take(db, 1) == []
    assert the_delivery().state == Sent.GIVEN_UP


def test_of_one_receiver_a_few_are_taken_so_that_others_have_their_turn(house):
    with transaction() as db:
        webhook = db.get_one(Webhook, house.webhook.id)
        db.add_all(outbox.message(db, webhook, "burnish.test", {}) for _ in range(10))
    with transaction() as db:
        other = a_team(db)
        quiet, _ = webhooks.create(db, team_id=other.id, url="https://hooks.example.com/")
        delivery = outbox.try_out(db, quiet)
    with transaction() as db:
        taken = outbox.take(db, 16)
    assert len(taken) == outbox.FAIRLY + 1
    assert delivery.id in {letter.id for letter in taken}


def test_a_webhook_without_a_success_for_three_days_is_switched_off_with_the_reason(house, receiver):
    fake_delivery(house)
    receiver.answers = [500, 500, 204, 500]
    postman.deliver()
    with transaction() as db:
        webhook = db.get_one(Webhook, house.webhook.id)
        assert webhook.active
        webhook.failing_since = now() - outbox.OFF_AFTER
    waiting = fake_delivery(house)
    postman.deliver()
    with transaction() as db:
        webhook = db.get_one(Webhook, house.webhook.id)
        assert not webhook.active
        assert webhook.off_reason.startswith("No delivery has arrived since ")
        assert db.get_one(Delivery, waiting.id).state == Sent.GIVEN_UP
        outbox.try_out(db, webhook)
    postman.deliver()  # a test goes out all the same
    with transaction() as db:
        webhook = webhooks.locked(db, house.team.id, house.webhook.id)
        assert webhook.failing_since is None
        webhooks.switch_on(db, webhook)
        assert webhook.off_reason == ""


def test_another_address_has_not_failed_yet(house, receiver):
    with transaction() as db:
        webhook = webhooks.locked(db, house.team.id, house.webhook.id)
        webhook.failing_since = failing = now() - outbox.OFF_AFTER
        assert webhooks.update(db, webhook, url=webhook.url, kinds=["train"]).failing_since == failing
        assert webhooks.update(db, webhook, url=f"{receiver.url}/elsewhere").failing_since is None


def test_a_receiver_that_says_gone_is_not_asked_again(house, receiver):
    fake_delivery(house)
    receiver.answers = [410]
    postman.deliver()
    with transaction() as db:
        assert "gone for good" in db.get_one(Webhook, house.webhook.id).off_reason
    let_time_pass()
    assert postman.deliver() == 0


def test_a_message_can_be_delivered_again_with_the_same_id_but_not_while_it_is_sent(house, receiver):
    one = fake_delivery(house)
    postman.deliver()
    with transaction() as db:
        outbox.again(db, house.team.id, one.id)
    with transaction() as db:
        outbox.take(db, 1)
        with pytest.raises(Refused, match="being sent"):
            outbox.again(db, house.team.id, one.id)
    let_time_pass(sending_until=now() - timedelta(seconds=1))
    postman.deliver()
    assert [message.headers["webhook-id"] for message in receiver.received] == [one.id, one.id]


def test_the_log_forgets_what_is_older_than_a_month_and_has_ended(house):
    for state, age in ((Sent.DELIVERED, 31), (Sent.WAITING, 31), (Sent.DELIVERED, 1)):
        one = fake_delivery(house)
        with transaction() as db:
            row = db.get_one(Delivery, one.id)
            row.state, row.created_at = state, now() - timedelta(days=age)
    with transaction() as db:
        outbox.forget(db, 100)
    assert [one.state for one in deliveries()] == [Sent.WAITING, Sent.DELIVERED]


def test_a_deleted_team_takes_its_webhooks_and_deliveries_along(house):
    fake_delivery(house)
    with transaction() as db:
        db.connection().execute(text("DELETE FROM jobs"))
        db.delete(db.get_one(Team, house.team.id))
    with transaction() as db:
        assert db.exec(select(Webhook)).all() == []
        assert db.exec(select(Delivery)).all() == []
