"""A job's life, from submit to its end. The only writer of `job.state`.

                 submit                      claim
        (an order) ──────────▶  queued  ──────────────▶  running
                                │ ▲ ▲                     │ │ │
                  pause, cancel │ │ │  release, reap,     │ │ │ finish
                                │ │ │  crash within its   │ │ │
                                │ │ └──── budget ─────────┘ │ │
                                │ │ resume                  │ │
                                ▼ │   pause, obeyed         │ ▼
                              paused ◀────────────────────┘  succeeded · failed · cancelled
                                │                                        ▲
                                └──────────── cancel, stop ──────────────┘

Who may: submit, cancel, stop, pause, resume, prioritise, retry and delete are a person's (or a
schedule's); claim, renew, report, release and finish are the worker's that holds the lease; reap
(`shared.reaper`) is anybody's, by the database's clock. A job whose dependency fails, fails with it.

A running job is not cancelled, stopped or paused from outside: the request is a column, read by the
holder's next renewal. The row's lock orders cancel and finish: a finish after the request ends
`cancelled` with its checkpoints kept; a cancel after the finish is refused. A stop lets the trainer
evaluate and save what it has: that succeeds, early; where it cannot, the job ends `cancelled`. A waiting
inference job some of whose answers are stored is cancelled by a worker too: it stays queued, now for a
light slot, until one has made the files of those answers.

A retry of an ended job is a new one, which may go on from a checkpoint of the old. A job that has run for
longer than it may fails, with its checkpoints kept, and may be retried from the last.

Every word of an attempt is fenced by `lease_id`: once the attempt has ended, its worker's word is
ignored. The diagram's promises are constraints of the table: a state and what goes with it change together.
Locks are taken in this order: a slot class's advisory lock, job, attempt. Every change leaves
a line in `transitions`; a job's start and end leave what is to be told of them in `shared.outbox`.
"""

from datetime import datetime, timedelta

from sqlalchemy import func
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from shared import caps, chains, checkpoints, imports, orders, outbox, ranking, settling, workers
from shared.budgets import Verdict, verdict
from shared.errors import NotFound, Refused
from shared.ids import new_id
from shared.leases import Orders, clock, held, held_job, renew, report
from shared.orders import Order
from shared.settings import settings
from shared.tables import (
    FINAL,
    Artifact,
    Attempt,
    Checkpoint,
    Job,
    JobDependency,
    Kind,
    Occasion,
    Outcome,
    Ready,
    Slot,
    State,
    Team,
    Transition,
)

__all__ = ["Order", "Orders", "held", "renew", "report"]  # a job's verbs, from here too

PRIORITY_WEIGHT = timedelta(minutes=10)  # a step of priority is worth ten minutes of waiting
LINE_SECONDS = 10.0  # that a worker stands in line to claim: nearly two hundred at once were served in seven
HISTORY = 50  # attempts that a verdict looks back on


# --- in ---------------------------------------------------------------------------------------------


def submit(db: Session, order: Order, idempotency_key: str | None = None) -> Job:
    """Checks the order and queues it. Raises Refused; nothing is stored then.

    The same key with the same order gives the same job, also to fifty requests at once; with another
    order it is refused with 409. Wake the job's slot after the commit.
    """
    body_hash = orders.fingerprint(order)
    if idempotency_key and (known := with_key(db, order.team_id, idempotency_key, body_hash)):
        return known
    try:
        with db.begin_nested():
            accepted = orders.accept(
                db,
                order,
                lambda base: submit_import(
                    db, team_id=order.team_id, base_model_id=base.id, created_by=order.created_by
                ),
            )
            accepted.job.idempotency_key = idempotency_key
            accepted.job.body_hash = body_hash
            return enter(db, accepted.job, order.actor or order.created_by or "", accepted.waits_for)
    except IntegrityError:
        known = with_key(db, order.team_id, idempotency_key, body_hash) if idempotency_key else None
        if known is None:
            raise
        return known


def with_key(db: Session, team_id: str, key: str, body_hash: str) -> Job | None:
    """The job that was submitted with that key. Raises Refused where the order was another."""
    known = db.exec(select(Job).where(Job.team_id == team_id, Job.idempotency_key == key)).first()
    if known is not None and known.body_hash != body_hash:
        raise Refused(
            f"The idempotency key «{key}» was used for another request. Send a new key with a new request.",
            param="idempotency_key",
            code="idempotency_key_reused",
            status=409,
        )
    return known


