"""Webhooks: what is told of jobs is written with them, signed, sent, tried again, logged; kills lose nothing."""

import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import openai
import pytest
from sqlalchemy import text, update
from sqlmodel import col, select

from shared import jobs, outbox, webhooks
from shared.columns import now
from shared.db import engine, transaction
from shared.errors import Refused
from shared.settings import settings
from shared.tables import Delivery, Kind, Outcome, Role, Sent, State, Team, Webhook
from tests.factories import a_job, a_team, a_token, a_user, a_worker
from tests.receiver import Receiver
from tests.services import until
from tests.visitor import Api, Visitor, error_of
from web import create_app
from worker import postman


@pytest.fixture
def receiver(monkeypatch, stack):
    """Listens at an address that the operator has named."""
    with Receiver() as listening:
        monkeypatch.setattr(settings(), "webhook_hosts", listening.at)
        yield listening


@pytest.fixture
def house(clean, receiver):
    """A team with a webhook that hears of everything, and a worker."""
    with transaction() as db:
        team = a_team(db)
        webhook, secret = webhooks.create(db, team_id=team.id, url=receiver.url, kinds=list(Kind))
        return SimpleNamespace(team=team, webhook=webhook, secret=secret, worker=a_worker(db), owner=a_user(db, team, Role.OWNER))  # fmt: skip


def a_life(house, outcome=Outcome.SUCCEEDED, **fields):
    """A training from its start to that end."""
    with transaction() as db:
        job = a_job(db, house.team, Kind.INFER, name="nightly", **fields)
    with transaction() as db:
        attempt = jobs.claim(db, house.worker.id, "compute")
        assert attempt is not None
        assert attempt.job_id == job.id
    with transaction() as db:
        jobs.finish(db, attempt.lease_id, outcome, reason_code="diverged", reason="It diverged.")
    return job


def deliveries():
    with transaction() as db:
        return db.exec(select(Delivery).order_by(col(Delivery.id))).all()


def the_delivery():
    [one] = deliveries()
    return one


def types(receiver):
    return [json.loads(one.body)["type"] for one in receiver.received]


def let_time_pass(**fields):
    """What is due later is due now, or as told."""
    with transaction() as db:
        db.exec(update(Delivery).values(**(fields or {"due_at": now() - timedelta(seconds=1)})))


def fake_delivery(house):
    """A delivery that waits for its first try."""
    with transaction() as db:
        job = a_job(db, house.team, Kind.INFER, state=State.SUCCEEDED)
        delivery = outbox.message(db, db.get_one(Webhook, house.webhook.id), "batch.completed", {}, job.id)
        db.add(delivery)
        return delivery


# --- what is written --------------------------------------------------------------------------------


def test_a_job_that_starts_and_ends_is_told_of_once_each(house, receiver):
    job = a_life(house)
    postman.deliver()
    assert sorted(types(receiver)) == ["batch.completed", "batch.started"]
    told = {(body := json.loads(one.body))["type"]: body["data"] for one in receiver.received}
    assert told["batch.completed"]["id"] == job.id
    assert told["batch.completed"]["x_page"] == f"http://127.0.0.1:8000/jobs/{job.id}"
    assert postman.deliver() == 0
    assert {one.state for one in deliveries()} == {Sent.DELIVERED}


def test_a_second_attempt_is_no_second_start(house):
    with transaction() as db:
        a_job(db, house.team, Kind.INFER)
    for _ in range(2):
        with transaction() as db:
            attempt = jobs.claim(db, house.worker.id, "compute")
            assert attempt is not None
            jobs.release(db, attempt.lease_id, "drained")
    assert [one.type for one in deliveries()] == ["batch.started"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Kind.TRAIN, "fine_tuning.job"),
        (Kind.EVALUATE, "evaluation"),
        (Kind.EXPORT, "export"),
        (Kind.IMPORT, "import"),
    ],
)
def test_a_failure_and_a_cancellation_are_told_with_their_reasons(house, kind, name):
    with transaction() as db:
        failed, cancelled = a_job(db, house.team, kind), a_job(db, house.team, kind)
        jobs.end(db, failed, State.FAILED, "test", "diverged", "It diverged.")
        jobs.cancel(db, cancelled, "test")
    first, second = deliveries()
    assert (first.type, second.type) == (f"{name}.failed", f"{name}.cancelled")
    assert json.loads(first.body)["data"]["x_reason"] == "It diverged."


