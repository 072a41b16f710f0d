"""Signing in and out, answering an invitation, resetting and changing a password."""

from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Response,
    current_app,
    flash,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from werkzeug.wrappers import Response as Answer

from shared import links, mail, passwords, sessions
from shared.db import transaction
from shared.errors import Refused
from shared.settings import settings
from shared.tables import LinkKind, Team, User
from web.policy import SESSION_KEY

pages = Blueprint("accounts", __name__)
# In this process: a restart forgets, and several processes each count for themselves.
limiter = Limiter(get_remote_address, storage_uri="memory://", strategy="moving-window")
WRONG = "This address and password do not belong together."
SENT = "If that address has an account, a link is on its way. It is good for 30 minutes."
BY_HAND = "Ask an owner of your team for a reset link: the Team page makes one."


def person_and_place() -> str:
    """Whose password is tried, and from where: strangers cannot lock a person out."""
    return f"{request.form.get('email', '').strip().lower()} {get_remote_address()}"


def did_not_work(response: Response) -> bool:
    """Only failures count against the limits."""
    return response.status_code == 422


@pages.get("/sign-in")
def sign_in() -> str | Answer:
    """The door. Whoever is in already goes on."""
    if g.caller:
        return redirect(wanted_page())
    return render_template("accounts/sign_in.html", email="", error="")


@pages.post("/sign-in")
@limiter.limit("10 per 5 minutes", key_func=person_and_place, deduct_when=did_not_work)
@limiter.limit("60 per 5 minutes", deduct_when=did_not_work)
def enter() -> Answer | tuple[str, int]:
    """Open a session; an unknown address gets the same answer after the same time."""
    email, password = request.form.get("email", ""), request.form.get("password", "")
    with transaction() as db:
        user = sessions.sign_in(db, email, password)
        if user is None:
            return render_template("accounts/sign_in.html", email=email, error=WRONG), 422
        start_session(sessions.begin(db, user.id, request.user_agent.string))
    return redirect(url_for("accounts.password") if user.must_change_password else wanted_page(), 303)


@pages.post("/sign-out")
def sign_out() -> Answer:
    """End this session."""
    with transaction() as db:
        sessions.end(db, session[SESSION_KEY])
    session.clear()
    return redirect(url_for("accounts.sign_in"), 303)


@pages.get("/join/<token>")
def invitation(token: str) -> str:
    """What the invitation is to, and the two ways to accept it."""
    with transaction() as db:
        link = links.opened(db, token, LinkKind.INVITATION)
        team = db.get_one(Team, link.team_id)
    return render_template(
        "accounts/join.html", link=link, team=team, token=token, email=link.email, wrong={}
    )


@pages.post("/join/<token>")
@limiter.limit("20 per 5 minutes", deduct_when=did_not_work)
def join(token: str) -> Answer | tuple[str, int]:
    """Join the team: as who is signed in, or with an address and a password, known or new."""
    form = request.form
    try:
        with transaction() as db:
            user = db.get_one(User, g.caller.user_id) if g.caller else None
            user = user or links.newcomer(db, token, form.get("email", ""), form.get("password", ""))
            link = links.accept(db, token, user)
            if g.caller:
                sessions.look_at(db, session[SESSION_KEY], link.team_id)
            else:
                start_session(sessions.begin(db, user.id, request.user_agent.string, link.team_id))
    except Refused as refused:
        if refused.param is None:
            raise
        return invited_again(token, refused), 422
    return redirect(url_for("home.start"), 303)


@pages.get("/reset")
def forgotten() -> str:
    """Ask for a reset link by e-mail, or read who can make one."""
    return render_template("accounts/forgotten.html", by_mail=mail.possible(), by_hand=BY_HAND)