def submit_import(
    db: Session,
    *,
    team_id: str,
    version_id: str | None = None,
    base_model_id: str | None = None,
    file_id: str | None = None,
    created_by: str | None = None,
) -> Job:
    """Queues the import of a dataset version or base model, or gives the one under way. Raises Refused if it is there."""
    row = imports.to_make(db, version_id, base_model_id)
    if under_way := imports.going_on(db, row):
        return under_way
    job = orders.blank(Order(team_id=team_id, kind=Kind.IMPORT, file_id=file_id, created_by=created_by))
    job.dataset_version_id, job.base_model_id, job.file_id = version_id, base_model_id, file_id
    enter(db, job, created_by or "")
    row.state, row.import_job_id, row.error = Ready.BUILDING, job.id, None
    db.flush()
    return job


def submit_export(db: Session, *, checkpoint: Checkpoint, form: str, created_by: str | None = None) -> Job:
    """Queues the making of an artifact from a checkpoint; the same one is made once.

    Where it is ready or being made already, this is the job that makes or made it.
    """
    alive = select(Checkpoint.id).where(Checkpoint.id == checkpoint.id, col(Checkpoint.deleted_at).is_(None))
    if db.exec(alive.with_for_update()).first() is None:
        raise NotFound("checkpoint", checkpoint.id)
    made = select(Artifact).where(
        Artifact.checkpoint_id == checkpoint.id, Artifact.form == form, Artifact.state != Ready.FAILED
    )
    if artifact := db.exec(made).first():
        return db.exec(select(Job).where(Job.id == artifact.job_id)).one()
    trained = db.exec(select(Job).where(Job.id == checkpoint.job_id)).one()
    job = orders.blank(Order(team_id=checkpoint.team_id, kind=Kind.EXPORT, created_by=created_by))
    job.recipe, job.spec, job.seed = trained.recipe, trained.spec, trained.seed
    job.base_model_id, job.checkpoint_id, job.name = trained.base_model_id, checkpoint.id, trained.name
    job.asked = {"form": form}
    enter(db, job, created_by or "")
    db.add(Artifact(team_id=job.team_id, job_id=job.id, checkpoint_id=checkpoint.id, form=form))
    db.flush()
    return job


def enter(db: Session, job: Job, actor: str, waits_for: set[str] | None = None) -> Job:
    """Stores a new job as queued, by the database's clock."""
    job.created_at = clock(db)
    job.rank_at = job.created_at - PRIORITY_WEIGHT * job.priority
    job.state, job.stage = State.QUEUED, "waiting" if waits_for else ""
    if job.max_run_seconds is None and job.slot == Slot.COMPUTE:
        job.max_run_seconds = db.get_one(Team, job.team_id).max_run_seconds
    db.add(job)
    db.flush()
    if waits_for:
        hold(db, job, waits_for)
    note(db, job, actor, "submitted")
    return job


def hold(db: Session, job: Job, waits_for: set[str]) -> None:
    """Not ready before those others have succeeded; locked, so that their end sees us. Raises Refused where one failed."""
    others = select(Job).where(col(Job.id).in_(waits_for)).order_by(col(Job.id)).with_for_update(read=True)
    for other in db.exec(others.execution_options(populate_existing=True)).all():
        if other.state in (State.FAILED, State.CANCELLED) or other.cancel_requested_at is not None:
            raise Refused(settling.why(other), param=settling.param(other))
        db.add(JobDependency(job_id=job.id, waits_for_id=other.id))
        job.ready = job.ready and other.state == State.SUCCEEDED


# --- the worker's verbs -----------------------------------------------------------------------------


