"""What must hold after whatever went wrong. Each function returns what it found broken, in words."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import redis
from sqlalchemy import text
from sqlmodel import col, select

from shared import checkpoints, queue, storage
from shared.db import transaction
from shared.settings import settings
from shared.tables import FINAL, Attempt, Event, EventType, State, Transition
from tests.chaos import audit
from tests.chaos.cluster import SLOTS, WEBS, WORKERS
from tests.chaos.processes import trainers_of
from tests.chaos.workload import (
    CHECKPOINTS,
    STEPS,
    Submitted,
    Workload,
    attempts,
    final_weights,
    last_step,
    row,
    told_by,
)
from tests.services import until

DAMAGED = re.compile(r"^Checkpoint of step ([\d,]+) is damaged")
TOLD_SECONDS = 90.0  # a delivery whose sender was killed is somebody else's a minute later
QUIET_SECONDS = 10.0  # from the end of the last job until nothing of it is left


@dataclass
class Seen:
    """A scenario as it was: its jobs and what was watched meanwhile."""

    work: Workload
    jobs: list[Submitted]
    together: dict[frozenset[str], float]  # seconds that two leases had a living trainer
    overlap: float = 0.0  # seconds that two trainers of one job may have lived, here
    intervals: int = 2  # checkpoints' worth of steps that may be repeated, here
    failures_expected: bool = False
    damages: bool = False  # what is stored was spoilt
    lines: list[audit.Line] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        return [job.id for job in self.jobs]


def every_accepted_job_ends(seen: Seen) -> list[str]:
    """I1: none is lost, and what went wrong with the machine fails none."""
    left = [(job.id, row(job)) for job in seen.jobs if row(job).state not in FINAL]
    failed = [(job.id, row(job)) for job in seen.jobs if row(job).state == State.FAILED]
    return [f"{name} is still {found.state} ({found.stage})" for name, found in left] + [
        f"{name} failed: {found.reason}" for name, found in failed
    ]


def an_end_is_told_once_and_its_bytes_are_there(seen: Seen) -> list[str]:
    """I2: one «succeeded», nothing after an end, and the stored bytes are those of the manifest."""
    broken = []
    for job in seen.jobs:
        states = [line for line in seen.lines if line.job_id == job.id and line.what == "state"]
        ends = [line.now for line in states if line.now in FINAL]
        if len(ends) > 1 or any(line.was in FINAL for line in states):
            broken.append(f"{job.id} ended {len(ends)} times: {ends}")
        with transaction() as db:
            told = select(Transition).where(Transition.job_id == job.id, Transition.state == State.SUCCEEDED)
            if len(db.exec(told).all()) > 1:
                broken.append(f"{job.id} succeeded more than once")
    return broken + [problem for job in succeeded(seen) for problem in changed_bytes(job)]


def changed_bytes(job: Submitted) -> list[str]:
    """The files of the last checkpoint whose stored bytes are others than its row says."""
    with transaction() as db:
        last = checkpoints.of(db, job.id)[0]
    problems = []
    for entry in last.manifest:
        with suppress(storage.Missing):
            if sha256(storage.read(last.prefix + entry["name"])) == entry["sha256"]:
                continue
        problems.append(f"{job.id}: {entry['name']} is not what was stored")
    return problems


def nobody_writes_without_the_lease(seen: Seen) -> list[str]:
    """I3: no row of an attempt that does not hold the job; events of attempts follow one another."""
    stale = [f"{li.job_id}: {li.what} by {li.was}" for li in seen.lines if li.what.startswith("stale")]
    for job in seen.jobs:
        with transaction() as db:
            order = select(Event.lease_id).where(Event.job_id == job.id).order_by(col(Event.id))
            leases = list(db.exec(order).all())
        turns = [lease for place, lease in enumerate(leases) if place == 0 or lease != leases[place - 1]]
        if len(turns) != len(set(turns)):
            stale.append(f"{job.id}: events of two attempts are mixed")
        with transaction() as db:
            told = select(Event.lease_id, Event.seq).where(Event.job_id == job.id).order_by(col(Event.id))
            numbers = list(db.exec(told).all())
        for lease in set(leases):
            mine = [seq for one, seq in numbers if one == lease and seq > 0]
            if mine != list(range(1, len(mine) + 1)):
                stale.append(f"{job.id}: the lines of {lease} have gaps or come twice")
    return stale


def no_two_trainers_share_a_job(seen: Seen) -> list[str]:
    """I4: two of one job do not live together longer than this scenario allows."""
    tries = {a.lease_id: a for job in seen.jobs for a in attempts(job)}
    broken = []
    for pair, seconds in seen.together.items():
        one, other = (tries.get(lease) for lease in sorted(pair))
        if one is None or other is None:
            continue
        if one.job_id == other.job_id and seconds > seen.overlap + 0.3:
            broken.append(f"two trainers of {one.job_id} lived together for {seconds:.1f} s")
    return broken


def a_resumed_attempt_loses_little(seen: Seen) -> list[str]:
    """I5: it starts from the newest stored checkpoint, but for those that its log calls damaged where some were
    spoilt, and repeats no more steps than the bound.
    """
    broken = []
    for job in seen.jobs:
        tries = attempts(job)
        kept = [(li.at, li.step or 0) for li in seen.lines if li.job_id == job.id and li.what == "checkpoint"]
        interval = -(-job.epochs * STEPS // CHECKPOINTS)
        for before, after in pairwise(tries):
            spoilt = called_damaged(after.lease_id) if seen.damages else set()
            whole = [step for at, step in kept if at < after.started_at and step not in spoilt]
            newest = max(whole, default=0)
            if after.start_step < newest:
                broken.append(f"{after.id} starts at {after.start_step}, though {newest} was stored")
            lost = last_step(before.lease_id) - after.start_step
            if lost > seen.intervals * interval:
                broken.append(f"{after.id} repeats {lost} steps; an interval is {interval}")
    return broken


def called_damaged(lease_id: str) -> set[int]:
    """The steps whose checkpoints an attempt passed over, by its log."""
    said = [str(event.data.get("message")) for event in told_by(lease_id, EventType.LOG)]
    return {int(step.replace(",", "")) for line in said for step in DAMAGED.findall(line)}


def no_worker_runs_more_than_its_slots(seen: Seen) -> list[str]:
    """I6: by the database's clock, at no moment more attempts than slots."""
    with transaction() as db:
        tries = list(db.exec(select(Attempt).where(col(Attempt.job_id).in_(seen.ids))).all())
    broken = []
    for worker in {a.worker_id for a in tries}:
        edges = [
            (at, change)
            for a in tries
            if a.worker_id == worker
            for at, change in ((a.started_at, 1), (a.ended_at, -1))
            if at is not None
        ]
        running = most = 0
        for _, change in sorted(edges):
            running += change
            most = max(most, running)
        if most > SLOTS:
            broken.append(f"{worker} ran {most} attempts at once")
    return broken


