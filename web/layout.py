"""What stands around every page: the rail with the team, and how values read."""

import secrets

from flask import Blueprint, g
from sqlmodel import col, func, select

from shared.checkpoints import is_whole
from shared.db import transaction
from shared.recipe import recipes
from shared.tables import Job, Membership, Role, State, Team, User
from web.words import FILTERS

pages = Blueprint("layout", __name__)

for _name, _filter in FILTERS.items():
    pages.add_app_template_filter(_filter, _name)

PLACES = (  # blueprint, address, word, icon
    ("jobs", "/jobs", "Jobs", "jobs"),
    ("datasets", "/datasets", "Datasets", "datasets"),
    ("models", "/models", "Models", "models"),
    ("schedules", "/schedules", "Schedules", "schedules"),
    ("queue", "/queue", "Queue", "queue"),
    ("team", "/team", "Team", "team"),
)


@pages.app_context_processor
def around() -> dict:
    """`rail()` for the layout, `me` who looks, `works` whether they may change things."""
    me = g.get("caller")
    works = bool(me and me.role in (Role.MEMBER, Role.OWNER))
    return {"me": me, "works": works, "rail": rail, "places": PLACES}


def rail() -> dict:
    """The team, the person's other teams and how many jobs are under way; read when the layout asks."""
    caller = g.get("caller")
    if caller is None or not caller.team_id:
        return {}
    with transaction() as db:
        mine = (
            select(Team).join(Membership).where(col(Membership.user_id) == caller.user_id).order_by(Team.name)
        )
        person = db.get(User, caller.user_id) if caller.user_id else None
        under_way = select(func.count()).where(
            Job.team_id == caller.team_id,
            col(Job.state).in_([State.QUEUED, State.RUNNING]),
            col(Job.deleted_at).is_(None),
        )
        return {
            "team": db.get(Team, caller.team_id),
            "teams": list(db.exec(mine)),
            "email": person.email if person else "",
            "under_way": db.exec(under_way).one(),
        }


pages.add_app_template_test(is_whole, "whole")


@pages.app_template_global()
def nonce() -> str:
    """What a form carries so that it counts once, however often it is sent."""
    return secrets.token_urlsafe(16)


@pages.app_template_global()
def recipe_title(name: str | None) -> str:
    """A recipe's title, or its bare name where this release does not have it."""
    known = recipes().get(name or "")
    return known.title if known else (name or "–")
