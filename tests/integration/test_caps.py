"""What a team may occupy, what a worker has, and whose turn it is: exact however many ask at once."""

import json
import random
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlmodel import SQLModel, select

from shared import caps, jobs, positions, ranking, resources
from shared.db import transaction
from shared.errors import Refused
from shared.resources import Offer
from shared.tables import Attempt, Job, Kind, Outcome, Slot, State
from tests.factories import a_job, a_team, a_worker

GPU = {"name": "A GPU", "memory_bytes": 40 * 10**9}


@pytest.fixture
def team(db):
    return a_team(db)


def queued(db, team, count=1, **fields):
    return [a_job(db, team, Kind.INFER, **fields) for _ in range(count)]


def claims(db, worker, most=50):
    """The job ids that the worker gets until there is nothing for it."""
    got = []
    while len(got) < most and (attempt := jobs.claim(db, worker.id, "compute")):
        got.append(attempt.job_id)
    return got


def claimed(db, worker):
    """The next attempt; there is one."""
    attempt = jobs.claim(db, worker.id, "compute")
    assert attempt is not None
    return attempt


def test_a_team_never_occupies_more_slots_than_its_cap(db, team):
    worker = a_worker(db)
    queued(db, team, 5)
    caps.put(db, Slot.COMPUTE, 2, team.id)
    assert len(claims(db, worker)) == 2
    caps.put(db, Slot.COMPUTE, 3, team.id)
    assert len(claims(db, worker)) == 1
    caps.put(db, Slot.COMPUTE, None, team.id)
    assert len(claims(db, worker)) == 2


def test_the_cap_of_all_teams_holds_for_all_together(db, team):
    worker, other = a_worker(db), a_team(db)
    queued(db, team, 5)
    queued(db, other, 3)
    caps.put(db, Slot.COMPUTE, 4)
    caps.put(db, Slot.COMPUTE, 1, other.id)
    assert len(claims(db, worker)) == 4
    assert caps.occupied(db, "compute") == {team.id: 3, other.id: 1}


def test_a_cap_of_one_class_of_slot_leaves_the_other_alone(db, team):
    worker = a_worker(db)
    queued(db, team)
    a_job(db, team, Kind.EXPORT)
    caps.put(db, Slot.COMPUTE, 0, team.id)
    assert jobs.claim(db, worker.id, "compute") is None
    assert jobs.claim(db, worker.id, "light")


def test_a_cap_out_of_bounds_is_refused(db, team):
    with pytest.raises(Refused, match="whole number"):
        caps.put(db, Slot.COMPUTE, -1, team.id)
    with pytest.raises(Refused, match="neither"):
        caps.read("many")
    assert (caps.read("none"), caps.read(" 7 ")) == (None, 7)


def test_a_worker_holds_no_more_attempts_than_it_has_slots(db, team):
    worker = a_worker(db, slots={"compute": 2, "light": 1})
    queued(db, team, 3)
    assert len(claims(db, worker)) == 2


def test_a_wide_job_takes_as_many_slots_as_it_has_processes(db, team):
    worker = a_worker(db, slots={"compute": 4})
    (wide,) = queued(db, team, resources={"processes": 3})
    queued(db, team, 2)
    assert len(claims(db, worker)) == 2
    attempt = db.exec(select(Attempt).where(Attempt.job_id == wide.id)).one()
    assert attempt.slots == ["compute"] * 3


def test_a_wide_job_counts_with_its_width_against_the_cap(db, team):
    worker = a_worker(db, slots={"compute": 8})
    (wide,) = queued(db, team, resources={"processes": 3})
    (narrow,) = queued(db, team)
    caps.put(db, Slot.COMPUTE, 2, team.id)
    assert claims(db, worker) == [narrow.id]
    assert wide.state == State.QUEUED


def test_processes_share_the_cores_of_a_worker_that_has_fewer_slots(db, team):
    (wide,) = queued(db, team, resources={"processes": 2})
    assert claims(db, a_worker(db, slots={"compute": 1})) == [wide.id]