def claim(db: Session, worker_id: str, slot: str) -> Attempt | None:
    """The next job of that slot class for this worker, as a new attempt with a lease; None: nothing to do.

    The attempt's `slots` has one entry for each slot that it occupies. Short: commit at once. The advisory
    lock makes caps and fair share exact; the row lock gives a job to one.
    """
    caps.lock(db, slot, LINE_SECONDS)
    place = workers.place(db, worker_id, slot)
    if place is None:
        return None
    ranking.let_in(db, slot)
    turn = ranking.turns(db, slot, place)
    if (wide := ranking.kept_for(turn, place)) and workers.roomiest(db, db.get_one(Job, wide)) == worker_id:
        return None
    found = ranking.first_free(db, slot, place, turn)
    return begin(db, found[0], worker_id, [slot] * found[1]) if found else None


def begin(db: Session, job: Job, worker_id: str, slots: list[str]) -> Attempt:
    """Gives the job, whose row is locked, to the worker."""
    before = select(func.count()).where(Attempt.job_id == job.id).scalar_subquery()
    known = select(func.clock_timestamp(), before, checkpoints.newest(job).scalar_subquery())
    at, past, step = db.exec(known).one()
    attempt = Attempt(
        id=new_id("attempt-"),
        job_id=job.id,
        team_id=job.team_id,
        number=past + 1,
        worker_id=worker_id,
        slots=slots,
        lease_id=new_id("lease-"),
        lease_expires_at=at + timedelta(seconds=settings().lease_seconds),
        start_step=step or 0,
        started_at=at,
    )
    db.add(attempt)
    job.state, job.stage, job.attempt_id = State.RUNNING, "fetching", attempt.id
    job.attempts += 1
    first = job.started_at is None
    job.run_after, job.started_at = None, job.started_at or at
    note(db, job, worker_id, f"attempt {attempt.number}", at)
    if first:
        outbox.tell(db, job, Occasion.STARTED)
    return attempt


def finish(
    db: Session,
    lease_id: str,
    outcome: Outcome,
    *,
    reason_code: str | None = None,
    reason: str | None = None,
    param: str | None = None,
    scores: dict | None = None,
    trained_tokens: int | None = None,
    best_checkpoint_id: str | None = None,
) -> State | None:
    """Ends the attempt and says what the job is now; None: the lease was lost, nothing is changed."""
    job = held_job(db, lease_id)
    if job is None:
        return None
    job.scores = job.scores if scores is None else scores
    job.trained_tokens = job.trained_tokens if trained_tokens is None else trained_tokens
    job.best_checkpoint_id = best_checkpoint_id or job.best_checkpoint_id
    return close(db, job, outcome, reason_code=reason_code, reason=reason, param=param)


def release(db: Session, lease_id: str, reason: str) -> State | None:
    """Gives the job back without charge: the worker drains, or something that is not the job's is away."""
    return finish(db, lease_id, Outcome.RELEASED, reason_code="released", reason=reason)


def close(
    db: Session,
    job: Job,
    outcome: Outcome,
    *,
    reason_code: str | None = None,
    reason: str | None = None,
    param: str | None = None,
    actor: str | None = None,
) -> State:
    """Ends the attempt that holds the job (whose row is locked) and decides what becomes of the job."""
    attempt = db.exec(select(Attempt).where(Attempt.id == job.attempt_id).with_for_update()).one()
    attempt.outcome, attempt.ended_at = outcome, clock(db)
    attempt.reason_code, attempt.reason = reason_code, reason
    attempt.end_step = job.progress.get("step")
    actor = actor or attempt.worker_id
    if outcome in (Outcome.LOST, Outcome.RELEASED):
        job.attempts -= 1
    if job.cancel_requested_at is not None:
        unsaid = outcome in (Outcome.LOST, Outcome.RELEASED) and settling.has_answers(db, job)
        if unsaid and follow(db, job).again:
            return hand_out(db, job, actor)
        return end(db, job, State.CANCELLED, actor, "cancelled", "It was cancelled.")
    if outcome == Outcome.SUCCEEDED:
        return end(db, job, State.SUCCEEDED, actor, reason_code, reason)
    if outcome == Outcome.FAILED:
        return end(db, job, State.FAILED, actor, reason_code, reason, param)
    if job.stop_requested_at is not None:
        told = settling.stopped(checkpoints.newest_step(db, job))
        return end(db, job, State.CANCELLED, actor, "stopped", told)
    if job.pause_requested_at is not None:
        return rest(db, job, actor)
    return requeue(db, job, actor, attempt)


