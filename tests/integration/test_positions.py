"""The place that a waiting job is told, against the order in which the real claim takes the jobs."""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from shared import jobs, positions
from shared.columns import now
from shared.tables import Attempt, Kind, Outcome, State
from tests.factories import a_job, a_team, a_worker, an_attempt

USUAL = 600


@pytest.fixture
def worker(db):
    return a_worker(db, slots={"compute": 1})


def queued(db, team, **fields):
    return a_job(db, team, Kind.INFER, **fields)


def used(db, team, seconds, outcome=Outcome.SUCCEEDED, ago=7200):
    """The team has run something for so long, which ended so many seconds ago."""
    past = queued(db, team, state=State.SUCCEEDED)
    ended = now() - timedelta(seconds=ago)
    an_attempt(
        db, past, slots=["compute"], outcome=outcome,
        started_at=ended - timedelta(seconds=seconds), ended_at=ended,
    )  # fmt: skip


def usually(db, seconds=USUAL):
    """Jobs took so long, all of them before the day that counts."""
    for _ in range(5):
        used(db, a_team(db), seconds, ago=2 * 86_400)


def passes(db, seconds):
    """Time, for everything that has run or runs."""
    back = "started_at - make_interval(secs => :s), ended_at = ended_at - make_interval(secs => :s)"
    db.connection().execute(text(f"UPDATE attempts SET started_at = {back}"), {"s": seconds})
    db.expire_all()


def played(db, worker, job, ends=()):
    """Which turn the job really has; `ends`: [(seconds left, attempt)] of what runs, the first to end first."""
    going: list[tuple[float, Attempt]] = list(ends)
    turn, at = 0, 0.0
    while True:
        while attempt := jobs.claim(db, worker.id, "compute"):
            turn += 1
            if attempt.job_id == job.id:
                return turn
            going.append((at + USUAL, attempt))
        when, attempt = going.pop(0)
        passes(db, when - at)
        at = when
        db.refresh(attempt)
        jobs.finish(db, attempt.lease_id, Outcome.SUCCEEDED)


def test_where_all_used_the_same_teams_take_turns(db):
    many, few = a_team(db), a_team(db)
    long = [queued(db, many) for _ in range(4)]
    short = [queued(db, few) for _ in range(2)]
    assert [positions.place(db, job) for job in long] == [1, 3, 5, 6]
    assert [positions.place(db, job) for job in short] == [2, 4]
    assert positions.place(db, queued(db, many, state=State.PAUSED)) is None


def test_a_team_that_used_less_catches_up_first(db, worker):
    usually(db)
    mine, other = a_team(db), a_team(db)
    used(db, mine, 36_000)
    job = queued(db, mine)
    theirs = [queued(db, other) for _ in range(30)]
    assert positions.place(db, job) == 31
    assert positions.place(db, theirs[-1]) == 30
    assert played(db, worker, job) == 31


def test_what_runs_counts_to_its_end(db, worker):
    usually(db)
    mine, other = a_team(db), a_team(db)
    runs = queued(db, mine)
    assert jobs.claim(db, worker.id, "compute")
    runs.progress = {"eta_seconds": 10 * USUAL}
    job = queued(db, mine)
    for _ in range(20):
        queued(db, other)
    assert positions.place(db, job) == 11


TEAMS = st.lists(
    st.fixed_dictionaries(
        {
            "used": st.lists(st.sampled_from([30, USUAL, 2500]), max_size=3),
            "running": st.integers(0, 2),
            "waiting": st.integers(0, 9),
        }
    ),
    min_size=2,
    max_size=3,
)


@settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(teams=TEAMS, slots=st.integers(1, 3), shuffled=st.randoms(), elapsed=st.integers(1, USUAL - 1))
def test_a_place_is_right_but_for_a_job_of_each_other_team_and_the_slots(db, teams, slots, shuffled, elapsed):
    with db.begin_nested() as undone:
        told, real = told_and_played(db, teams, slots, shuffled, elapsed)
        undone.rollback()
    assert abs(told - real) <= len(teams) - 1 + slots, (told, real)


def told_and_played(db, teams, slots, shuffled, elapsed):
    """(the place that a job of the first team is told, its turn)."""
    worker = a_worker(db, slots={"compute": slots})
    usually(db)
    waiting, running = [], []
    for asked in teams:
        team = a_team(db)
        for seconds in asked["used"]:
            used(db, team, seconds, Outcome.FAILED)
        for _ in range(min(asked["running"], slots - len(running))):
            queued(db, team)
            running.append(jobs.claim(db, worker.id, "compute"))
        waiting.append(team)
    passes(db, elapsed)
    queue = [team for team, asked in zip(waiting, teams, strict=True) for _ in range(asked["waiting"])]
    queue.append(waiting[0])
    shuffled.shuffle(queue)
    rows = [queued(db, team) for team in queue]
    job = shuffled.choice([row for row in rows if row.team_id == waiting[0].id])
    told = positions.place(db, job)
    return told, played(db, worker, job, ends=[(USUAL - elapsed, attempt) for attempt in running])