def test_a_job_that_needs_gpus_goes_to_a_worker_that_has_them(db, team):
    (needy,) = queued(db, team, resources={"processes": 1, "gpus": 2, "gpu_memory_gb": 40})
    small = [GPU, GPU | {"memory_bytes": 24 * 10**9}]
    for lacking in ([], [GPU], small):
        assert claims(db, a_worker(db, slots={"compute": 2}, devices=lacking)) == []
    assert claims(db, a_worker(db, slots={"compute": 2}, devices=[GPU, GPU])) == [needy.id]


def test_a_job_that_needs_cores_goes_to_a_worker_that_has_them(db, team):
    (needy,) = queued(db, team, resources={"processes": 1, "cpus": 8})
    assert claims(db, a_worker(db, cpus=4)) == []
    assert claims(db, a_worker(db, cpus=8)) == [needy.id]


def test_a_wide_job_that_waited_for_long_has_slots_kept_free_on_the_roomiest_worker(db, team):
    roomy, full = a_worker(db, slots={"compute": 3}), a_worker(db, slots={"compute": 2})
    queued(db, team, 2)
    (first,) = claims(db, roomy, most=1)
    assert len(claims(db, full, most=1)) == 1
    (wide,) = queued(db, team, resources={"processes": 3})
    small = queued(db, team, 4)
    assert claims(db, roomy, most=1) == [small[0].id]  # it has not waited for long yet
    wide.created_at -= timedelta(seconds=2 * ranking.PATIENCE_SECONDS)
    wide.rank_at -= timedelta(hours=1)
    db.flush()
    assert claims(db, roomy) == []
    for attempt in db.exec(select(Attempt).where(Attempt.worker_id == roomy.id)).all():
        jobs.finish(db, attempt.lease_id, Outcome.SUCCEEDED)
    assert claims(db, roomy, most=1) == [wide.id]
    assert first != wide.id


NEEDS = st.fixed_dictionaries(
    {"processes": st.integers(1, 4)},
    optional={
        "gpus": st.integers(0, 4),
        "gpu_memory_gb": st.sampled_from([0, 24, 40]),
        "cpus": st.integers(0, 8),
    },
)
OFFERS = st.builds(
    Offer,
    st.integers(1, 4),
    st.integers(0, 4),
    st.sampled_from([0, 24 * 10**9, 40 * 10**9]),
    st.integers(0, 8),
)


@pytest.fixture(scope="module")
def said_by_sql(stack):
    """(needs, offer) → (fits, takes) by the SQL of the claim."""
    from shared.db import engine

    asked = text(
        f"SELECT {resources.FITS}, {resources.TAKES} FROM (SELECT CAST(:needs AS jsonb) AS resources) j"
    )
    with engine().connect() as connection:

        def said(needs, offer):
            return tuple(connection.execute(asked, offer.values | {"needs": json.dumps(needs)}).one())

        yield said


@given(needs=NEEDS, offer=OFFERS)
def test_the_claim_and_the_pages_agree_on_what_fits(said_by_sql, needs, offer):
    assert said_by_sql(needs, offer) == (resources.fits(needs, offer), resources.takes(needs, offer))


# --- many at once -----------------------------------------------------------------------------------


def fill(db, teams, many):
    """That many queued jobs, dealt out among the teams."""
    seed = a_job(db, teams[0], Kind.EXPORT)
    columns = [c.name for c in SQLModel.metadata.tables["jobs"].columns if c.name not in ("id", "team_id")]
    listed = ", ".join(columns)
    deal = text(f"""
        INSERT INTO jobs (id, team_id, {listed})
        SELECT 'export-' || n, (CAST(:teams AS text[]))[1 + n % :count], {listed}
          FROM jobs, generate_series(1, :many) n WHERE id = :seed""")
    known = {"teams": [t.id for t in teams], "count": len(teams), "many": many, "seed": seed.id}
    db.connection().execute(deal, known)
    db.delete(seed)
    db.connection().execute(text("ANALYZE jobs"))


