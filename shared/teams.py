"""People, teams and roles, and the API tokens that act for a team.

A team always keeps an owner. A token never does more than the person who made it may do today,
and dies with that person's membership; one made on the command line stands on its own.
"""

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import Session, col, select

from shared import orders, passwords
from shared.columns import now
from shared.errors import NotFound, Refused
from shared.tables import ApiToken, BrowserSession, Membership, Role, Team, User

RANK = {Role.VIEWER: 0, Role.MEMBER: 1, Role.OWNER: 2}
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}")
BASE62 = string.digits + string.ascii_letters
TOKEN_PREFIX = "burnish_"  # noqa: S105 - what every token begins with, so that scanners find lost ones
TOKEN_SHAPE = re.compile(f"{TOKEN_PREFIX}[0-9A-Za-z]{{36}}")
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """Who asks, for which team, with which role. A person without a team has neither."""

    team_id: str
    role: Role | None
    user_id: str | None = None
    token_id: str | None = None
    team_name: str = ""
    email: str = ""
    must_change_password: bool = False
    operator: bool = False  # sees to workers and caps, which all teams share

    @property
    def actor(self) -> str:
        """The name in timelines: a user id or a token id."""
        return self.user_id or self.token_id or ""

    def may(self, role: Role | str) -> bool:
        """Whether the caller's role is at least this one."""
        return self.role is not None and RANK[self.role] >= RANK[Role(role)]


def add_user(
    db: Session, email: str, team_name: str, role: Role | str = Role.OWNER, *, operator: bool = False
) -> tuple[User, str]:
    """The person with that role in that team, and a fresh one-time password. The first one is an operator.

    Makes what is missing. Repeated for a known person it ends every session of theirs.
    """
    email, role = address(email), Role(role)
    one_time = passwords.one_time()
    user = db.exec(select(User).where(User.email == email)).first()
    if user is None:
        first = db.exec(select(User.id).limit(1)).first() is None
        user = User(email=email, password_hash="", operator=first)
        db.add(user)
    user.operator = user.operator or operator
    set_password(db, user, one_time, one_time=True)
    team = db.exec(select(Team).where(Team.name == team_name.strip())).first() or create_team(db, team_name)
    if db.get(Membership, (team.id, user.id)):
        set_role(db, team.id, user.id, role)
    else:
        join(db, team.id, user.id, role)
    return user, one_time


def address(email: str) -> str:
    """The e-mail address in lower case. Raises Refused where it is none."""
    email = email.strip().lower()
    if not EMAIL.fullmatch(email):
        raise Refused(f"«{email}» is not an e-mail address.", param="email")
    return email


def set_password(db: Session, user: User, password: str, *, one_time: bool = False) -> None:
    """Store a password and end every session of that person."""
    user.password_hash = passwords.hashed(password)
    user.must_change_password = one_time
    db.flush()
    for session in db.exec(select(BrowserSession).where(BrowserSession.user_id == user.id)):
        db.delete(session)
    db.flush()


def create_team(db: Session, name: str, owner_id: str | None = None) -> Team:
    """A new team, with its owner where one is given. Raises Refused where the name is taken."""
    name = " ".join(name.split())
    if not 1 <= len(name) <= 60 or not name.isprintable():
        raise Refused("A team's name has 1 to 60 characters.", param="name")
    if db.exec(select(Team.id).where(Team.name == name)).first():
        raise Refused(f"There is a team «{name}» already. Choose another name.", param="name", code="taken")
    team = Team(name=name)
    db.add(team)
    db.flush()
    if owner_id is not None:
        join(db, team.id, owner_id, Role.OWNER)
    return team


def limit_runs(db: Session, team_id: str, seconds: int | None) -> None:
    """How long the team's jobs may run that say nothing themselves; None: for ever. Raises Refused."""
    orders.require_run_time(seconds)
    db.get_one(Team, team_id).max_run_seconds = seconds
    db.flush()


def join(db: Session, team_id: str, user_id: str, role: Role) -> Membership:
    """Make a person a member of a team. Someone who is one already never loses rights by it."""
    member = db.get(Membership, (team_id, user_id))
    if member is None:
        member = Membership(team_id=team_id, user_id=user_id, role=role)
    elif RANK[role] > RANK[member.role]:
        member.role = role
    db.add(member)
    db.flush()
    return member


def teams_of(db: Session, user_id: str) -> list[tuple[Team, Role]]:
    """The teams of a person by name, and the role in each."""
    rows = db.exec(
        select(Team, Membership.role)
        .join(Membership, col(Membership.team_id) == Team.id)
        .where(Membership.user_id == user_id)
        .order_by(Team.name)
    )
    return [(team, Role(role)) for team, role in rows]


