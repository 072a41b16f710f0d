"""Single-use links: an invitation to a team, a password reset. The row holds the secret's hash."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import passwords
from shared.columns import now
from shared.errors import NotFound, Refused
from shared.tables import Link, LinkKind, Membership, Role, User
from shared.teams import address, digest, join, set_password

INVITATION_HOURS = 72.0
HANDED_OVER = timedelta(hours=24)
MAILED = timedelta(minutes=30)


def invite(
    db: Session,
    team_id: str,
    role: Role | str,
    *,
    email: str = "",
    created_by: str | None = None,
    hours: float = INVITATION_HOURS,
) -> tuple[Link, str]:
    """A link that lets one person join with that role, and its secret. `email` ties it to an address."""
    if not 0 < hours <= 24 * 30:
        raise Refused("An invitation is good for at most 30 days.", param="hours")
    link = Link(
        token_hash="",
        kind=LinkKind.INVITATION,
        team_id=team_id,
        role=Role(role),
        email=address(email) if email.strip() else "",
        created_by=created_by,
    )
    return _with_secret(db, link, now() + timedelta(hours=hours))


def invitations(db: Session, team_id: str) -> list[Link]:
    """The invitations of a team that can still be used, newest first."""
    open_ones = select(Link).where(
        Link.team_id == team_id,
        Link.kind == LinkKind.INVITATION,
        col(Link.used_at).is_(None),
        Link.expires_at > now(),
    )
    return list(db.exec(open_ones.order_by(col(Link.id).desc())))


def withdraw(db: Session, team_id: str, link_id: str) -> None:
    """End an invitation now. Raises NotFound where the team has no such link."""
    link = db.exec(select(Link).where(Link.team_id == team_id, Link.id == link_id)).first()
    if link is None:
        raise NotFound("invitation", link_id)
    link.used_at = link.used_at or now()
    db.add(link)


def reset_by_owner(db: Session, team_id: str, user_id: str, owner_id: str) -> str:
    """The secret of a reset link that an owner hands over.

    Whoever holds it becomes that person, in every team of theirs: so the owner must own them all.
    """
    if db.get(Membership, (team_id, user_id)) is None:
        raise NotFound("member", user_id)
    theirs = set(db.exec(select(Membership.team_id).where(Membership.user_id == user_id)))
    owned = select(Membership.team_id).where(Membership.user_id == owner_id, Membership.role == Role.OWNER)
    if theirs - set(db.exec(owned)):
        raise Refused(
            "This person belongs to teams that you do not own. Whoever runs the server can set a one-time "
            "password with `burnish user add`.",
            code="belongs_elsewhere",
            status=403,
        )
    return _reset(db, db.get_one(User, user_id), team_id, now() + HANDED_OVER, owner_id)


def reset_by_mail(db: Session, email: str) -> tuple[str, str] | None:
    """(address, secret) of a reset link to be mailed, or None where nobody has that address."""
    user = db.exec(select(User).where(User.email == email.strip().lower())).first()
    if user is None or user.disabled_at is not None:
        return None
    team_id = db.exec(select(Membership.team_id).where(Membership.user_id == user.id)).first()
    return (user.email, _reset(db, user, team_id, now() + MAILED, None)) if team_id else None


def opened(db: Session, secret: str, kind: LinkKind, *, lock: bool = False) -> Link:
    """The link, if it can still be used. Raises Refused (410) where it cannot, whatever the reason."""
    wanted = select(Link).where(Link.token_hash == digest(secret), Link.kind == kind)
    link = db.exec(wanted.with_for_update() if lock else wanted).first()
    if link is None or link.used_at or link.expires_at <= now():
        raise Refused(
            "This link has been used, has ended or never was. Ask for a new one.",
            code="link_ended",
            status=410,
        )
    return link


def accept(db: Session, secret: str, user: User) -> Link:
    """Use up an invitation: the person joins its team. Raises Refused where it is not theirs."""
    link = opened(db, secret, LinkKind.INVITATION, lock=True)
    if link.email and link.email != user.email:
        raise Refused(f"This invitation is for {link.email}.", param="email", status=403)
    join(db, link.team_id, user.id, link.role or Role.VIEWER)
    _use(db, link)
    return link


def newcomer(db: Session, secret: str, email: str, password: str) -> User:
    """The person who answers an invitation with an address and a password: made, or recognised.

    Raises Refused where the address is known and the password is not its own.
    """
    link, email = opened(db, secret, LinkKind.INVITATION), address(email)
    if link.email and link.email != email:
        raise Refused(f"This invitation is for {link.email}.", param="email")
    user = db.exec(select(User).where(User.email == email)).first()
    if user is not None:
        if user.disabled_at is not None or not passwords.matches(user.password_hash, password):
            raise Refused(
                "This address has an account already, and this is not its password.", param="password"
            )
        return user
    user = User(email=email, password_hash=passwords.hashed(passwords.acceptable(password, email)))
    db.add(user)
    db.flush()
    return user


def reset(db: Session, secret: str, password: str) -> User:
    """Use up a reset link: the new password counts, every session and other reset link ends."""
    link = opened(db, secret, LinkKind.PASSWORD_RESET, lock=True)
    user = db.get_one(User, link.user_id)
    set_password(db, user, passwords.acceptable(password, user.email))
    others = (col(Link.user_id) == user.id, col(Link.used_at).is_(None))
    db.exec(update(Link).where(*others).values(used_at=now()))
    return user


def _reset(db: Session, user: User, team_id: str, until: datetime, created_by: str | None) -> str:
    link = Link(
        token_hash="",
        kind=LinkKind.PASSWORD_RESET,
        team_id=team_id,
        user_id=user.id,
        email=user.email,
        created_by=created_by,
    )
    return _with_secret(db, link, until)[1]


def _with_secret(db: Session, link: Link, until: datetime) -> tuple[Link, str]:
    secret = secrets.token_urlsafe(32)
    link.token_hash, link.expires_at = digest(secret), until
    db.add(link)
    db.flush()
    return link, secret


def _use(db: Session, link: Link) -> None:
    link.used_at = now()
    db.add(link)
    db.flush()
