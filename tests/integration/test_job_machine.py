"""A model of a job's life against the real SQL functions: whatever happens in whatever order, the rows agree."""

from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import caps, jobs, reaper, workers
from shared.db import engine
from shared.errors import Refused
from shared.settings import settings as environment
from shared.tables import FINAL, Attempt, Job, Kind, Outcome, Slot, State, Transition, Worker
from tests.factories import a_job, a_team, a_worker

OUTCOMES = st.sampled_from(list(Outcome))
PICK = st.integers(0, 10**6)
SLOTS = st.sampled_from(["light", "compute"])


class Life(RuleBasedStateMachine):
    """Jobs of two teams, two workers with a few slots, caps that move, workers that drain, leases that run out,
    words that come too late.

    `believed` holds what each worker still believes it has, `dead` the leases that were taken away, and
    `ended` the jobs whose end was told: none of those may move again. `allowed` holds the caps; what runs when
    one is lowered goes on, so that they are held at each claim.
    """

    def __init__(self):
        super().__init__()
        self.connection = engine().connect()
        self.outer = self.connection.begin()
        self.db = Session(self.connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        self.teams = [a_team(self.db) for _ in range(2)]
        self.workers = [a_worker(self.db, slots={"light": 3, "compute": 3}) for _ in range(2)]
        self.jobs: list[Job] = []
        self.believed: list[Attempt] = []
        self.dead: list[str] = []
        self.ended: dict[str, State] = {}
        self.allowed: dict[tuple[str | None, str], int | None] = {}

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

    @rule(
        number=PICK, kind=st.sampled_from([Kind.EXPORT, Kind.INFER, Kind.TRAIN]), processes=st.integers(1, 4)
    )
    def submit(self, number, kind, processes):
        needs = {"processes": processes if kind is not Kind.EXPORT else 1}
        self.enter(self.pick(self.teams, number), kind, resources=needs)

    def enter(self, team, kind, **fields):
        """A queued job, ranked by its age."""
        at = jobs.clock(self.db)
        fields |= {"created_at": at, "rank_at": at}
        if kind is Kind.TRAIN:
            fields |= {"dataset_version_id": None, "base_model_id": None}
        self.jobs.append(a_job(self.db, team, kind, **fields))

    @rule(number=PICK, slot=SLOTS)
    def claim(self, number, slot):
        worker = self.pick(self.workers, number)
        before = self.occupied(slot)
        attempt = jobs.claim(self.db, worker.id, slot)
        if attempt is None:
            return
        self.db.refresh(worker)
        assert worker.draining_at is None
        assert attempt.job_id not in self.ended
        for whose in (attempt.team_id, None):
            cap = self.allowed.get((whose, slot))
            assert cap is None or before[whose] + len(attempt.slots) <= cap
        assert self.held_by(worker, slot) <= worker.slots[slot]
        job = self.db.get_one(Job, attempt.job_id)
        assert len(attempt.slots) == min(3, job.resources["processes"])
        self.no_better_job_of_the_team_was_passed_over(job, len(attempt.slots))
        self.believed.append(attempt)

    def occupied(self, slot):
        """{team, or None for all: slots of that class that attempts occupy}."""
        found = Counter()
        for attempt in self.db.exec(select(Attempt).where(col(Attempt.ended_at).is_(None))):
            if attempt.slots[0] == slot:
                found[attempt.team_id] += len(attempt.slots)
                found[None] += len(attempt.slots)
        return found

    def held_by(self, worker, slot):
        """How many of its slots of that class attempts occupy."""
        open_ones = select(Attempt).where(Attempt.worker_id == worker.id, col(Attempt.ended_at).is_(None))
        return sum(len(a.slots) for a in self.db.exec(open_ones) if a.slots[0] == slot)

    def no_better_job_of_the_team_was_passed_over(self, job, width):
        """Of jobs as wide or narrower, the team's first went."""
        waiting = select(Job).where(
            Job.team_id == job.team_id, Job.slot == job.slot, Job.state == State.QUEUED
        )
        for other in self.db.exec(waiting.where(col(Job.ready))):
            narrow = min(3, other.resources["processes"]) <= width
            assert not narrow or (job.rank_at, job.id) < (other.rank_at, other.id)

    @rule(whose=st.sampled_from([0, 1, None]), slot=SLOTS, cap=st.sampled_from([None, 0, 1, 2, 4]))
    def set_a_cap(self, whose, slot, cap):
        team_id = None if whose is None else self.teams[whose].id
        caps.put(self.db, Slot(slot), cap, team_id)
        self.allowed[team_id, slot] = cap

    @rule(number=PICK, verb=st.sampled_from([workers.drain, workers.undrain]))
    def drain(self, number, verb):
        verb(self.db, self.pick(self.workers, number).id)

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, priority=st.integers(-3, 3))
    def prioritise(self, number, priority):
        job = self.pick(self.jobs, number)
        waits = self.db.get_one(Job, job.id).state in (State.QUEUED, State.PAUSED)
        try:
            jobs.prioritise(self.db, job, priority, "somebody")
        except Refused:
            assert not waits
            return
        assert waits
        assert job.rank_at == job.created_at - jobs.PRIORITY_WEIGHT * priority

    @precondition(lambda self: self.ended)
    @rule(number=PICK)
    def retry(self, number):
        job = self.db.get_one(Job, self.pick(sorted(self.ended), number))
        if (
            job.kind is Kind.TRAIN
        ):  # going on from a checkpoint takes data and weights; tests of the runner do
            return
        self.enter(self.pick(self.teams, number), job.kind, retry_of=job.id, resources=job.resources)

    @precondition(lambda self: self.believed)
    @rule(number=PICK)
    def take_too_long(self, number):
        """An attempt runs for longer than its job may; its worker hears so and says so."""
        attempt = self.pick(self.believed, number)
        self.db.exec(update(Job).where(col(Job.id) == attempt.job_id).values(max_run_seconds=-1))
        self.db.expire_all()
        renewed = jobs.renew(self.db, attempt.lease_id)
        assert (renewed is None) == (attempt.lease_id in self.dead)
        if renewed is not None:
            assert renewed.overdue
            state = jobs.finish(
                self.db, attempt.lease_id, Outcome.FAILED, reason_code="max_run_time", reason="z"
            )
            assert state in (State.FAILED, State.CANCELLED)
            self.told(attempt, state)
        self.db.exec(update(Job).where(col(Job.id) == attempt.job_id).values(max_run_seconds=None))

    @precondition(lambda self: self.dead)
    @rule(number=PICK, outcome=OUTCOMES)
    def stale_words(self, number, outcome):
        """Whoever lost its lease is not heard, whatever it says."""
        lease = self.pick(self.dead, number)
        assert jobs.renew(self.db, lease) is None
        assert jobs.held(self.db, lease) is None
        assert not jobs.report(self.db, lease, progress={"step": 99})
        assert jobs.finish(self.db, lease, outcome, reason_code="late", reason="late") is None

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
            assert renewed.stop == (job.stop_requested_at is not None)
            worker = self.db.get_one(Worker, attempt.worker_id)
            self.db.refresh(worker)
            assert renewed.drain == (worker.draining_at is not None)

    @precondition(lambda self: self.believed)
    @rule(number=PICK, outcome=OUTCOMES, step=st.integers(0, 5))
    def finish(self, number, outcome, step):
        attempt = self.pick(self.believed, number)
        jobs.report(self.db, attempt.lease_id, progress={"step": step})
        self.told(attempt, jobs.finish(self.db, attempt.lease_id, outcome, reason_code="x", reason="y"))

    @precondition(lambda self: self.believed)
    @rule(number=PICK)
    def expire(self, number):
        """A worker goes silent until its lease is taken away; it does not know. The others are heard, however slow
        this machine is.
        """
        attempt, moment = self.pick(self.believed, number), jobs.clock(self.db)
        long_ago, open_ones = (
            moment - timedelta(hours=1),
            update(Attempt).where(col(Attempt.ended_at).is_(None)),
        )
        heard = {"lease_expires_at": moment + timedelta(hours=1), "suspect_since": None}
        self.db.exec(open_ones.where(col(Attempt.id) != attempt.id).values(heard))
        silent = {"lease_expires_at": long_ago, "suspect_since": long_ago}
        self.db.exec(open_ones.where(col(Attempt.id) == attempt.id).values(silent))
        lost = reaper.reap(self.db)
        assert lost == (attempt.lease_id not in self.dead)
        if lost:
            self.dead.append(attempt.lease_id)
            self.db.expire_all()
            job = self.db.get_one(Job, attempt.job_id)
            if job.state in FINAL:
                self.ended[job.id] = job.state

    @precondition(lambda self: self.jobs)
    @rule(number=PICK, verb=st.sampled_from([jobs.cancel, jobs.pause, jobs.resume, jobs.stop]))
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
        resting = update(Job).where(col(Job.run_after).is_not(None))
        self.db.exec(resting.values(run_after=jobs.clock(self.db)))

    @invariant()
    def the_rows_agree(self):
        self.db.expire_all()
        found = {job.id: job for job in self.db.exec(select(Job)).all()}  # there are no others
        attempts = self.db.exec(select(Attempt)).all()
        told = self.db.exec(select(Transition.job_id, Transition.state).order_by(col(Transition.id))).all()
        last = dict(told)
        for job_id, state in self.ended.items():
            assert found[job_id].state == state
        for job in found.values():
            open_ones = [a.id for a in attempts if a.job_id == job.id and a.ended_at is None]
            assert (job.state == State.RUNNING) == (job.attempt_id is not None) == (len(open_ones) == 1)
            assert open_ones == ([job.attempt_id] if job.attempt_id else [])
            assert (job.state in FINAL) == (job.finished_at is not None)
            assert last.get(job.id) in (None, job.state)
            assert job.attempts >= 0
            if job.stop_requested_at is not None:
                assert job.state in (State.RUNNING, *FINAL)  # never queued again


def live_through(monkeypatch, lives):
    """That many lives of 25 events each."""
    monkeypatch.setattr(environment(), "lease_seconds", 0.3)
    monkeypatch.setattr(environment(), "heartbeat_seconds", 0.1)
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=lives,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=quiet,
            database=None,
        ),
    )


@pytest.mark.usefixtures("clean")
def test_whatever_happens_the_rows_agree_and_an_end_is_an_end(monkeypatch):
    live_through(monkeypatch, 25)


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_whatever_happens_in_many_lives_the_rows_agree(monkeypatch):
    live_through(monkeypatch, 400)
