"""Why a waiting job waits: its place, who goes first and why, and about when it starts.

Of other teams' jobs only their number is told. The expected start is a reckoning from what the running jobs
say of themselves and from how long jobs took lately: where neither is known, nothing is claimed.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlmodel import Session, col, select

from shared import caps, imports, positions, ranking, resources, room, workers
from shared.columns import now
from shared.tables import Attempt, Job, JobDependency, Outcome, Slot, State, Worker
from web.words import plural, span

NAMED = 3  # own jobs ahead, and workers, that are named
HELD = "It waits for another job to end."
FAILED = "It failed in a way that passes"
ENDED = {  # an outcome that is no fault of the job's, as the beginning of a sentence
    Outcome.LOST: "It was lost with its worker",
    Outcome.RELEASED: "It was given back by its worker",
}


@dataclass(frozen=True)
class Ahead:
    """Who goes first, in a sentence; the own job that it is about."""

    said: str
    job: Job | None = None


@dataclass(frozen=True)
class Held:
    """What a job waits for, in words; the job itself where it is the team's own."""

    said: str
    state: State
    job: Job | None = None


@dataclass
class Outlook:
    """What is known of a waiting job. `seconds` until it starts; None: not known yet."""

    reason: str
    position: int | None = None
    seconds: float | None = None
    held_by: list[Held] = field(default_factory=list)
    ahead: list[Ahead] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Its position in words."""
        if self.position is None:
            return "–"
        most = positions.MOST_COUNTED
        return f"{self.position:,}" if self.position <= most else f"over {most:,}"


@dataclass(frozen=True)
class Running:
    """Something that runs, on so many slots of a worker; `left` are its seconds still to go, infinite: not known."""

    team_id: str
    worker_id: str
    slots: int
    left: float

    @property
    def lefts(self) -> list[float]:
        """Of each of its slots."""
        return [self.left] * self.slots


@dataclass
class Scene:
    """One class of slot at this moment, read once for every job that waits for it."""

    slot: Slot
    workers: list[Worker]  # alive
    free: dict[str, int]  # of those that take jobs: {worker: free slots}
    caps: dict[str | None, int]
    occupied: dict[str, int]
    running: list[Running]
    usual: positions.Usual
    uses: dict[str, positions.Use]


def scene(db: Session, slot: Slot) -> Scene:
    """How things stand for jobs of that class."""
    alive = list(workers.alive(db))
    usual = positions.usual(db, slot)
    runs = running(db, slot, usual.seconds)
    busy, occupied = Counter[str](), Counter[str]()
    for one in runs:
        busy[one.worker_id] += one.slots
        occupied[one.team_id] += one.slots
    takers = [w for w in alive if w.draining_at is None and not w.note]
    return Scene(
        slot=slot,
        workers=alive,
        free={w.id: max(0, w.slots.get(str(slot), 0) - busy[w.id]) for w in takers},
        caps=caps.of(db, slot),
        occupied=dict(occupied),
        running=runs,
        usual=usual,
        uses=positions.uses(db, slot, usual),
    )


def running(db: Session, slot: Slot, usual: float | None) -> list[Running]:
    """What runs, with the time it has left by its own reckoning, else by the usual length."""
    found = select(Attempt, Job.progress).join(Job, col(Job.attempt_id) == Attempt.id)
    told = []
    for attempt, progress in db.exec(found.where(Job.slot == slot, Job.state == State.RUNNING)):
        left = progress.get("eta_seconds")
        gone = (now() - attempt.started_at).total_seconds()
        if left is None:
            left = usual - gone if usual is not None and gone < usual else math.inf
        told.append(Running(attempt.team_id, attempt.worker_id, len(attempt.slots), max(0.0, float(left))))
    return told


def outlook(db: Session, job: Job) -> Outlook:
    """Everything that is known of a waiting job."""
    return outlooks(db, [job])[job.id]


def outlooks(db: Session, waiting: Sequence[Job]) -> dict[str, Outlook]:
    """{job: everything that is known of it} of waiting jobs of one team, in a number of queries that does not grow
    with theirs.
    """
    held = held_back(db, waiting)
    told = {job_id: Outlook(HELD, held_by=others) for job_id, others in held.items()}
    for slot in Slot:
        if free := [job for job in waiting if job.slot == slot and job.id not in held]:
            at = scene(db, slot)
            before = positions.ahead(db, free, at.usual, at.uses)
            first = first_of(db, free[0]) if any(one.own for one in before.values()) else []
            last = last_outcomes(db, [job.id for job in free if job.run_after])
            told |= {job.id: explained(job, at, before[job.id], first, last.get(job.id)) for job in free}
    return told


def explained(
    job: Job, at: Scene, before: positions.Ahead, first: list[Job], last: Outcome | None
) -> Outlook:
    """Of a job that waits for no other. `first`: the first of its team's, whether before it or not; `last`: what became
    of its last attempt.
    """
    reason, never = why(job, at, before.position - 1, last)
    if never:
        return Outlook(reason, before.position)
    told = sentences(job, at, before, first)
    return Outlook(reason, before.position, seconds(job, at, before.own, before.others), ahead=told)


def last_outcomes(db: Session, job_ids: list[str]) -> dict[str, Outcome]:
    """{job: what became of its last attempt}."""
    if not job_ids:
        return {}
    ended = select(Attempt.job_id, Attempt.outcome).where(
        col(Attempt.job_id).in_(job_ids), col(Attempt.outcome).is_not(None)
    )
    return {job_id: outcome for job_id, outcome in db.exec(ended.order_by(col(Attempt.number))) if outcome}


def held_back(db: Session, waiting: Sequence[Job]) -> dict[str, list[Held]]:
    """{job: the unfinished ones that it waits for}: the import of everybody's base model may be another team's."""
    held = {job.id: job for job in waiting if not job.ready}
    if not held:
        return {}
    found = select(JobDependency.job_id, Job).join(Job, col(Job.id) == JobDependency.waits_for_id)
    told: dict[str, list[Held]] = {}
    unfinished = found.where(col(JobDependency.job_id).in_(held), Job.state != State.SUCCEEDED)
    for job_id, other in db.exec(unfinished):
        told.setdefault(job_id, []).append(held_by(db, held[job_id], other))
    return told


def held_by(db: Session, job: Job, other: Job) -> Held:
    """One of them."""
    if other.team_id == job.team_id:
        return Held(f"{other.kind} {other.id[-6:]}", other.state, other)
    row = imports.made_by(db, other)
    return Held(f"the import of {imports.title(db, row) if row else 'its model'}", other.state)


# --- why --------------------------------------------------------------------------------------------


def why(job: Job, at: Scene, before: int, last: Outcome | None = None) -> tuple[str, bool]:
    """In a sentence, why it does not run yet; and whether it never will as things stand."""
    if job.run_after and job.run_after > now():
        if job.disk_bytes and (lacking := what_lacks(job, at)):
            return lacking, True
        rests = span((job.run_after - now()).total_seconds())
        return (
            f"{ENDED.get(last, FAILED) if last else FAILED}, and rests for {rests} before the next try.",
            False,
        )
    if lacking := what_lacks(job, at):
        return lacking, True
    able = holders(job, at)
    takes = min(able.values())
    if capped := at_cap(job, at, takes):
        return capped, takes > at.caps.get(job.team_id, takes) or takes > at.caps.get(None, takes)
    if any(at.free[worker_id] >= slots for worker_id, slots in able.items()):
        if not before:
            return "A slot is free; it starts within moments.", False
        return f"Slots are free; {plural(before, 'job goes', 'jobs go')} first.", False
    if takes > 1 and any(at.free[worker_id] for worker_id in able):
        return f"It takes {takes} slots of one worker at once, and none has as many free.", False
    first = f"{plural(before, 'job goes', 'jobs go')} first." if before else "it is next."
    return f"Every {job.slot} slot that could hold it is taken; {first}", False


def what_lacks(job: Job, at: Scene) -> str:
    """What no worker has, in a sentence; empty where one has it all."""
    offering = [w for w in at.workers if w.slots.get(str(at.slot))]
    if not offering:
        return f"No worker that is alive offers a {at.slot} slot."
    able = [w for w in offering if fits(job, w)]
    if not able:
        return f"It needs {resources.said(job.resources)}, and no worker that is alive has that."
    roomy = [w for w in able if room.has(w, job)]
    if not roomy:
        return room.lacking(job, able)
    if not any(w.id in at.free for w in roomy):
        return takes_none(roomy)
    return ""


def takes_none(able: list[Worker]) -> str:
    """Why none of the workers that could run it takes jobs, in sentences."""
    told = [f"The worker on {w.host} {w.note or 'drains'}." for w in able[:NAMED]]
    return " ".join(["Every worker that could run it takes no jobs just now.", *told])


def at_cap(job: Job, at: Scene, takes: int) -> str:
    """Which cap holds it back, in a sentence; empty for none."""
    own, every = at.caps.get(job.team_id), at.caps.get(None)
    mine, together = at.occupied.get(job.team_id, 0), sum(at.occupied.values())
    if own is not None and takes > own:
        return f"It takes {plural(takes, 'slot')}, and your team may occupy {own} at once. An operator can raise the cap."
    if own is not None and mine + takes > own:
        return f"Your team occupies {mine} of the {own} {at.slot} slots that it may; one of its own jobs has to end first."
    if every is not None and together + takes > every:
        return f"All teams together occupy {together} of the {every} {at.slot} slots that they may."
    return ""


def fits(job: Job, worker: Worker) -> bool:
    """Whether that worker has what it needs, room on its disk aside."""
    return resources.fits(job.resources, resources.offer(worker, job.slot))


def holders(job: Job, at: Scene) -> dict[str, int]:
    """{worker that takes jobs and could hold it: how many slots it takes there}."""
    return {
        worker.id: resources.takes(job.resources, resources.offer(worker, job.slot))
        for worker in at.workers
        if worker.id in at.free and fits(job, worker) and room.has(worker, job)
    }


# --- who goes first ---------------------------------------------------------------------------------


def sentences(job: Job, at: Scene, before: positions.Ahead, first: list[Job]) -> list[Ahead]:
    """Who goes first and why: own jobs by name, others by number."""
    named = [other for other in first if (other.rank_at, other.id) < (job.rank_at, job.id)]
    told = [Ahead(why_before(job, other), other) for other in named]
    if before.own > len(told):
        told.append(Ahead(f"{plural(before.own - len(told), 'more job')} of your team."))
    if before.others:
        whose = (
            f"{plural(before.others, 'job')} of other teams: teams take turns, the one that used least first."
        )
        hours = at.uses.get(job.team_id, positions.Use()).used
        told.append(Ahead(whose + (f" Yours used {span(hours)} within the last day." if hours else "")))
    return told


def first_of(db: Session, job: Job) -> list[Job]:
    """The first jobs of that job's team and class that may be claimed."""
    found = select(Job).where(
        Job.team_id == job.team_id, Job.slot == job.slot, Job.state == State.QUEUED, col(Job.ready)
    )
    return list(db.exec(found.order_by(col(Job.rank_at), col(Job.id)).limit(NAMED)).all())