def claimed_by(worker_id):
    """What the worker gets. Where the lock does not come in time it asks again, as a worker's next look does."""
    while True:
        with suppress(OperationalError), transaction() as db:
            return jobs.claim(db, worker_id, "light")


def crowd(workers, claims_each, seed):
    """Sixteen threads claim for these workers and end what they hold, by chance; every claim commits."""
    together, errors = threading.Barrier(16), []

    def work(number):
        chance, held = random.Random(seed + number), []
        together.wait()
        for turn in range(claims_each):
            try:
                attempt = claimed_by(workers[(number + 16 * turn) % len(workers)])
                if attempt is not None:
                    held.append(attempt.lease_id)
                while held and (attempt is None or chance.random() < 0.5):
                    with transaction() as db:
                        jobs.finish(db, held.pop(chance.randrange(len(held))), Outcome.SUCCEEDED)
            except Exception as wrong:
                errors.append(wrong)
                raise

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert not errors


def most_at_once(attempts):
    """{team, and «all»: the most attempts that ran at one moment}."""
    moves = [(a.started_at, 1, a.team_id) for a in attempts]
    moves += [(a.ended_at, -1, a.team_id) for a in attempts if a.ended_at]
    now, most = Counter(), defaultdict(int)
    for _, move, team in sorted(moves):
        for whose in (team, "all"):
            now[whose] += move
            most[whose] = max(most[whose], now[whose])
    return most


def hold_caps(many, claimers, claims_each, seed):
    """Runs the crowd with caps; returns [(cap, most at once)] for each team, and for all of them last."""
    with transaction() as db:
        teams = [a_team(db) for _ in range(4)]
        fill(db, teams, many)
        workers = [a_worker(db, slots={"light": 1}).id for _ in range(claimers)]
        allowed = dict(zip([t.id for t in teams], (1, 3, 7, None), strict=True))
        for team_id, cap in allowed.items():
            caps.put(db, Slot.LIGHT, cap, team_id)
        caps.put(db, Slot.LIGHT, 12)
    crowd(workers, claims_each, seed)
    with transaction() as db:
        most = most_at_once(db.exec(select(Attempt)).all())
        jobs_run = db.exec(select(Attempt.job_id)).all()
    assert len(set(jobs_run)) == len(jobs_run)
    return [(cap or 12, most[team_id]) for team_id, cap in (allowed | {"all": 12}).items()]


def share(many, claimers):
    """Every claimer takes one job, sixteen at once: {jobs of each team}, smallest and largest."""
    with transaction() as db:
        teams = [a_team(db) for _ in range(4)]
        fill(db, teams, many)
        workers = [a_worker(db, slots={"light": 1}).id for _ in range(claimers)]

    def take(worker_id):
        attempt = claimed_by(worker_id)
        return attempt.team_id if attempt else None

    with ThreadPoolExecutor(16) as pool:
        got = Counter(pool.map(take, workers))
    assert set(got) == {t.id for t in teams}
    return min(got.values()), max(got.values())


@pytest.mark.usefixtures("clean")
def test_a_worker_waits_longer_for_its_turn_to_claim_than_others_for_the_lock():
    with transaction() as db:
        job, worker = a_job(db, a_team(db), Kind.INFER), a_worker(db)

    def claim():
        with transaction() as db:
            attempt = jobs.claim(db, worker.id, "compute")
            held = db.connection().execute(text("SHOW lock_timeout")).scalar()
        return attempt and attempt.job_id, held

    def cap():
        with pytest.raises(OperationalError, match="lock timeout"), transaction() as db:
            caps.put(db, Slot.COMPUTE, 1)

    with ThreadPoolExecutor(2) as pool:
        with transaction() as db:
            caps.lock(db, Slot.COMPUTE)
            turn, other = pool.submit(claim), pool.submit(cap)
            other.result(10)
            assert not turn.done()
        assert turn.result(10) == (job.id, "2s"), "what it locks afterwards it waits for as ever"


