"""What is said of an attempt that ended as it was asked to."""

import pytest

from shared.tables import Job, Outcome
from worker import exits
from worker.exits import Circumstances


def a_job(**fields):
    return Job(id="ftjob-1", team_id="team-1", **fields)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(60, "1 min"), (90, "90 s"), (2700, "45 min"), (3600, "1 h"), (5400, "1 h 30 min"), (90_000, "25 h")],
)
def test_a_longest_run_is_said_in_words(seconds, said):
    assert exits.span(seconds) == said


def test_an_overdue_attempt_fails_with_the_sentence():
    ending = exits.read(exits.STOPPED, a_job(max_run_seconds=7200), Circumstances(asked="overdue"))
    assert (ending.outcome, ending.reason_code, ending.param) == (
        Outcome.FAILED,
        "max_run_time",
        "max_run_seconds",
    )
    assert ending.reason == "It took longer than 2 h, the longest that it may run."
    assert exits.unstarted("overdue", a_job(max_run_seconds=7200)) == ending


def test_a_stop_succeeds_where_the_trainer_ended_properly_and_gives_back_what_had_not_begun():
    assert exits.read(exits.DONE, a_job(), Circumstances(asked="stop")).reason_code == "stopped_early"
    assert exits.read(exits.STOPPED, a_job(), Circumstances(asked="stop")).outcome == Outcome.CANCELLED
    assert exits.unstarted("stop", a_job()).outcome == Outcome.RELEASED
