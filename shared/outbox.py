"""The outbox: what webhooks and people are to hear of jobs.

`tell` writes a delivery for each receiver in the very transaction in which the job starts or ends: neither is
there without the other, whatever is killed when. `take` gives due deliveries to one sender for LEASE (skipping
locked rows), `settle` says what came of the try. A sender that dies in between leaves a delivery that is due
again after the lease, with the same id: a receiver may get a message twice, never not at all, until TRIES
tries over about a day have failed; then it is given up and says why.
"""

import json
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, update
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from shared import mail, notices, webhooks
from shared.errors import NotFound, Refused
from shared.ids import new_id
from shared.leases import clock
from shared.settings import settings
from shared.tables import Delivery, Job, Kind, Occasion, Sent, Webhook

LEASE = timedelta(seconds=60)  # a try takes twenty seconds at most
LONGEST_PAUSE = timedelta(days=1)  # that a receiver gets by asking for one
PAUSES = tuple(timedelta(minutes=m) for m in (1, 5, 15, 60, 180, 360, 720))  # after each failed try
TRIES = len(PAUSES) + 1
JITTER = 0.2  # of a pause, either way
FAIRLY = 4  # deliveries of one receiver that are taken at once
OFF_AFTER = timedelta(days=3)  # without one success a webhook is switched off
KEPT = timedelta(days=30)  # that the log goes back
LINES = 20  # of one delivery's log
GONE = 410
SUBJECTS = {
    Kind.TRAIN: "fine_tuning.job",
    Kind.INFER: "batch",
    Kind.EVALUATE: "evaluation",
    Kind.IMPORT: "import",
    Kind.EXPORT: "export",
}


@dataclass(frozen=True)
class Letter:
    """A delivery that is this sender's until `lease`."""

    id: str
    lease: datetime
    team_id: str
    body: str
    webhook_id: str = ""
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    to: str = ""  # of an e-mail
    subject: str = ""


# --- what is written --------------------------------------------------------------------------------


def tell(db: Session, job: Job, occasion: Occasion) -> None:
    """A delivery for each receiver who wants to hear of it, in the transaction of what has happened.

    It waits for nobody: a webhook that is being deleted at this moment is passed over.
    """
    subscribed = select(Webhook).where(
        Webhook.team_id == job.team_id,
        col(Webhook.active),
        col(Webhook.occasions).contains([occasion.value]),
        col(Webhook.kinds).contains([job.kind.value]),
    )
    for webhook in db.exec(subscribed.with_for_update(read=True, key_share=True, skip_locked=True)).all():
        db.add(message(db, webhook, type_of(job.kind, occasion), facts(job), job.id))
    for reader in notices.readers(db, job, occasion) if mail.possible() else ():
        db.add(notice(db, job, occasion, reader.id))
    db.flush()


def message(db: Session, webhook: Webhook, kind: str, data: dict, job_id: str | None = None) -> Delivery:
    """A delivery to a webhook, its body as it will be signed."""
    at, name = clock(db), new_id("evt_")
    body = {"id": name, "object": "event", "created_at": int(at.timestamp()), "type": kind, "data": data}
    return Delivery(
        id=name,
        team_id=webhook.team_id,
        webhook_id=webhook.id,
        job_id=job_id,
        type=kind,
        body=json.dumps(body, ensure_ascii=False),
        due_at=at,
        created_at=at,
    )


def notice(db: Session, job: Job, occasion: Occasion, user_id: str) -> Delivery:
    """A delivery to a person by e-mail."""
    at = clock(db)
    return Delivery(
        team_id=job.team_id,
        user_id=user_id,
        job_id=job.id,
        type=type_of(job.kind, occasion),
        subject=notices.subject(job, occasion),
        body=notices.text(db, job, occasion),
        due_at=at,
        created_at=at,
    )