def nothing_is_left_over(seen: Seen) -> list[str]:
    """I7: no trainer, no open transaction, no half upload, no attempt's folder, no heap of messages."""
    cluster = seen.work.cluster

    def left() -> list[str]:
        found = [f"trainers of {w}" for w in WORKERS if cluster.alive(w) and trainers_of(cluster.pid(w))]
        found += [str(f) for w in WORKERS for f in (cluster.folder / w).glob("attempts/*")]
        return found + open_transactions() + half_uploads() + waiting_messages()

    with suppress(AssertionError):
        until(lambda: not left(), QUIET_SECONDS)
    return left()


def open_transactions() -> list[str]:
    """Sessions that have sat in a transaction for more than five seconds."""
    idle = text("""
        SELECT pid, query FROM pg_stat_activity
         WHERE state LIKE 'idle in transaction%' AND state_change < clock_timestamp() - interval '5 s'""")
    with transaction() as db:
        return [f"an open transaction of {r.pid}: {r.query}" for r in db.connection().execute(idle)]


def half_uploads() -> list[str]:
    """Uploads in parts that nobody finished."""
    found: dict[str, Any] = storage.client().list_multipart_uploads(Bucket=storage.bucket())
    return [f"half an upload of {upload['Key']}" for upload in found.get("Uploads", [])]


def waiting_messages() -> list[str]:
    """More wake-ups in the broker than a few sweeps send."""
    with redis.Redis.from_url(settings().redis_url, socket_timeout=5) as broker:
        waiting = broker.llen(queue.LIST)
    return [f"{waiting} wake-ups wait"] if isinstance(waiting, int) and waiting > 60 else []


def the_weights_are_those_of_an_undisturbed_run(seen: Seen) -> list[str]:
    """I8: bit for bit, whatever happened in between."""
    broken = []
    for job in succeeded(seen):
        known = seen.work.weights.get(job.epochs)
        if known is not None and final_weights(job) != known:
            broken.append(f"{job.id}: its weights differ from those of an undisturbed run")
    return broken