def test_a_job_that_fails_with_what_it_waited_for_is_told_of_too(house):
    with transaction() as db:
        first = a_job(db, house.team, Kind.INFER)
        second = a_job(db, house.team, Kind.INFER)
        db.connection().execute(text("INSERT INTO job_dependencies VALUES (:second, :first)"), {"first": first.id, "second": second.id})  # fmt: skip
        jobs.end(db, first, State.FAILED, "test", "diverged", "It diverged.")
    assert {(one.job_id, one.type) for one in deliveries()} == {(first.id, "batch.failed"), (second.id, "batch.failed")}  # fmt: skip


def test_what_did_not_happen_is_not_told(house):
    with pytest.raises(ZeroDivisionError), transaction() as db:  # noqa: PT012 - the error ends the transaction
        jobs.end(db, a_job(db, house.team, Kind.INFER), State.SUCCEEDED, "test")
        _ = 1 / 0
    assert deliveries() == []


def test_a_webhook_hears_only_what_it_asked_for_and_only_of_its_team(house):
    with transaction() as db:
        webhook = webhooks.locked(db, house.team.id, house.webhook.id)
        webhooks.update(db, webhook, occasions=["failed"], kinds=["infer"])
        other = a_team(db)
        jobs.end(db, a_job(db, house.team, Kind.INFER), State.SUCCEEDED, "test")
        jobs.end(db, a_job(db, house.team, Kind.EXPORT), State.FAILED, "test")
        jobs.end(db, a_job(db, other, Kind.INFER), State.FAILED, "test")
        heard = a_job(db, house.team, Kind.INFER)
        jobs.end(db, heard, State.FAILED, "test")
    assert [one.job_id for one in deliveries()] == [heard.id]


def test_a_webhook_that_is_off_hears_nothing_and_what_waited_is_given_up(house, receiver):
    waited = fake_delivery(house)
    with transaction() as db:
        outbox.switch_off(db, webhooks.locked(db, house.team.id, house.webhook.id))
    a_life(house)
    assert [(one.id, one.state) for one in deliveries()] == [(waited.id, Sent.GIVEN_UP)]
    assert postman.deliver() == 0
    with transaction() as db:
        webhooks.switch_on(db, webhooks.locked(db, house.team.id, house.webhook.id))
        jobs.end(db, a_job(db, house.team, Kind.INFER), State.FAILED, "test")
    postman.deliver()
    assert types(receiver) == ["batch.failed"]


def test_a_transition_does_not_wait_for_somebody_who_deletes_the_webhook(house):
    with transaction() as deleting:
        webhooks.delete(deleting, webhooks.locked(deleting, house.team.id, house.webhook.id))
        with transaction() as db:
            db.connection().execute(text("SET LOCAL lock_timeout = '200ms'"))
            jobs.end(db, a_job(db, house.team, Kind.INFER), State.FAILED, "test")
    assert deliveries() == []


def test_a_transition_neither_waits_for_somebody_who_changes_the_webhook_nor_passes_over_it(house):
    with transaction() as changing:
        webhooks.rotate(changing, webhooks.locked(changing, house.team.id, house.webhook.id))
        with transaction() as db:
            db.connection().execute(text("SET LOCAL lock_timeout = '200ms'"))
            jobs.end(db, a_job(db, house.team, Kind.INFER), State.FAILED, "test")
    assert the_delivery().type == "batch.failed"


# --- signing ----------------------------------------------------------------------------------------


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
    page = open("docs/notifications.md").read()  # noqa: PTH123, SIM115 - short
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


# --- tries ------------------------------------------------------------------------------------------


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


# --- pages and API ----------------------------------------------------------------------------------