def requeue(db: Session, job: Job, actor: str, attempt: Attempt) -> State:
    """Another attempt if the budget of what happened allows one, else the end with the story told."""
    follows = follow(db, job)
    if not follows.again:
        return end(db, job, State.FAILED, actor, follows.reason_code, follows.reason)
    job.state, job.stage, job.attempt_id = State.QUEUED, "", None
    job.run_after = clock(db) + timedelta(seconds=follows.pause) if follows.pause else None
    job.ready = job.run_after is None
    note(db, job, actor, attempt.reason or str(attempt.outcome))
    return job.state


def follow(db: Session, job: Job) -> Verdict:
    """What follows the job's last attempt, which has ended."""
    past = select(Attempt).where(Attempt.job_id == job.id).order_by(col(Attempt.number).desc()).limit(HISTORY)
    made = db.exec(past).all()
    reached = checkpoints.newest_step(db, job, made[0])
    return verdict(made, reached, clock(db), settings().retry_seconds)


def hand_out(db: Session, job: Job, actor: str) -> State:
    """A cancelled inference job waits for a worker that makes files of the answers so far."""
    job.state, job.stage, job.attempt_id = State.QUEUED, "", None
    job.slot, job.run_after, job.ready, job.pause_requested_at = Slot.LIGHT, None, True, None
    note(db, job, actor, "its answers so far are made into files")
    return job.state


def end(
    db: Session,
    job: Job,
    state: State,
    actor: str,
    reason_code: str | None = None,
    reason: str | None = None,
    param: str | None = None,
) -> State:
    """A final state, and what hangs on it: what the job was to make, and the jobs that wait for it."""
    job.state, job.stage, job.attempt_id, job.finished_at = state, "", None, clock(db)
    job.reason_code, job.reason, job.reason_param = reason_code, reason, param
    job.run_after = job.swept_at = None
    note(db, job, actor, reason or "")
    outbox.tell(db, job, Occasion(state.value))
    if state == State.SUCCEEDED:
        settling.release_waiting(db, job)
        return state
    settling.fail_what_it_makes(db, job)
    for waiting in settling.waiting_for(db, job):
        end(db, waiting, State.FAILED, actor, "dependency_failed", settling.why(job), settling.param(job))
    return state


# --- a person's verbs -------------------------------------------------------------------------------


def cancel(db: Session, job: Job, actor: str) -> Job:
    """Cancels a waiting job at once, asks the holder of a running one; where an inference job has answers that
    stand in no file yet, a worker makes one first. Wake its slot after the commit. Raises Refused after its end,
    and for an import that another team's job waits for.
    """
    job = locked(db, job.id)
    if job.state in FINAL:
        raise Refused(f"{job.id} has {job.state} already.", code="job_is_final")
    if job.cancel_requested_at is not None:
        return job
    imports.require_not_needed(db, job)
    unsaid = settling.has_answers(db, job)
    job.cancel_requested_at = clock(db)
    if job.state == State.RUNNING:
        note(db, job, actor, "cancel requested")
    elif unsaid:
        hand_out(db, job, actor)
    else:
        end(db, job, State.CANCELLED, actor, "cancelled", "It was cancelled.")
    return job


def stop(db: Session, job: Job, actor: str) -> Job:
    """Asks the holder of a running training to end it here: evaluate, save, succeed. What does not train now
    is cancelled; what it has stored is kept. Raises Refused after the end.
    """
    job = locked(db, job.id)
    if job.state != State.RUNNING or job.kind != Kind.TRAIN or job.cancel_requested_at is not None:
        return cancel(db, job, actor)
    if job.stop_requested_at is None:
        job.stop_requested_at = clock(db)
        note(db, job, actor, "stop requested")
    return job


def prioritise(db: Session, job: Job, priority: int, actor: str) -> Job:
    """Moves a job that waits or rests within the team's queue. Raises Refused."""
    orders.require_priority(priority)
    job = locked(db, job.id)
    if job.state not in (State.QUEUED, State.PAUSED):
        raise Refused(
            f"{job.id} is {job.state}: only a job that waits has a priority.", code="job_does_not_wait"
        )
    if priority != job.priority:
        told = f"priority {job.priority} → {priority}"
        job.priority, job.rank_at = priority, job.created_at - PRIORITY_WEIGHT * priority
        note(db, job, actor, told)
    return job