def why_before(job: Job, first: Job) -> str:
    """Why that job of the same team goes first."""
    if first.priority > job.priority:
        return f"its priority is higher, {first.priority} against {job.priority}"
    if first.priority < job.priority:
        return (
            f"it has waited for so much longer that its lower priority, {first.priority}, no longer matters"
        )
    return "it was submitted earlier"


# --- when -------------------------------------------------------------------------------------------


def seconds(job: Job, at: Scene, own: int, others: int) -> float | None:
    """About how long until it starts; None: not known yet.

    One worker that could hold it must have its slots free, and the caps must leave room. The jobs before it are taken
    to want a slot each of the same workers, for the usual time.
    """
    able = holders(job, at)
    if not able:
        return None
    usual = math.inf if at.usual.seconds is None else at.usual.seconds
    slots = {worker_id: [0.0] * at.free[worker_id] for worker_id in able}
    for one in at.running:
        if one.worker_id in able:
            slots[one.worker_id] += one.lefts
    starts = [reckoned(slots, able, own + others, usual)]
    takes = min(able.values())
    for whose, before in ((job.team_id, own), (None, own + others)):
        if (cap := at.caps.get(whose)) is not None:
            starts.append(reckoned({"": within(cap, at, whose)}, {"": takes}, before, usual))
    if job.run_after:
        starts.append((job.run_after - now()).total_seconds())
    return max(starts) if math.isfinite(max(starts)) else None


