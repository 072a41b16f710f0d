"""The team's people, invitations and API tokens; making and switching teams."""

from datetime import timedelta

from flask import Blueprint, flash, g, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response

from shared import checkpoints, links, retention, sessions, teams
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Role, Team
from web import forms
from web.accounts import public_link
from web.policy import SESSION_KEY

pages = Blueprint("team", __name__)
LIFETIMES = (("1", "1 day"), ("7", "1 week"), ("30", "30 days"), ("365", "1 year"))


@pages.get("/team")
def index() -> str | Response:
    """Members, open invitations, tokens. Somebody without a team is asked to make one."""
    if not g.caller.team_id:
        return redirect(url_for("team.new"))
    return team_page()


@pages.get("/team/new")
def new() -> str:
    """The form for a team of one's own."""
    return render_template("team/new.html", name="", wrong={})


@pages.post("/team/new")
def create() -> Response | tuple[str, int]:
    """Make a team; whoever makes it owns it and looks at it."""
    name = request.form.get("name", "")
    try:
        with transaction() as db:
            team = teams.create_team(db, name, g.caller.user_id)
            sessions.look_at(db, session[SESSION_KEY], team.id)
    except Refused as refused:
        return render_template("team/new.html", name=name, wrong={refused.param: refused.message}), 422
    return redirect(url_for("home.start"), 303)


@pages.post("/team/switch")
def switch() -> Response:
    """Look at another team of one's own."""
    with transaction() as db:
        sessions.look_at(db, session[SESSION_KEY], request.form.get("team", ""))
    return redirect(url_for("home.start"), 303)


@pages.post("/team/leave")
def leave() -> Response:
    """Leave the team that is looked at."""
    with transaction() as db:
        teams.remove(db, g.caller.team_id, g.caller.user_id)
    flash(f"You have left {g.caller.team_name}.", "good")
    return redirect(url_for("home.start"), 303)


@pages.post("/team/run-time")
def limit_runs() -> str | tuple[str, int] | Response:
    """How long the team's jobs may run that say nothing themselves."""
    typed = request.form.get("hours", "").strip()
    try:
        seconds = forms.run_seconds(float(typed) if typed else None)
        with transaction() as db:
            teams.limit_runs(db, g.caller.team_id, seconds)
    except (ValueError, Refused) as wrong:
        told = wrong.message if isinstance(wrong, Refused) else f"«{typed}» is no number of hours."
        return team_page(wrong={"hours": told}), 422
    return back("New jobs may run that long." if seconds else "New jobs may run for as long as they take.")


@pages.post("/team/checkpoints")
def keep_checkpoints() -> str | tuple[str, int] | Response:
    """How many of the best checkpoints of each job are kept."""
    typed = request.form.get("keep_best", "").strip()
    try:
        with transaction() as db:
            retention.choose(db, g.caller.team_id, int(typed) if typed else None)
    except (ValueError, Refused) as wrong:
        told = wrong.message if isinstance(wrong, Refused) else f"«{typed}» is no whole number."
        return team_page(wrong={"keep_best": told}), 422
    return back("The rule is set.")


@pages.post("/team/invitations")
def invite() -> str | tuple[str, int]:
    """Make an invitation and show its link, this once."""
    form = request.form
    try:
        with transaction() as db:
            _, secret = links.invite(
                db,
                g.caller.team_id,
                chosen_role(form.get("role", "")),
                email=form.get("email", ""),
                created_by=g.caller.user_id,
                hours=24 * days(form.get("days", "7")),
            )
    except Refused as refused:
        return team_page(wrong={refused.param: refused.message}), 422
    return team_page(invitation=public_link("accounts.invitation", secret))


@pages.post("/team/invitations/<link_id>/withdraw")
def withdraw(link_id: str) -> Response:
    """End an invitation before it is used."""
    with transaction() as db:
        links.withdraw(db, g.caller.team_id, link_id)
    return back("The invitation has ended.")


@pages.post("/team/members/<user_id>/role")
def set_role(user_id: str) -> Response:
    """Give a member another role."""
    with transaction() as db:
        teams.set_role(db, g.caller.team_id, user_id, chosen_role(request.form.get("role", "")))
    return back("The role has changed.")


@pages.post("/team/members/<user_id>/remove")
def remove(user_id: str) -> Response:
    """End a membership."""
    with transaction() as db:
        teams.remove(db, g.caller.team_id, user_id)
    return back("The member has been removed; their tokens for this team have ended.")


@pages.post("/team/members/<user_id>/reset-link")
def reset_link(user_id: str) -> str:
    """Make a password reset link to hand over, and show it this once."""
    with transaction() as db:
        secret = links.reset_by_owner(db, g.caller.team_id, user_id, g.caller.user_id)
    return team_page(reset=public_link("accounts.reset", secret))


@pages.post("/team/tokens")
def create_token() -> str | tuple[str, int]:
    """Make an API token and show it, this once."""
    form = request.form
    try:
        until = now() + timedelta(days=days(form.get("days", "365")))
        with transaction() as db:
            _, secret = teams.create_token(
                db,
                g.caller.team_id,
                form.get("name", ""),
                chosen_role(form.get("role", "")),
                created_by=g.caller.user_id,
                expires_at=until,
                operator="operator" in form and g.caller.operator,
            )
    except Refused as refused:
        return team_page(wrong={f"token_{refused.param}": refused.message}), 422
    return team_page(token=secret)


@pages.post("/team/tokens/<token_id>/revoke")
def revoke_token(token_id: str) -> Response:
    """End a token now."""
    with transaction() as db:
        teams.revoke_token(db, g.caller.team_id, token_id)
    return back("The token has ended.")


def team_page(*, wrong: dict | None = None, invitation: str = "", reset: str = "", token: str = "") -> str:
    """The page, with what was just made and is shown only now."""
    owner = g.caller.may(Role.OWNER)
    with transaction() as db:
        return render_template(
            "team/index.html",
            members=teams.members(db, g.caller.team_id),
            invitations=links.invitations(db, g.caller.team_id) if owner else [],
            tokens=teams.tokens(db, g.caller.team_id) if owner else [],
            owner=owner,
            operator=g.caller.operator,
            team=(team := db.get_one(Team, g.caller.team_id)),
            keeping={"rule": retention.rule(team.keep_best), **checkpoints.stored_by(db, team.id)},
            roles=[(role.value, role.value) for role in Role],
            lifetimes=LIFETIMES,
            wrong=wrong or {},
            invitation=invitation,
            reset=reset,
            token=token,
        )


def back(sentence: str) -> Response:
    """To the page, with what has happened."""
    flash(sentence, "good")
    return redirect(url_for("team.index"), 303)


def chosen_role(value: str) -> Role:
    """The role of that name. Raises Refused."""
    try:
        return Role(value)
    except ValueError:
        raise Refused("Choose a role: viewer, member or owner.", param="role") from None


def days(value: str) -> int:
    """How long something is good for: one of the choices. Raises Refused."""
    if value not in dict(LIFETIMES):
        raise Refused("Choose how long it is good for.", param="days")
    return int(value)