def pause(db: Session, job: Job, actor: str) -> Job:
    """Takes a waiting job out of the queue, asks the holder of a running one to keep a checkpoint and stop."""
    job = locked(db, job.id)
    if job.state in FINAL:
        raise Refused(f"{job.id} has {job.state} already.", code="job_is_final")
    if job.cancel_requested_at is not None:
        raise Refused(f"{job.id} is being cancelled.", code="job_is_final")
    imports.require_may_rest(db, job)
    if job.state == State.QUEUED:
        rest(db, job, actor)
    elif job.state == State.RUNNING and job.pause_requested_at is None:
        job.pause_requested_at = clock(db)
        note(db, job, actor, "pause requested")
    return job


def rest(db: Session, job: Job, actor: str) -> State:
    """Out of the queue until somebody resumes it."""
    job.state, job.stage, job.attempt_id = State.PAUSED, "", None
    job.pause_requested_at = job.run_after = None
    note(db, job, actor, "paused")
    return job.state


def resume(db: Session, job: Job, actor: str) -> Job:
    """Queues a paused job again, to go on from its newest checkpoint. Wake its slot after the commit."""
    job = locked(db, job.id)
    if job.state == State.PAUSED:
        job.state, job.ready = State.QUEUED, not settling.unfinished(db, job.id)
    elif job.state != State.RUNNING or job.pause_requested_at is None:
        raise Refused(f"{job.id} is {job.state}, not paused.", code="job_is_not_paused")
    job.pause_requested_at = None
    note(db, job, actor, "resumed")
    return job


def retry(
    db: Session,
    job: Job,
    actor: str,
    checkpoint_id: str | None = None,
    *,
    created_by: str | None = None,
    key: str | None = None,
) -> Job:
    """A new job of that person for the same order, same seed. With a checkpoint of the old one it goes on from
    there, as if that had never ended. The same key gives the same job. Raises Refused while the old one may still
    succeed.
    """
    if job.state not in FINAL:
        raise Refused(f"{job.id} is {job.state}; cancel it first.", code="job_is_not_final")
    if job.kind == Kind.EXPORT and checkpoint_id is None:
        checkpoint = db.exec(select(Checkpoint).where(Checkpoint.id == job.checkpoint_id)).one()
        return submit_export(db, checkpoint=checkpoint, form=job.asked["form"], created_by=created_by)
    if job.kind == Kind.IMPORT and checkpoint_id is None:
        return submit_import(
            db,
            team_id=job.team_id,
            version_id=job.dataset_version_id,
            base_model_id=job.base_model_id,
            file_id=job.file_id,
            created_by=created_by,
        )
    goes_on = checkpoints.to_resume(db, job, checkpoint_id).id if checkpoint_id else None
    return submit(db, orders.again(job, actor, created_by, goes_on), key)


def delete(db: Session, job: Job, actor: str) -> None:
    """Hides an ended job and gives its checkpoints up; the sweep removes their bytes.

    Raises Refused while it runs or somebody needs one of its checkpoints: see `shared.chains`.
    """
    job = locked(db, job.id)
    if job.state not in FINAL:
        raise Refused(f"{job.id} is {job.state}; cancel it before you delete it.", code="job_is_not_final")
    checkpoints.lock(db, job.id)
    if told := chains.needed_by(db, job):
        raise Refused(told, code="checkpoint_in_use")
    job.deleted_at = clock(db)
    settling.give_up(db, job)
    note(db, job, actor, "deleted")


# --- details ----------------------------------------------------------------------------------------


def locked(db: Session, job_id: str) -> Job:
    """The job as it is now, locked until the commit."""
    fresh = select(Job).where(Job.id == job_id).with_for_update()
    return db.exec(fresh.execution_options(populate_existing=True)).one()


def note(db: Session, job: Job, actor: str, reason: str, at: datetime | None = None) -> None:
    """A line in the job's timeline, with the state that it has now."""
    who = actor or "system"
    db.add(Transition(job_id=job.id, at=at or clock(db), state=job.state, actor=who, reason=reason))
    db.flush()