def within(cap: int, at: Scene, team_id: str | None) -> list[float]:
    """The seconds until each slot of a cap is free; whoever occupies more than it allows ends first for nothing."""
    lefts = sorted(left for one in at.running if team_id in (None, one.team_id) for left in one.lefts)
    return [0.0] * (cap - len(lefts)) + lefts[max(0, len(lefts) - cap) :]


def reckoned(slots: dict[str, list[float]], takes: dict[str, int], before: int, usual: float) -> float:
    """When one worker has as many slots free as it `takes` there, after `before` others, each of which takes a slot of
    any of them for the usual time. `slots` holds the seconds that each slot is busy still. Infinite: not known.
    """
    turns = [
        (left, number, worker_id)
        for worker_id, lefts in slots.items()
        for number, left in enumerate(sorted(lefts))
        if math.isfinite(left)
    ]
    if not turns:
        return math.inf
    spread = max(turns)[0] - min(turns)[0]
    rounds = max(0, math.floor(before / len(turns) - spread / usual)) if 0 < usual < math.inf else 0
    if rounds:  # everybody's turn comes as often at least
        turns = [(left + rounds * usual, number, worker_id) for left, number, worker_id in turns]
    heapq.heapify(turns)
    for _ in range(before - rounds * len(turns)):
        left, number, worker_id = turns[0]
        heapq.heapreplace(turns, (left + usual, number, worker_id))
    free: dict[str, list[float]] = {}
    for left, _, worker_id in sorted(turns):
        free.setdefault(worker_id, []).append(left)
    return min((free[w][takes[w] - 1] for w in free if len(free[w]) >= takes[w]), default=math.inf)


@dataclass(frozen=True)
class Usage:
    """Slots of a class that are occupied and may be, and the seconds of them used within the last day."""

    occupied: int
    cap: int | None
    used: float


def usage(db: Session, slot: Slot) -> Callable[[str | None], Usage]:
    """(team, or None for all together) → its usage of that class, read once."""
    occupied, used, allowed = caps.occupied(db, slot), ranking.used(db, str(slot)), caps.of(db, slot)

    def of(team_id: str | None) -> Usage:
        if team_id is None:
            return Usage(sum(occupied.values()), allowed.get(None), sum(used.values()))
        return Usage(occupied.get(team_id, 0), allowed.get(team_id), used.get(team_id, 0.0))

    return of
