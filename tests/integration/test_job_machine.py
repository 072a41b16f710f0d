"""A model of a job's life against the real SQL functions: whatever happens in whatever order, the rows agree."""

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import jobs, reaper
from shared.db import engine
from shared.errors import Refused
from shared.settings import settings as environment
from shared.tables import FINAL, Attempt, Job, Kind, Outcome, State, Transition
from tests.factories import a_job, a_team, a_worker

OUTCOMES = st.sampled_from(list(Outcome))
PICK = st.integers(0, 10**6)


class Life(RuleBasedStateMachine):
    """Jobs of two teams, two workers, leases that run out, words that come too late.

    `believed` holds what each worker still believes it has, `dead` the leases that were taken away, and
    `ended` the jobs whose end was told: none of those may move again.
    """

    def __init__(self):
        super().__init__()
        self.connection = engine().connect()
        self.outer = self.connection.begin()
        self.db = Session(self.connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        self.teams = [a_team(self.db) for _ in range(2)]
        self.workers = [a_worker(self.db) for _ in range(2)]
        self.jobs: list[Job] = []
        self.believed: list[Attempt] = []
        self.dead: list[str] = []
        self.ended: dict[str, State] = {}

    def teardown(self):
        self.db.close()
        self.outer.rollback()
        self.connection.close()

    def pick(self, found, number):
        return found[number % len(found)]

    def told(self, attempt, state):
        """A worker was told what became of its attempt."""
        if state is None:
            assert attempt.lease_id in self.dead
        else:
            assert attempt.lease_id not in self.dead
            self.dead.append(attempt.lease_id)
            if state in FINAL:
                self.ended[attempt.job_id] = state
        self.believed.remove(attempt)

    @rule(number=PICK)
    def submit(self, number):
        self.jobs.append(a_job(self.db, self.pick(self.teams, number), Kind.EXPORT))

    @rule(number=PICK)
    def claim(self, number):
        attempt = jobs.claim(self.db, self.pick(self.workers, number).id, "light")
        if attempt is not None:
            assert attempt.job_id not in self.ended
            self.believed.append(attempt)

    @precondition(lambda self: self.believed)
    @rule(number=PICK)
    def heartbeat(self, number):
        attempt = self.pick(self.believed, number)
        renewed = jobs.renew(self.db, attempt.lease_id)
        assert (renewed is None) == (attempt.lease_id in self.dead)
        if renewed:
            job = self.db.get_one(Job, attempt.job_id)
            self.db.refresh(job)
            assert renewed.cancel == (job.cancel_requested_at is not None)

    @precondition(lambda self: self.believed)
    @rule(number=PICK, outcome=OUTCOMES, step=st.integers(0, 5))
    def finish(self, number, outcome, step):
        attempt = self.pick(self.believed, number)
        jobs.report(self.db, attempt.lease_id, progress={"step": step})
        self.told(attempt, jobs.finish(self.db, attempt.lease_id, outcome, reason_code="x", reason="y"))

    @precondition(lambda self: self.believed)
    @rule(number=PICK)
    def expire(self, number):
        """A worker goes silent until its lease is taken away; it does not know."""
        attempt = self.pick(self.believed, number)
        long_ago = jobs.clock(self.db) - timedelta(hours=1)
        lapsed = update(Attempt).where(col(Attempt.id) == attempt.id, col(Attempt.ended_at).is_(None))
        self.db.exec(lapsed.values(lease_expires_at=long_ago, suspect_since=long_ago))
        lost = reaper.reap(self.db)
        assert lost == (attempt.lease_id not in self.dead)
        if lost:
            self.dead.append(attempt.lease_id)
            self.db.expire_all()
            job = self.db.get_one(Job, attempt.job_id)
            if job.state in FINAL:
                self.ended[job.id] = job.state

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, verb=st.sampled_from([jobs.cancel, jobs.pause, jobs.resume]))
    def ask(self, number, verb):
        job = self.pick(self.jobs, number)
        try:
            verb(self.db, job, "somebody")
        except Refused:
            return
        assert job.id not in self.ended
        if job.state in FINAL:
            self.ended[job.id] = job.state

    @rule()
    def time_passes(self):
        self.db.exec(update(Job).values(run_after=None))

    @invariant()
    def the_rows_agree(self):
        self.db.expire_all()
        found = {
            job.id: job for job in self.db.exec(select(Job).where(col(Job.id).in_([j.id for j in self.jobs])))
        }
        for job_id, state in self.ended.items():
            assert found[job_id].state == state
        for job in found.values():
            open_ones = self.db.exec(
                select(Attempt).where(Attempt.job_id == job.id, col(Attempt.ended_at).is_(None))
            ).all()
            assert (job.state == State.RUNNING) == (job.attempt_id is not None) == (len(open_ones) == 1)
            assert [a.id for a in open_ones] == ([job.attempt_id] if job.attempt_id else [])
            assert (job.state in FINAL) == (job.finished_at is not None)
            last = self.db.exec(
                select(Transition.state)
                .where(Transition.job_id == job.id)
                .order_by(col(Transition.id).desc())
                .limit(1)
            ).first()
            assert last in (None, job.state)
            assert job.attempts >= 0


@pytest.mark.usefixtures("clean")
def test_whatever_happens_the_rows_agree_and_an_end_is_an_end(monkeypatch):
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setattr(environment(), "lease_seconds", 0.3)
    monkeypatch.setattr(environment(), "heartbeat_seconds", 0.1)
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=quiet, database=None
        ),
    )