@pytest.mark.usefixtures("clean")
def test_no_cap_is_exceeded_while_many_claim_and_finish():
    found = hold_caps(many=300, claimers=40, claims_each=12, seed=1)
    assert all(most <= cap for cap, most in found)
    assert found[0] == (1, 1)
    assert found[-1] == (12, 12)


@pytest.mark.usefixtures("clean")
def test_teams_get_equal_shares_give_or_take_one_job_while_many_claim():
    least, most = share(many=300, claimers=42)
    assert most - least <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_no_cap_is_exceeded_by_200_claimers_over_10_000_jobs():
    found = hold_caps(many=10_000, claimers=200, claims_each=120, seed=2)
    assert all(most <= cap for cap, most in found)
    assert found[0] == (1, 1)
    assert found[-1] == (12, 12)


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
def test_teams_get_equal_shares_of_200_claimers_over_10_000_jobs():
    least, most = share(many=10_000, claimers=200)
    assert most - least <= 1


# --- how long, how urgent, enough -------------------------------------------------------------------


def test_a_running_job_is_overdue_once_all_its_attempts_took_longer_than_it_may(db, team):
    worker = a_worker(db)
    queued(db, team, max_run_seconds=100)
    first = claimed(db, worker)
    first.started_at -= timedelta(seconds=60)
    jobs.release(db, first.lease_id, "drain")
    second = claimed(db, worker)
    assert jobs.renew(db, second.lease_id) == jobs.Orders()
    second.started_at -= timedelta(seconds=60)
    db.flush()
    assert jobs.renew(db, second.lease_id) == jobs.Orders(overdue=True)


def test_a_job_may_run_as_long_as_its_team_says_where_it_says_nothing(db, team):
    team.max_run_seconds = 7200
    db.flush()
    plain = jobs.enter(db, Job(id="batch_a", team_id=team.id, kind=Kind.INFER, slot=Slot.COMPUTE), "")
    own = jobs.enter(
        db, Job(id="batch_b", team_id=team.id, kind=Kind.INFER, slot=Slot.COMPUTE, max_run_seconds=60), ""
    )
    assert (plain.max_run_seconds, own.max_run_seconds) == (7200, 60)


def test_a_waiting_job_moves_with_its_priority_and_a_running_one_does_not(db, team):
    worker = a_worker(db)
    first, second = queued(db, team, 2)
    jobs.prioritise(db, second, 5, "somebody")
    assert [positions.place(db, job) for job in (first, second)] == [2, 1]
    assert claims(db, worker, most=1) == [second.id]
    with pytest.raises(Refused, match="only a job that waits"):
        jobs.prioritise(db, second, 0, "somebody")
    with pytest.raises(Refused, match="from -100 to 100"):
        jobs.prioritise(db, first, 101, "somebody")


def a_training(db, team, worker):
    job = a_job(db, team)
    attempt = claimed(db, worker)
    jobs.stop(db, job, "somebody")
    assert jobs.renew(db, attempt.lease_id) == jobs.Orders(stop=True)
    return job, attempt


def test_a_stopped_training_that_ends_properly_has_succeeded(db, team):
    job, attempt = a_training(db, team, a_worker(db))
    assert jobs.finish(db, attempt.lease_id, Outcome.SUCCEEDED, reason="Early.") == State.SUCCEEDED
    assert job.reason == "Early."


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.RELEASED, Outcome.LOST, Outcome.CANCELLED])
def test_a_stopped_training_that_cannot_end_properly_is_cancelled_and_not_tried_again(db, team, outcome):
    job, attempt = a_training(db, team, a_worker(db))
    assert jobs.finish(db, attempt.lease_id, outcome, reason="It died.") == State.CANCELLED
    assert (job.reason_code, job.reason) == ("stopped", "It was stopped. There was no checkpoint yet.")


def test_a_stop_of_what_does_not_train_now_cancels_it(db, team):
    (job,) = queued(db, team)
    assert jobs.stop(db, job, "somebody").state == State.CANCELLED