def members(db: Session, team_id: str) -> list[tuple[User, Membership]]:
    """The people of a team by address."""
    rows = db.exec(
        select(User, Membership)
        .join(Membership, col(Membership.user_id) == User.id)
        .where(Membership.team_id == team_id)
        .order_by(User.email)
    )
    return [(user, member) for user, member in rows]


def set_role(db: Session, team_id: str, user_id: str, role: Role | str) -> None:
    """Give a member another role. Raises Refused for the last owner, NotFound for a stranger."""
    member = _member(db, team_id, user_id)
    if Role(role) is not Role.OWNER:
        _spare_the_last_owner(db, member)
    member.role = Role(role)
    db.add(member)
    db.flush()


def remove(db: Session, team_id: str, user_id: str) -> None:
    """End a membership; the person's tokens for the team die with it. Raises as `set_role`."""
    member = _member(db, team_id, user_id)
    _spare_the_last_owner(db, member)
    db.delete(member)
    db.flush()


def _member(db: Session, team_id: str, user_id: str) -> Membership:
    member = db.get(Membership, (team_id, user_id))
    if member is None:
        raise NotFound("member", user_id)
    return member


def _spare_the_last_owner(db: Session, member: Membership) -> None:
    # The locks make two owners who remove each other at once take turns.
    owners = db.exec(
        select(Membership.user_id)
        .where(Membership.team_id == member.team_id, Membership.role == Role.OWNER)
        .order_by(Membership.user_id)
        .with_for_update()
    ).all()
    if list(owners) == [member.user_id]:
        raise Refused(
            "This is the team's last owner. Make somebody else an owner first.",
            param="role",
            code="last_owner",
            status=409,
        )


def create_token(
    db: Session,
    team: Team | str,
    name: str = "",
    role: Role | str = Role.OWNER,
    created_by: str | None = None,
    expires_at: datetime | None = None,
    *,
    operator: bool = False,
) -> tuple[ApiToken, str]:
    """A new token of a team (row or id) and its secret, which is shown this once."""
    secret = _with_checksum(TOKEN_PREFIX + "".join(secrets.choice(BASE62) for _ in range(30)))
    row = ApiToken(
        team_id=team if isinstance(team, str) else team.id,
        name=name.strip()[:80],
        role=Role(role),
        operator=operator,
        token_hash=digest(secret),
        shown=secret[: len(TOKEN_PREFIX) + 4],
        created_by=created_by,
        expires_at=expires_at,
    )
    db.add(row)
    db.flush()
    return row, secret


def token(db: Session, secret: str) -> Caller | None:
    """The caller that a token stands for; None where it is unknown, ended or its maker has left. It is an
    operator's if it was made so, for as long as its maker is one.
    """
    if not well_formed(secret):
        return None
    row = db.exec(select(ApiToken).where(ApiToken.token_hash == digest(secret))).first()
    if row is None or row.revoked_at or (row.expires_at and row.expires_at <= now()):
        return None
    role, operator = row.role, row.operator
    if row.created_by is not None:
        maker = db.get(Membership, (row.team_id, row.created_by))
        if maker is None:
            return None
        role = min(row.role, maker.role, key=RANK.__getitem__)
        operator = row.operator and db.get_one(User, row.created_by).operator
    _note_use(db, row)
    return Caller(team_id=row.team_id, role=role, token_id=row.id, operator=operator)


def tokens(db: Session, team_id: str) -> list[ApiToken]:
    """The tokens of a team that are not revoked, newest first."""
    alive = select(ApiToken).where(ApiToken.team_id == team_id, col(ApiToken.revoked_at).is_(None))
    return list(db.exec(alive.order_by(col(ApiToken.id).desc())))


def revoke_token(db: Session, team_id: str, token_id: str) -> ApiToken:
    """End a token now. Raises NotFound where the team has no such token."""
    row = db.exec(select(ApiToken).where(ApiToken.team_id == team_id, ApiToken.id == token_id)).first()
    if row is None:
        raise NotFound("token", token_id)
    row.revoked_at = row.revoked_at or now()
    db.add(row)
    db.flush()
    return row


def well_formed(secret: str) -> bool:
    """Whether a token has the right shape and checksum: a typing error never reaches the database."""
    return bool(TOKEN_SHAPE.fullmatch(secret)) and _with_checksum(secret[:-6]) == secret


def digest(secret: str) -> str:
    """What is stored of a random secret. It has over 170 random bits, so that SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _with_checksum(body: str) -> str:
    number, letters = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, rest = divmod(number, 62)
        letters = BASE62[rest] + letters
    return body + letters


def _note_use(db: Session, row: ApiToken) -> None:
    moment = now()
    if row.last_used_at is None or row.last_used_at < moment - MINUTE:
        db.exec(update(ApiToken).where(col(ApiToken.id) == row.id).values(last_used_at=moment))
