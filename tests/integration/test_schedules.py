"""Schedules: each nominal time once, whatever the clocks, the beats and the outages do."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select

from shared import jobs, schedules
from shared.db import transaction
from shared.errors import Refused
from shared.tables import DatasetVersion, Job, Ready, RunOutcome, Schedule, ScheduleRun, State
from tests.factories import a_base_model, a_dataset, a_team

NIGHT = "30 2 * * *"


def a_schedule(db, cron=NIGHT, zone="Europe/Berlin", since=None, team=None, **order):
    team = team or a_team(db)
    version = a_dataset(db, team)
    order = {"recipe": "sft", "base_model": a_base_model(db).id, "hyperparameters": {"epochs": 1}} | order
    schedule = schedules.create(
        db, team_id=team.id, name="nightly", cron=cron, zone=zone, dataset_id=version.dataset_id, order=order
    )
    schedule.since = since or schedule.since
    db.flush()
    return schedule


def told(db, schedule):
    """{nominal time: outcome}, oldest first."""
    return {run.nominal: str(run.outcome) for run in reversed(schedules.runs(db, schedule.id))}


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_due_schedule_submits_its_order_with_the_newest_version(db):
    schedule = a_schedule(db, since=at("2026-11-22T12:00"), name="every night", processes=2, needs={"gpus": 1},
                          max_run_seconds=7200)  # fmt: skip
    old = db.exec(select(DatasetVersion).where(DatasetVersion.dataset_id == schedule.dataset_id)).one()
    fields = old.model_dump(exclude={"id", "number", "created_at"})
    new = DatasetVersion(**fields, number=2)
    db.add(new)
    db.flush()
    assert schedules.tick(db, at("2026-11-23T01:29")) == []
    (job,) = schedules.tick(db, at("2026-11-23T01:30"))
    assert (job.schedule_id, job.dataset_version_id, job.name) == (schedule.id, new.id, "every night")
    assert (job.state, job.spec["epochs"], job.resources) == (State.QUEUED, 1, {"processes": 2, "gpus": 1})
    assert job.max_run_seconds == 7200
    assert told(db, schedule) == {"2026-11-23T02:30": "submitted"}
    assert schedules.tick(db, at("2026-11-23T01:31")) == []


def test_two_beats_at_once_run_a_nominal_time_once(clean):
    with transaction() as db:
        many = [a_schedule(db, since=at("2026-11-22T12:00")).id for _ in range(5)]

    def tick(_):
        with transaction() as db:
            return len(schedules.tick(db, at("2026-11-23T01:30")))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(tick, range(16))) == len(many)
    with transaction() as db:
        assert len(db.exec(select(Job)).all()) == len(db.exec(select(ScheduleRun)).all()) == len(many)


def test_after_a_night_away_the_newest_time_runs_and_the_others_are_missed(db):
    schedule = a_schedule(db, "0 * * * *", "UTC", since=at("2026-11-22T20:30"))
    assert len(schedules.tick(db, at("2026-11-23T02:10"))) == 1
    assert told(db, schedule) == {
        "2026-11-22T21:00": "missed",
        "2026-11-22T22:00": "missed",
        "2026-11-22T23:00": "missed",
        "2026-11-23T00:00": "missed",
        "2026-11-23T01:00": "missed",
        "2026-11-23T02:00": "submitted",
    }


def test_what_is_more_than_six_hours_late_is_missed(db):
    schedule = a_schedule(db, since=at("2026-11-20T12:00"))
    assert schedules.tick(db, at("2026-11-23T09:00")) == []
    assert list(told(db, schedule).values()) == ["missed"] * 3


def test_a_long_outage_of_a_busy_schedule_is_bounded(db):
    schedule = a_schedule(db, "* * * * *", "UTC", since=at("2026-11-20T00:00"))
    assert len(schedules.tick(db, at("2026-11-23T00:00"))) == 1
    assert len(schedules.runs(db, schedule.id, limit=1000)) == schedules.MOST_MISSED + 1


def test_a_run_whose_predecessor_goes_on_is_skipped_visibly(db):
    schedule = a_schedule(db, since=at("2026-11-21T12:00"))
    (job,) = schedules.tick(db, at("2026-11-22T01:30"))
    assert schedules.tick(db, at("2026-11-23T01:30")) == []
    assert told(db, schedule)["2026-11-23T02:30"] == "skipped"
    jobs.cancel(db, job, "somebody")
    assert len(schedules.tick(db, at("2026-11-24T01:30"))) == 1


def test_a_refused_submission_is_noted_with_the_sentence_and_holds_up_no_other(db):
    bad, good = a_schedule(db, since=at("2026-11-22T12:00")), a_schedule(db, since=at("2026-11-22T12:00"))
    version = db.exec(select(DatasetVersion).where(DatasetVersion.dataset_id == bad.dataset_id)).one()
    version.state, version.error = Ready.FAILED, "Row 17 is not JSON."
    db.flush()
    assert [job.schedule_id for job in schedules.tick(db, at("2026-11-23T01:30"))] == [good.id]
    (run,) = schedules.runs(db, bad.id)
    assert run.outcome == RunOutcome.REFUSED
    assert "Row 17" in run.reason


def test_off_is_off_and_on_does_not_catch_up(db):
    schedule = a_schedule(db, since=at("2026-11-20T12:00"))
    schedules.toggle(db, schedule)
    assert schedules.next_times(schedule) == []
    assert schedules.tick(db, at("2026-11-23T01:30")) == []
    schedules.toggle(db, schedule)
    assert schedules.tick(db, jobs.clock(db)) == []
    assert told(db, schedule) == {}


def test_a_deleted_schedule_never_runs_and_keeps_its_runs(db):
    schedule = a_schedule(db, since=at("2026-11-21T12:00"))
    schedules.tick(db, at("2026-11-22T01:30"))
    schedules.delete(db, schedule)
    assert schedules.tick(db, at("2026-11-23T01:30")) == []
    assert len(told(db, schedule)) == 1
    with pytest.raises(Refused):
        schedules.get(db, schedule.team_id, schedule.id)


# zone, a cron line, the day before, and when it runs over the two days that follow, in UTC
NIGHTS = [
    (
        "Europe/Berlin",
        NIGHT,
        "2026-03-28",
        ["2026-03-28T01:30", "2026-03-29T01:00"],
    ),  # 02:30 is skipped: 03:00
    ("Europe/Berlin", NIGHT, "2026-10-24", ["2026-10-24T00:30", "2026-10-25T00:30"]),  # twice: the first
    ("America/New_York", NIGHT, "2026-03-07", ["2026-03-07T07:30", "2026-03-08T07:00"]),
    ("America/New_York", "30 1 * * *", "2026-10-31", ["2026-10-31T05:30", "2026-11-01T05:30"]),
    (
        "Australia/Lord_Howe",
        "15 2 * * *",
        "2026-10-03",
        ["2026-10-02T15:45", "2026-10-03T15:30"],
    ),  # half an hour
    ("Asia/Kolkata", NIGHT, "2026-03-28", ["2026-03-27T21:00", "2026-03-28T21:00"]),  # never changes
    ("UTC", "0 0 29 2 *", "2028-02-28", ["2028-02-29T00:00"]),
    ("UTC", "0 0 31 * *", "2026-04-29", []),
]


@pytest.mark.parametrize(("zone", "cron", "day", "expected"), NIGHTS)
def test_the_nights_when_clocks_change(db, zone, cron, day, expected):
    start = datetime.fromisoformat(day).replace(tzinfo=schedules.ZoneInfo(zone))
    schedule = a_schedule(db, cron, zone, since=start.astimezone(UTC))
    for quarter in range(2 * 24 * 4):
        for job in schedules.tick(db, start.astimezone(UTC) + timedelta(minutes=15 * quarter)):
            jobs.cancel(db, job, "somebody")
    runs = list(reversed(schedules.runs(db, schedule.id)))
    assert [run.due_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M") for run in runs] == expected
    assert all(run.outcome == RunOutcome.SUBMITTED for run in runs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"cron": "30 25 * * *"}, "cron"),
        ({"cron": "whenever"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"zone": "Mars/Olympus"}, "zone"),
        ({"name": " "}, "name"),
        ({"order": {"recipe": "nonsense"}}, "method.type"),
        ({"order": {"recipe": "sft", "surprise": 1}}, "surprise"),
        ({"order": {"recipe": "sft", "hyperparameters": {"learning_rate": 1e9}}}, "learning_rate"),
        ({"order": {"recipe": "sft", "processes": 17}}, "resources.processes"),
        ({"order": {"recipe": "sft", "needs": {"gpus": 17}}}, "resources.gpus"),
        ({"order": {"recipe": "sft", "max_run_seconds": 1}}, "max_run_seconds"),
        ({"dataset_id": "ds-none"}, "dataset_id"),
    ],
)
def test_what_cannot_run_is_refused_with_the_field(db, fields, param):
    schedule = a_schedule(db)
    known = schedule.model_dump(include={"team_id", "name", "cron", "zone", "dataset_id", "order"})
    with pytest.raises(Refused) as no:
        schedules.create(db, **known | fields)
    assert no.value.param == param
    with pytest.raises(Refused):
        schedules.update(db, schedule, **fields)


def test_next_times_are_local():
    schedule = Schedule(team_id="t", name="n", cron=NIGHT, zone="Europe/Berlin", dataset_id="d")
    times = schedules.next_times(schedule, 2, at("2026-11-22T12:00"))
    assert [time.isoformat() for time in times] == ["2026-11-23T02:30:00+01:00", "2026-11-24T02:30:00+01:00"]