def type_of(kind: Kind, occasion: Occasion) -> str:
    """The type on the wire: OpenAI's where it has one, of that form where not."""
    if kind == Kind.INFER and occasion == Occasion.SUCCEEDED:
        return "batch.completed"
    return f"{SUBJECTS[Kind(kind)]}.{occasion.value}"


def facts(job: Job) -> dict[str, str | None]:
    """What a message says of a job. OpenAI's says the id alone; the rest is ours."""
    return {
        "id": job.id,
        "x_kind": job.kind.value,
        "x_name": job.name,
        "x_state": job.state.value,
        "x_recipe": job.recipe,
        "x_reason": job.reason,
        "x_reason_code": job.reason_code,
        "x_page": page(job.id),
    }


def page(job_id: str) -> str:
    """The address of a job's page."""
    return f"{settings().public_url}/jobs/{job_id}"


def try_out(db: Session, webhook: Webhook) -> Delivery:
    """A message that tells of nothing, to see whether it arrives; also while the webhook is off."""
    delivery = message(db, webhook, "burnish.test", {"x_page": f"{settings().public_url}/jobs"})
    db.add(delivery)
    db.flush()
    return delivery


# --- what is sent -----------------------------------------------------------------------------------


def take(db: Session, most: int) -> list[Letter]:
    """Some deliveries that are due, each the caller's alone for LEASE; of one receiver a few. Commit at once."""
    at = clock(db)
    due = (
        Delivery.state == Sent.WAITING,
        col(Delivery.due_at) <= at,
        or_(col(Delivery.sending_until).is_(None), col(Delivery.sending_until) <= at),
    )
    order = (col(Delivery.due_at), col(Delivery.id))
    receiver = func.coalesce(Delivery.webhook_id, Delivery.user_id)
    turn = func.row_number().over(partition_by=receiver, order_by=order)
    ranked = select(Delivery.id, turn.label("turn")).where(*due).subquery()
    wanted = select(Delivery).join(ranked, ranked.c.id == Delivery.id).where(ranked.c.turn <= FAIRLY, *due)
    locked = wanted.order_by(*order).limit(most).with_for_update(of=Delivery, skip_locked=True)
    found = db.exec(locked.execution_options(populate_existing=True)).all()
    for delivery in found:
        if delivery.tries >= TRIES:  # each time its sender died
            delivery.state = Sent.GIVEN_UP
        else:
            delivery.tries += 1
            delivery.sending_until = at + LEASE
    db.flush()
    taken = [delivery for delivery in found if delivery.state == Sent.WAITING]
    return [signed(db, one, at) if one.webhook_id else addressed(db, one, at) for one in taken]


def signed(db: Session, delivery: Delivery, at: datetime) -> Letter:
    """A message to a webhook, signed for this try."""
    webhook = db.get_one(Webhook, delivery.webhook_id)
    headers = webhooks.headers(webhook, delivery.id, delivery.body, at)
    return Letter(
        id=delivery.id,
        lease=at + LEASE,
        team_id=delivery.team_id,
        body=delivery.body,
        webhook_id=webhook.id,
        url=webhook.url,
        headers=headers,
    )


def addressed(db: Session, delivery: Delivery, at: datetime) -> Letter:
    """An e-mail; without an address where the person has left the team meanwhile."""
    return Letter(
        id=delivery.id,
        lease=at + LEASE,
        team_id=delivery.team_id,
        body=delivery.body,
        to=notices.address(db, delivery.team_id, delivery.user_id or "") or "",
        subject=delivery.subject,
    )