@pages.post("/reset")
@limiter.limit("5 per hour", key_func=person_and_place)
@limiter.limit("20 per hour")
def send_reset() -> Answer:
    """Send the link where the address is known; say the same where it is not."""
    if not mail.possible():
        raise Refused(f"This server sends no e-mail. {BY_HAND}")
    with transaction() as db:
        found = links.reset_by_mail(db, request.form.get("email", ""))
    if found:
        address, secret = found
        link = public_link("accounts.reset", secret)
        mail.send(
            address,
            "Reset your Burnish password",
            f"Somebody, probably you, asked to reset the password of {address}.\n\n{link}\n\n"
            "The link is good once, for 30 minutes. If it was not you, nothing has changed.\n",
        )
    flash(SENT, "good")
    return redirect(url_for("accounts.sign_in"), 303)


@pages.get("/reset/<token>")
def reset(token: str) -> str:
    """Choose a new password."""
    with transaction() as db:
        link = links.opened(db, token, LinkKind.PASSWORD_RESET)
    return render_template("accounts/reset.html", token=token, email=link.email, wrong={})


@pages.post("/reset/<token>")
@limiter.limit("20 per 5 minutes", deduct_when=did_not_work)
def choose_password(token: str) -> Answer | tuple[str, int]:
    """Store it; every session of the person ends, so that signing in comes next."""
    try:
        with transaction() as db:
            links.reset(db, token, chosen_password())
    except Refused as refused:
        if refused.param is None:
            raise
        wrong = {refused.param: refused.message}
        return render_template("accounts/reset.html", token=token, email="", wrong=wrong), 422
    session.clear()
    flash("The new password counts from now on. Sign in with it.", "good")
    return redirect(url_for("accounts.sign_in"), 303)


@pages.get("/password")
def password() -> str:
    """Change one's own password; a one-time password leads nowhere else."""
    return render_template("accounts/password.html", forced=g.caller.must_change_password, wrong={})


@pages.post("/password")
@limiter.limit("10 per 5 minutes", deduct_when=did_not_work)
def change_password() -> Answer | tuple[str, int]:
    """Store the new password, end every session and open a fresh one here."""
    try:
        with transaction() as db:
            sessions.change_password(db, g.caller.user_id, request.form.get("old", ""), chosen_password())
            fresh = sessions.begin(db, g.caller.user_id, request.user_agent.string, g.caller.team_id or None)
    except Refused as refused:
        wrong = {refused.param: refused.message}
        forced = g.caller.must_change_password
        return render_template("accounts/password.html", forced=forced, wrong=wrong), 422
    start_session(fresh)
    flash("Your password has changed. Other browsers have been signed out.", "good")
    return redirect(url_for("home.start"), 303)


def start_session(secret: str) -> None:
    """Put a new session into the cookie; what the old cookie held, its form token too, is gone."""
    session.clear()
    session[SESSION_KEY] = secret
    session.permanent = True


def chosen_password() -> str:
    """The new password, typed twice. Raises Refused where the two differ."""
    new = request.form.get("password", "")
    if new != request.form.get("again", ""):
        raise Refused("The two passwords are not the same.", param="again")
    return passwords.acceptable(new)


def wanted_page() -> str:
    """The page that led to the door; only ever one of this server."""
    wanted = request.values.get("next", "")
    parts = urlsplit(wanted)
    here = (
        wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and not (parts.scheme or parts.netloc)
    )
    return wanted if here else url_for("home.start")


def invited_again(token: str, refused: Refused) -> str:
    """The invitation once more, with what was typed and the sentence beside its field."""
    with transaction() as db:
        link = links.opened(db, token, LinkKind.INVITATION)
        team = db.get_one(Team, link.team_id)
    return render_template(
        "accounts/join.html",
        link=link,
        team=team,
        token=token,
        email=request.form.get("email", link.email),
        wrong={refused.param: refused.message},
    )


def public_link(endpoint: str, token: str) -> str:
    """The address of a single-use link as people reach it."""
    with current_app.test_request_context():
        path = url_for(endpoint, token=token)
    return settings().public_url + path
