"""Signed-in browsers: the cookie holds a random secret, the row its hash."""

import secrets
from datetime import timedelta

from sqlalchemy import delete, or_, update
from sqlmodel import Session, col, select

from shared import passwords
from shared.columns import now
from shared.errors import NotFound, Refused
from shared.settings import settings
from shared.tables import BrowserSession, Membership, Role, Team, User
from shared.teams import MINUTE, Caller, digest, set_password

IDLE = timedelta(hours=24)


def sign_in(db: Session, email: str, password: str) -> User | None:
    """The person with that password. An unknown address takes as long and looks the same."""
    user = db.exec(select(User).where(User.email == email.strip().lower())).first()
    known = user is not None and user.disabled_at is None
    if not passwords.matches(user.password_hash if user and known else None, password) or user is None:
        return None
    if passwords.outdated(user.password_hash):
        user.password_hash = passwords.hashed(password)
    return user


def begin(db: Session, user_id: str, user_agent: str = "", team_id: str | None = None) -> str:
    """Open a session, always with a new id, and return its secret for the cookie."""
    secret, moment = secrets.token_urlsafe(32), now()
    db.exec(
        delete(BrowserSession).where(
            col(BrowserSession.user_id) == user_id,
            or_(col(BrowserSession.expires_at) < moment, col(BrowserSession.seen_at) < moment - IDLE),
        )
    )
    db.add(
        BrowserSession(
            id_hash=digest(secret),
            user_id=user_id,
            team_id=team_id or _first_team(db, user_id),
            user_agent=user_agent[:200],
            expires_at=moment + timedelta(hours=settings().session_hours),
        )
    )
    db.flush()
    return secret


def caller(db: Session, secret: str) -> Caller | None:
    """Who the session belongs to, in the team that it looks at; None where it has ended."""
    moment = now()
    found = db.exec(
        select(BrowserSession, User)
        .join(User, col(User.id) == BrowserSession.user_id)
        .where(
            BrowserSession.id_hash == digest(secret),
            BrowserSession.expires_at > moment,
            BrowserSession.seen_at > moment - IDLE,
            col(User.disabled_at).is_(None),
        )
    ).first()
    if found is None:
        return None
    session, user = found
    _note_visit(db, session)
    team, role = _team_in_view(db, session)
    return Caller(
        team_id=team.id if team else "",
        team_name=team.name if team else "",
        role=role,
        user_id=user.id,
        email=user.email,
        must_change_password=user.must_change_password,
        operator=user.operator,
    )


def end(db: Session, secret: str) -> None:
    """End one session."""
    db.exec(delete(BrowserSession).where(col(BrowserSession.id_hash) == digest(secret)))


def look_at(db: Session, secret: str, team_id: str) -> None:
    """Switch the session to another team of the person. Raises NotFound for a foreign one."""
    session = db.get(BrowserSession, digest(secret))
    if session is None or db.get(Membership, (team_id, session.user_id)) is None:
        raise NotFound("team", team_id)
    session.team_id = team_id
    db.add(session)


def change_password(db: Session, user_id: str, old: str, new: str) -> None:
    """Replace a password, which ends every session. Raises Refused naming `old` or `password`."""
    user = db.get_one(User, user_id)
    if not passwords.matches(user.password_hash, old):
        raise Refused("This is not your present password.", param="old")
    if old == new:
        raise Refused("The new password is the old one. Choose another.", param="password")
    set_password(db, user, passwords.acceptable(new, user.email))


def _first_team(db: Session, user_id: str) -> str | None:
    mine = select(Membership.team_id).where(Membership.user_id == user_id)
    return db.exec(mine.order_by(col(Membership.created_at))).first()


def _team_in_view(db: Session, session: BrowserSession) -> tuple[Team | None, Role | None]:
    member = db.get(Membership, (session.team_id, session.user_id)) if session.team_id else None
    if member is None:
        # The person has left that team, or has joined a first one since.
        session.team_id = _first_team(db, session.user_id)
        db.add(session)
        member = db.get(Membership, (session.team_id, session.user_id)) if session.team_id else None
    return (db.get_one(Team, member.team_id), member.role) if member else (None, None)


def _note_visit(db: Session, session: BrowserSession) -> None:
    moment = now()
    if session.seen_at < moment - MINUTE:
        mine = col(BrowserSession.id_hash) == session.id_hash
        db.exec(update(BrowserSession).where(mine).values(seen_at=moment))