def settle(
    db: Session,
    sent: Letter,
    *,
    status: int | None,
    seconds: float,
    said: str,
    pause: timedelta = timedelta(0),
) -> None:
    """What came of a try; `said` is why it failed, empty where it arrived; `pause` is what the receiver asks for
    before the next. A late sender's word is ignored.

    Locks are taken in this order: webhook, delivery.
    """
    webhook = None
    if sent.webhook_id:
        webhook = webhooks.locked_if_there(db, sent.webhook_id)
    own = select(Delivery).where(Delivery.id == sent.id, Delivery.sending_until == sent.lease)
    delivery = db.exec(own.with_for_update().execution_options(populate_existing=True)).first()
    if delivery is None:
        return
    at = clock(db)
    line = {"at": at.isoformat(), "status": status, "seconds": round(seconds, 3), "said": said}
    delivery.log = [*delivery.log, line][-LINES:]
    delivery.sending_until = None
    if not said:
        delivery.state = Sent.DELIVERED
    elif delivery.tries >= TRIES or not worth_another(sent, delivery):
        delivery.state = Sent.GIVEN_UP
    else:
        planned = PAUSES[delivery.tries - 1] * random.uniform(1 - JITTER, 1 + JITTER)
        delivery.due_at = at + max(planned, min(pause, LONGEST_PAUSE))
    db.flush()
    if webhook is not None:
        judge(db, webhook, status, failed=bool(said))


def worth_another(sent: Letter, delivery: Delivery) -> bool:
    """Not a test, which says at once what came of it, and not a person who has left."""
    return delivery.job_id is not None and bool(sent.webhook_id or sent.to)


def judge(db: Session, webhook: Webhook, status: int | None, *, failed: bool) -> None:
    """Switches a webhook off that has failed for long, or says of itself that it is gone."""
    at = clock(db)
    if not failed:
        webhook.failing_since = None
        return
    webhook.failing_since = webhook.failing_since or at
    if not webhook.active:
        return
    if status == GONE:
        switch_off(db, webhook, "It answered 410: gone for good.")
    elif at - webhook.failing_since >= OFF_AFTER:
        since = f"{webhook.failing_since:%-d %b %Y, %H:%M} UTC"
        switch_off(db, webhook, f"No delivery has arrived since {since}.")


def switch_off(db: Session, webhook: Webhook, reason: str = "") -> None:
    """It hears of nothing more, and what waits for it is given up. `reason`: why, where nobody did it by hand."""
    webhook.active, webhook.off_reason = False, reason
    waiting = (col(Delivery.webhook_id) == webhook.id, col(Delivery.state) == Sent.WAITING)
    db.exec(update(Delivery).where(*waiting).values(state=Sent.GIVEN_UP))
    db.flush()


# --- what has been sent -----------------------------------------------------------------------------


def again(db: Session, team_id: str, delivery_id: str) -> Delivery:
    """The same message once more, at once, with all its tries. Raises NotFound, Refused while it is being sent."""
    own = select(Delivery).where(
        Delivery.id == delivery_id, Delivery.team_id == team_id, col(Delivery.webhook_id).is_not(None)
    )
    delivery = db.exec(own.with_for_update().execution_options(populate_existing=True)).first()
    if delivery is None:
        raise NotFound("delivery", delivery_id)
    if delivery.sending_until and delivery.sending_until > clock(db):
        raise Refused("It is being sent at this moment.", code="being_sent", status=409, retry=True)
    delivery.state, delivery.tries, delivery.due_at = Sent.WAITING, 0, clock(db)
    db.flush()
    return delivery


def log(webhook: Webhook) -> SelectOfScalar[Delivery]:
    """The select of what a webhook was to hear."""
    return select(Delivery).where(Delivery.webhook_id == webhook.id)


def mails(team_id: str, user_id: str) -> SelectOfScalar[Delivery]:
    """The select of a person's e-mails about a team."""
    return select(Delivery).where(Delivery.user_id == user_id, Delivery.team_id == team_id)


def forget(db: Session, most: int) -> None:
    """The log goes back KEPT."""
    old = select(Delivery.id).where(
        Delivery.state != Sent.WAITING, col(Delivery.created_at) < clock(db) - KEPT
    )
    free = old.limit(most).with_for_update(skip_locked=True)
    db.exec(delete(Delivery).where(col(Delivery.id).in_(free)))
