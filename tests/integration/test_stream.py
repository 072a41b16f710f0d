"""The live stream: every event once and in order, also after a break, and nothing of other teams."""

import json
from collections.abc import Generator

import pytest

from shared.db import transaction
from shared.tables import Event, EventType, Job, State, User
from tests.factories import a_job, a_team, a_user, an_attempt
from tests.services import until
from tests.visitor import Visitor, the_web
from web import stream


@pytest.fixture
def job(clean) -> Job:
    """A running job whose team has one member."""
    with transaction() as db:
        team = a_team(db)
        job = a_job(db, team, state=State.RUNNING, stage="training")
        job.attempt_id = an_attempt(db, job).id
        job.created_by = a_user(db, team).id
        return job


def member(job: Job) -> Visitor:
    with transaction() as db:
        return Visitor(the_web(), db.get(User, job.created_by))


def said(job: Job, *messages: str, first: int = 1) -> None:
    """Lines of the job's log."""
    with transaction() as db:
        for seq, message in enumerate(messages, first):
            db.add(
                Event(
                    job_id=job.id,
                    lease_id="lease",
                    seq=seq,
                    team_id=job.team_id,
                    type=EventType.LOG,
                    data={"message": message},
                )
            )
            db.flush()


def heard(visitor: Visitor, job: Job, **more) -> Generator[dict]:
    """The messages of a stream as they come."""
    answer = visitor.get(f"/jobs/{job.id}/events", buffered=False, **more)
    assert answer.mimetype == "text/event-stream"
    for chunk in answer.iter_encoded():
        for block in chunk.decode().split("\n\n"):
            lines = dict(
                line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":")
            )
            if "data" in lines:
                yield lines | {"data": json.loads(lines["data"])}


def test_a_follower_hears_what_was_and_what_comes_once_and_in_order(job: Job):
    said(job, "one", "two")
    coming = heard(member(job), job)
    assert next(coming)["data"]["state"] == "running"
    assert [next(coming)["data"]["data"]["message"] for _ in range(2)] == ["one", "two"]
    said(job, "three", "four", first=3)
    told = [one["data"] for one in (next(coming) for _ in range(3)) if one["event"] == "event"]
    if len(told) < 2:
        told.append(next(coming)["data"])
    assert [one["data"]["message"] for one in told[:2]] == ["three", "four"]
    coming.close()


def test_after_a_break_the_stream_goes_on_behind_the_last_event(job: Job):
    said(job, "one", "two", "three")
    coming = heard(member(job), job)
    next(coming)
    seen = next(coming)
    coming.close()
    again = heard(member(job), job, headers={"Last-Event-ID": seen["id"]})
    next(again)
    assert [next(again)["data"]["data"]["message"] for _ in range(2)] == ["two", "three"]
    again.close()


def test_polling_says_the_same(job: Job):
    said(job, "one", "two")
    visitor = member(job)
    told = visitor.get(f"/jobs/{job.id}/events?after=0&once=1").get_json()
    assert [one["data"]["message"] for one in told["events"]] == ["one", "two"]
    assert told["job"]["state"] == "running"
    cursor = told["events"][0]["id"]
    assert len(visitor.get(f"/jobs/{job.id}/events?after={cursor}&once=1").get_json()["events"]) == 1


def test_where_every_place_is_taken_the_page_is_told_to_poll(job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "PLACES", 0)
    assert member(job).get(f"/jobs/{job.id}/events").status_code == 204


def test_another_team_hears_nothing(job: Job):
    with transaction() as db:
        foreigner = a_user(db, a_team(db))
    assert Visitor(the_web(), foreigner).get(f"/jobs/{job.id}/events").status_code == 404


def test_a_follower_that_leaves_ends_the_polling(job: Job):
    coming = heard(member(job), job)
    next(coming)
    assert job.id in stream.POLLER.followers
    coming.close()
    assert job.id not in stream.POLLER.followers


def test_a_follower_that_does_not_read_is_let_go_and_misses_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "WAITING", 4)
    monkeypatch.setattr(stream, "LONGEST", 6)
    visitor = member(job)
    said(job, "1")
    coming = heard(visitor, job)
    next(coming)
    first = next(coming)
    numbers, last = [first["data"]["data"]["message"]], first["id"]
    before = stream.POLLER.cursors[job.id]
    said(job, *"23456789", first=2)
    until(lambda: stream.POLLER.cursors[job.id] >= before + 8, 10, "the poller has handed them out")
    for one in coming:  # until the stream ends
        if one["event"] == "event":
            numbers.append(one["data"]["data"]["message"])
            last = one["id"]
        if len(numbers) == 2:
            said(job, "10", first=10)
    if len(numbers) < 2:
        said(job, "10", first=10)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)], "there is a gap in the stream"
    again = heard(visitor, job, headers={"Last-Event-ID": last})
    next(again)
    rest = [next(again)["data"]["data"]["message"] for _ in range(10 - len(numbers))]
    assert [*numbers, *rest] == [str(n) for n in range(1, 11)]
    again.close()