@pytest.fixture
def visitor(house):
    return Visitor(create_app(testing=True), house.owner)


def test_the_page_shows_the_secret_once_and_the_log_with_every_try(house, visitor, receiver):
    page = visitor.post("/team/webhooks", url=receiver.url, occasions="failed", kinds="train")
    assert "whsec_" in page.text
    at = f"/team/webhooks/{newest_webhook().id}"
    assert "whsec_" not in visitor.get(at).text
    assert visitor.post(f"{at}/test").location == at
    receiver.answers = [503]
    postman.deliver()
    seen = visitor.get(at).text
    assert "burnish.test" in seen
    assert "It answered 503" in seen
    assert visitor.post(f"/team/deliveries/{deliveries()[-1].id}/again").location == at
    postman.deliver()
    assert "delivered" in visitor.get(at).text
    assert "whsec_" in visitor.post(f"{at}/secret").text
    assert visitor.post(at, url=receiver.url, occasions="started", kinds="infer").location == at
    assert (newest_webhook().occasions, newest_webhook().kinds) == (["started"], ["infer"])
    visitor.post(f"{at}/toggle")
    assert not newest_webhook().active
    visitor.post(f"{at}/delete")
    assert visitor.get(at).status_code == 404


def newest_webhook():
    with transaction() as db:
        return db.exec(select(Webhook).order_by(col(Webhook.id).desc())).first()


def test_a_wrong_address_comes_back_with_the_sentence_beside_it(visitor):
    page = visitor.post("/team/webhooks", url="http://169.254.169.254/", occasions="failed", kinds="train")
    assert page.status_code == 422
    assert "Use https://." in page.text
    assert 'value="http://169.254.169.254/"' in page.text
    page = visitor.post("/team/webhooks", url="https://hooks.example.com/", kinds="train")
    assert (page.status_code, "Choose one or several of started" in page.text) == (422, True)


def test_a_viewer_chooses_mails_and_sees_no_webhook(house, receiver):
    with transaction() as db:
        viewer = a_user(db, house.team, Role.VIEWER)
    page = Visitor(create_app(testing=True), viewer).get("/team/notifications").text
    assert receiver.url not in page
    assert "Owners of the team set webhooks up" in page


def test_the_api_does_what_the_page_does(house, receiver):
    with transaction() as db:
        api = Api(create_app(testing=True), a_token(db, house.team))
    made = api.post("/webhooks", json={"url": receiver.url, "occasions": ["failed"]})
    assert made["secret"].startswith("whsec_")
    assert made["kinds"] == ["train", "evaluate", "infer"]
    at = f"/webhooks/{made['id']}"
    assert api.get(at)["secret"] is None
    assert [one["id"] for one in api.get("/webhooks")["data"]] == [made["id"], house.webhook.id]
    sent = api.post(f"{at}/test")
    postman.deliver()
    [logged] = api.get(f"{at}/deliveries")["data"]
    assert (logged["id"], logged["state"], logged["tries"][0]["status"]) == (sent["id"], "delivered", 204)
    assert receiver.received[0].headers["webhook-id"] == sent["id"]
    assert api.post(f"/webhooks/deliveries/{sent['id']}/again")["state"] == "waiting"
    assert api.post(f"{at}/secret")["secret"] not in (None, made["secret"])
    assert api.post(at, json={"active": False})["active"] is False
    assert api.post(at, json={"active": True, "occasions": ["started"]})["occasions"] == ["started"]
    wrong = error_of(api.post(at, 400, json={"url": "https://10.0.0.1/"}))
    assert (wrong["param"], "not public" in wrong["message"]) == ("url", True)
    api.ask("DELETE", at)
    api.get(at, 404)


def test_a_team_has_a_bounded_number_of_webhooks(house):
    with transaction() as db:
        for n in range(webhooks.MOST_OF_A_TEAM - 1):
            webhooks.create(db, team_id=house.team.id, url=f"https://hooks{n}.example.com/")
        with pytest.raises(Refused, match="at most 20"):
            webhooks.create(db, team_id=house.team.id, url="https://hooks.example.com/")
