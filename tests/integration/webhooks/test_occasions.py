"""What is told of jobs is written with them, once each, to the webhooks that asked for it."""

import json

import pytest
from sqlalchemy import text

from shared import jobs, outbox, webhooks
from shared.db import transaction
from shared.tables import Kind, Sent, State
from tests.factories import a_job, a_team
from tests.integration.webhooks.messages import a_life, deliveries, fake_delivery, the_delivery, types
from worker import postman


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