def a_success_can_be_downloaded(seen: Seen) -> list[str]:
    """I9: what the web calls succeeded has a checkpoint whose files come whole through the web."""
    broken = []
    for place, job in enumerate(succeeded(seen)):
        token = next(team.token for team in seen.work.teams if team.id == job.team)
        with httpx.Client(
            base_url=seen.work.cluster.url(WEBS[place % len(WEBS)]),
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
            trust_env=False,
        ) as web:
            path = f"/v1/fine_tuning/jobs/{job.id}"
            if web.get(path).json()["status"] != "succeeded":
                broken.append(f"the web says that {job.id} is {web.get(path).json()['status']}")
                continue
            newest = web.get(f"{path}/checkpoints").json()["data"][0]["id"]
            for file in web.get(f"{path}/checkpoints/{newest}/files").json()["data"]:
                if file["name"].endswith(".safetensors"):
                    local = httpx.URL(file["url"]).raw_path.decode()
                    if sha256(web.get(local).content) != file["sha256"]:
                        broken.append(f"{job.id}: {file['name']} does not come whole through the web")
    return broken


def an_end_is_told_to_the_teams_webhook(seen: Seen) -> list[str]:
    """I10: at least once, and by one id however often."""
    ended = {job.id for job in seen.jobs if row(job).state in FINAL}

    def told() -> dict[str, set[str]]:
        ids: dict[str, set[str]] = defaultdict(set)
        for message in list(seen.work.cluster.receiver.received):
            body = json.loads(message.body)
            if body["data"].get("x_state") in FINAL:
                ids[body["data"]["id"]].add(message.headers["webhook-id"])
        return ids

    with suppress(AssertionError):
        until(lambda: ended <= set(told()), TOLD_SECONDS)
    known = told()
    return [f"the webhook was not told of the end of {job}" for job in sorted(ended - set(known))] + [
        f"the webhook was told of the end of {job} by {len(known[job])} ids"
        for job in sorted(ended & set(known))
        if len(known[job]) > 1
    ]


def sha256(data: bytes) -> str:
    """As hex."""
    return hashlib.sha256(data).hexdigest()


def succeeded(seen: Seen) -> list[Submitted]:
    """The jobs that succeeded."""
    return [job for job in seen.jobs if row(job).state == State.SUCCEEDED]


INVARIANTS: dict[str, Callable[[Seen], list[str]]] = {
    "I1": every_accepted_job_ends,
    "I2": an_end_is_told_once_and_its_bytes_are_there,
    "I3": nobody_writes_without_the_lease,
    "I4": no_two_trainers_share_a_job,
    "I5": a_resumed_attempt_loses_little,
    "I6": no_worker_runs_more_than_its_slots,
    "I7": nothing_is_left_over,
    "I8": the_weights_are_those_of_an_undisturbed_run,
    "I9": a_success_can_be_downloaded,
    "I10": an_end_is_told_to_the_teams_webhook,
}


@dataclass
class Figures:
    """What a scenario or soak came to."""

    faults: int = 0
    jobs: int = 0
    lost: int = 0
    doubled: int = 0
    overlap: float = 0.0  # seconds of two living trainers of one job
    repeated: int = 0  # steps
    recoveries: list[float] = field(default_factory=list)  # seconds without a step, by each break


class Broken(AssertionError):
    """Some invariant does not hold: what is wrong, with the story of the jobs, and the figures all the same."""

    def __init__(self, problems: str, figures: Figures) -> None:
        super().__init__(problems)
        self.figures = figures


def figures(seen: Seen, faults: int) -> Figures:
    """The numbers of the published table."""
    ends = Counter(li.job_id for li in seen.lines if li.what == "state" and li.now == State.SUCCEEDED)
    found = Figures(faults=faults, jobs=len(seen.jobs))
    found.lost = 0 if seen.failures_expected else len(every_accepted_job_ends(seen))
    found.doubled = sum(count > 1 for count in ends.values())
    tries = {a.lease_id: a.job_id for job in seen.jobs for a in attempts(job)}
    for pair, seconds in seen.together.items():
        if len({tries.get(lease) for lease in pair}) == 1 and None not in {tries.get(x) for x in pair}:
            found.overlap += seconds
    for job in seen.jobs:
        told = attempts(job)
        for before, after in pairwise(told):
            found.repeated += max(0, last_step(before.lease_id) - after.start_step)
        found.recoveries += seconds_without_a_step(job.id)
    return found


def seconds_without_a_step(job_id: str) -> list[float]:
    """From the last step of each attempt that took one to the first step of the next that did.

    An attempt that was broken before its first step ends no gap and begins none.
    """
    stepped = text("""
        SELECT extract(epoch FROM min(at)) AS first, extract(epoch FROM max(at)) AS last
          FROM events WHERE job_id = :job AND type = 'step' GROUP BY lease_id ORDER BY min(id)""")
    with transaction() as db:
        turns = db.connection().execute(stepped, {"job": job_id}).all()
    return [max(0.0, float(after.first - before.last)) for before, after in pairwise(turns)]
