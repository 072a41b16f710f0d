"""E-mails about jobs: who wants to hear of which, and what they say. Plain text, a link, no pictures."""

from collections.abc import Sequence

from sqlalchemy import and_, or_
from sqlmodel import Session, col, select

from shared import webhooks
from shared.errors import Refused
from shared.settings import settings
from shared.stories import story
from shared.tables import Job, Kind, MailScope, Membership, Occasion, Team, User

KINDS = {Kind.TRAIN: "training", Kind.EVALUATE: "evaluation", Kind.INFER: "inference"}
HAPPENED = {
    Occasion.STARTED: "has started",
    Occasion.SUCCEEDED: "has succeeded",
    Occasion.FAILED: "has failed",
    Occasion.CANCELLED: "was cancelled",
}
LONGEST_NAME = 100


def choose(db: Session, team_id: str, user_id: str, scope: str, occasions: Sequence[str]) -> None:
    """Of which of the team's jobs that member hears. Raises Refused naming the field."""
    if scope not in set(MailScope):
        raise Refused("Choose whose jobs you want to hear of.", param="scope")
    member = db.get_one(Membership, (team_id, user_id))
    if scope != MailScope.NOTHING or occasions:
        member.mail_occasions = webhooks.chosen(Occasion, occasions, "occasions")
    member.mail_scope = MailScope(scope)
    db.flush()


def readers(db: Session, job: Job, occasion: Occasion) -> list[User]:
    """The members of the job's team who want to hear that of it; somebody being deleted is passed over."""
    if job.kind not in KINDS:
        return []
    own = and_(
        col(Membership.mail_scope) == MailScope.MINE, col(Membership.user_id) == (job.created_by or "")
    )
    wanted = (
        select(User)
        .join(Membership)
        .where(
            Membership.team_id == job.team_id,
            col(Membership.mail_occasions).contains([occasion.value]),
            or_(col(Membership.mail_scope) == MailScope.TEAM, own),
            col(User.disabled_at).is_(None),
        )
    )
    return list(db.exec(wanted.with_for_update(read=True, key_share=True, skip_locked=True, of=User)).all())


def address(db: Session, team_id: str, user_id: str) -> str | None:
    """Where to write to that person about the team; None: they have left it, or may not sign in."""
    still = select(User.email).join(Membership)
    here = (Membership.team_id == team_id, User.id == user_id, col(User.disabled_at).is_(None))
    return db.exec(still.where(*here)).first()


def subject(job: Job, occasion: Occasion) -> str:
    """One line."""
    return f"«{called(job)}» {HAPPENED[occasion]}"


def called(job: Job) -> str:
    """The job's name in one line, or its id."""
    name = " ".join((job.name or job.id).split())
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def text(db: Session, job: Job, occasion: Occasion) -> str:
    """What has happened, why and what to do, the page, and why the reader gets this."""
    home = settings().public_url
    team = db.get_one(Team, job.team_id).name
    told = [f"The {KINDS[job.kind]} «{called(job)}» of the team «{team}» {HAPPENED[occasion]}."]
    if occasion == Occasion.FAILED:
        known = story(job.reason_code)
        told += [
            f"What happened: {known.title}. {job.reason or 'No reason was given.'}",
            f"What to do: {known.advice}",
        ]
    told += [
        f"{home}/jobs/{job.id}",
        f"You get this because you chose so: {home}/team/notifications",
    ]
    return "\n\n".join(told) + "\n"
