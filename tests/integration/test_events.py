"""Events: appended once, fenced, read after a cursor, thinned for charts."""

import pytest
from sqlalchemy import text

from shared import events, jobs
from shared.tables import EventType, Kind, Outcome
from tests.factories import a_job, a_team, a_worker


@pytest.fixture
def job(db):
    return a_job(db, a_team(db), Kind.EXPORT)


@pytest.fixture
def lease(db, job):
    return leased(db, job)


def leased(db, job):
    attempt = jobs.claim(db, a_worker(db).id, job.slot)
    assert attempt
    return attempt.lease_id


def line(seq, kind="step", step=None, **data):
    return {"seq": seq, "at": 1.7e9 + seq, "type": kind, "step": seq if step is None else step, "data": data}


def test_the_same_lines_twice_are_stored_once(db, job, lease):
    lines = [line(n, loss=1.0 / n) for n in range(1, 6)]
    assert events.append(db, lease, job, lines[:3])
    assert events.append(db, lease, job, lines)
    assert [e.seq for e in events.after(db, job.id)] == [1, 2, 3, 4, 5]
    assert events.last_seq(db, job.id, lease) == 5


def test_a_lost_lease_appends_nothing(db, job, lease):
    jobs.finish(db, lease, Outcome.RELEASED)
    assert not events.append(db, lease, job, [line(1)])
    assert list(events.after(db, job.id)) == []


def test_reading_goes_on_after_the_cursor_and_by_type(db, job, lease):
    events.append(db, lease, job, [line(1), line(2, "log", message="hello"), line(3)])
    first = events.after(db, job.id, limit=2)
    assert [e.seq for e in first] == [1, 2]
    assert [e.seq for e in events.after(db, job.id, first[-1].id or 0)] == [3]
    assert [e.seq for e in events.after(db, job.id, types=["log"])] == [2]


def test_text_that_postgres_cannot_keep_is_cleaned(db, job, lease):
    told = "a\0b \ud800 \\u0000 c"
    events.append(db, lease, job, [line(1, "log", message=told), line(2, "log", message="x" * 100_000)])
    assert events.logs(db, job.id)[0]["message"] == "ab ? \\u0000 c"
    assert len(events.logs(db, job.id)[1]["message"]) < 9000


def test_curves_keep_their_ends_and_their_peaks(db, job, lease):
    losses = {n: 5.0 - n / 1000 for n in range(1, 2001)} | {777: 50.0, 1234: -50.0}
    events.append(db, lease, job, [line(n, loss=loss, epoch=n / 100) for n, loss in losses.items()])
    train = events.series(db, job.id, points=200)["train"]
    assert len(train["step"]) == len(train["loss"]) == len(train["epoch"]) <= 200
    assert train["step"] == sorted(set(train["step"]))
    assert (train["step"][0], train["step"][-1]) == (1, 2000)
    assert {50.0, -50.0} <= set(train["loss"])


def test_a_short_history_is_shown_whole(db, job, lease):
    events.append(db, lease, job, [line(n, loss=float(n)) for n in range(1, 60)])
    assert events.series(db, job.id)["train"]["step"] == list(range(1, 60))
    assert events.series(db, "ftjob-none") == {"train": {"step": []}, "valid": {"step": []}, "base": {}}


def test_a_resumed_attempt_overwrites_the_steps_that_it_repeats(db, job, lease):
    events.append(db, lease, job, [line(n, loss=1.0) for n in range(1, 11)])
    jobs.finish(db, lease, Outcome.RELEASED)
    second = leased(db, job)
    events.append(db, second, job, [line(n, step=n + 5, loss=2.0) for n in range(1, 11)])
    train = events.series(db, job.id)["train"]
    assert dict(zip(train["step"], train["loss"], strict=True)) == {
        n: 1.0 if n < 6 else 2.0 for n in range(1, 16)
    }


def test_evaluations_stand_beside_the_base(db, job, lease):
    rows = [
        line(1, "eval", 0, which="base", metrics={"loss": 3.0}),
        line(2, "eval", 10, which="tuned", metrics={"loss": 2.0}),
        line(3, "eval", 20, which="tuned", metrics={"loss": 1.0, "perplexity": None}),
    ]
    events.append(db, lease, job, rows)
    found = events.series(db, job.id)
    assert found["base"] == {"loss": 3.0}
    assert found["valid"] == {"step": [10, 20], "loss": [2.0, 1.0], "perplexity": [None, None]}


def test_samples_come_by_step_the_newest_word_each(db, job, lease):
    def shown(answer):
        return [{"prompt": "p", "expected": "e", "answer": answer}]

    rows = [line(n, "sample", step, samples=shown(str(n))) for n, step in ((1, 0), (2, 10), (3, 10))]
    events.append(db, lease, job, rows)
    assert events.samples(db, job.id) == [
        {"step": 0, "samples": shown("1")},
        {"step": 10, "samples": shown("3")},
    ]


def test_logs_are_the_last_lines_with_the_errors_among_them(db, job, lease):
    rows = [line(n, "log", message=str(n), level="warn") for n in range(1, 6)] + [
        line(6, "error", message="no")
    ]
    events.append(db, lease, job, rows)
    assert [(e["message"], e["level"]) for e in events.logs(db, job.id, limit=2)] == [
        ("5", "warn"),
        ("no", "error"),
    ]


def test_charts_cost_the_same_however_long_the_history_is(db, job, lease):
    """It looks at a bounded number of events for each bucket, found by an index."""
    filled = text("""
        INSERT INTO events (job_id, lease_id, seq, team_id, at, type, step, data)
        SELECT :job, :lease, n, :team, now(), 'step', n, jsonb_build_object('loss', random())
          FROM generate_series(1, 100000) n""")
    db.connection().execute(filled, {"job": job.id, "lease": lease, "team": job.team_id})
    found = events.thinned(db, job.id, EventType.STEP, 100, lowest="data->>'loss'")
    assert 50 < len(found) <= 100
