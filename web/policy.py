"""Who may call which route: one table, deny by default.

Every endpoint has a line in POLICY; a route without one is refused. Add a route, add its line.
Roles: `public` (anybody), `signed_in` (anybody with an account or token), then viewer, member, owner
of the team that the caller acts for; `operator`: the people who see to what all teams share. Routes under /v1 take a bearer token, all others the cookie of
a session, never the other way round.
"""

import logging
from dataclasses import dataclass
from urllib.parse import quote

from flask import Flask, abort, current_app, g, redirect, request, session, url_for
from werkzeug.wrappers import Response

from shared import sessions, teams
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Role
from shared.teams import Caller

log = logging.getLogger(__name__)
API = "/v1/"
SESSION_KEY = "id"  # of the session's secret in the signed cookie


@dataclass(frozen=True)
class Rule:
    """The least role that a route asks for. `recognise`: a public page that greets who is signed in."""

    role: str
    recognise: bool = False
    while_changing_password: bool = False


PUBLIC = Rule("public")
GREETING = Rule("public", recognise=True)
SIGNED_IN = Rule("signed_in")
VIEWER, MEMBER, OWNER = Rule(Role.VIEWER), Rule(Role.MEMBER), Rule(Role.OWNER)
OPERATOR = Rule("operator")

POLICY: dict[str, Rule] = {
    "assets.file": PUBLIC,
    "home.health": PUBLIC,
    "home.start": GREETING,
    # accounts
    "accounts.sign_in": GREETING,
    "accounts.enter": PUBLIC,
    "accounts.sign_out": Rule("signed_in", while_changing_password=True),
    "accounts.password": Rule("signed_in", while_changing_password=True),
    "accounts.change_password": Rule("signed_in", while_changing_password=True),
    "accounts.invitation": GREETING,
    "accounts.join": GREETING,
    "accounts.forgotten": PUBLIC,
    "accounts.send_reset": PUBLIC,
    "accounts.reset": PUBLIC,
    "accounts.choose_password": PUBLIC,
    # teams
    "team.index": SIGNED_IN,
    "team.new": SIGNED_IN,
    "team.create": SIGNED_IN,
    "team.switch": SIGNED_IN,
    "team.leave": VIEWER,
    "team.limit_runs": OWNER,
    "team.keep_checkpoints": OWNER,
    "team.invite": OWNER,
    "team.withdraw": OWNER,
    "team.set_role": OWNER,
    "team.remove": OWNER,
    "team.reset_link": OWNER,
    "team.create_token": OWNER,
    "team.revoke_token": OWNER,
    "notifications.index": VIEWER,
    "notifications.choose_mail": VIEWER,
    "notifications.create": OWNER,
    "notifications.show": OWNER,
    "notifications.update": OWNER,
    "notifications.toggle": OWNER,
    "notifications.rotate": OWNER,
    "notifications.try_out": OWNER,
    "notifications.again": OWNER,
    "notifications.delete": OWNER,
    # the API under /v1
    "api_files.create": MEMBER,
    "api_files.index": VIEWER,
    "api_files.retrieve": VIEWER,
    "api_files.content": VIEWER,
    "api_files.delete": OWNER,
    "api_jobs.create": MEMBER,
    "api_jobs.index": VIEWER,
    "api_jobs.retrieve": VIEWER,
    "api_jobs.cancel": MEMBER,
    "api_jobs.stop_early": MEMBER,
    "api_jobs.prioritise": MEMBER,
    "api_jobs.retry": MEMBER,
    "api_jobs.pause": MEMBER,
    "api_jobs.resume": MEMBER,
    "api_events.index": VIEWER,
    "api_checkpoints.index": VIEWER,
    "api_checkpoints.files": VIEWER,
    "api_checkpoints.pin": MEMBER,
    "api_checkpoints.unpin": MEMBER,
    "api_models.create": MEMBER,
    "api_models.index": VIEWER,
    "api_models.retrieve": VIEWER,
    "api_models.delete": OWNER,
    "api_batches.create": MEMBER,
    "api_batches.index": VIEWER,
    "api_batches.retrieve": VIEWER,
    "api_batches.cancel": MEMBER,
    "api_evaluations.create": MEMBER,
    "api_evaluations.index": VIEWER,
    "api_evaluations.retrieve": VIEWER,
    "api_evaluations.cancel": MEMBER,
    "api_schedules.create": MEMBER,
    "api_schedules.index": VIEWER,
    "api_schedules.retrieve": VIEWER,
    "api_schedules.update": MEMBER,
    "api_schedules.delete": OWNER,
    "api_schedules.runs": VIEWER,
    "api_webhooks.create": OWNER,
    "api_webhooks.index": OWNER,
    "api_webhooks.retrieve": OWNER,
    "api_webhooks.update": OWNER,
    "api_webhooks.delete": OWNER,
    "api_webhooks.rotate": OWNER,
    "api_webhooks.try_out": OWNER,
    "api_webhooks.deliveries": OWNER,
    "api_webhooks.again": OWNER,
    "api_queue.index": VIEWER,
    "api_queue.put": OPERATOR,
    "api_queue.workers_alive": VIEWER,
    "api_queue.drain": OPERATOR,
    "api_queue.undrain": OPERATOR,
    "docs.show": GREETING,
    "docs.openapi": PUBLIC,
    # pages
    "jobs.index": VIEWER,
    "jobs.cancel": MEMBER,
    "jobs.stop": MEMBER,
    "jobs.prioritise": MEMBER,
    "jobs.pause": MEMBER,
    "jobs.resume": MEMBER,
    "jobs.retry": MEMBER,
    "jobs.mend": MEMBER,
    "jobs.delete": OWNER,
    "job_page.show": VIEWER,
    "job_page.series": VIEWER,
    "job_page.medium": VIEWER,
    "stream.follow": VIEWER,
    "new_job.form": MEMBER,
    "new_job.submit": MEMBER,
    "batches.form": MEMBER,
    "batches.submit": MEMBER,
    "evaluations.form": MEMBER,
    "evaluations.submit": MEMBER,
    "compare.show": VIEWER,
    "datasets.index": VIEWER,
    "datasets.upload": MEMBER,
    "datasets.sample": MEMBER,
    "datasets.show": VIEWER,
    "datasets.medium": VIEWER,
    "datasets.delete": OWNER,
    "models.index": VIEWER,
    "models.upload": MEMBER,
    "models.from_hub": MEMBER,
    "models.show": VIEWER,
    "models.fetch": MEMBER,
    "models.delete": OWNER,
    "schedules.index": VIEWER,
    "schedules.form": MEMBER,
    "schedules.create": MEMBER,
    "schedules.show": VIEWER,
    "schedules.toggle": MEMBER,
    "schedules.delete": OWNER,
    "queue.index": VIEWER,
    "queue.drain": OPERATOR,
    "queue.undrain": OPERATOR,
    "queue.cap": OPERATOR,
    "checkpoints.pin": MEMBER,
    "checkpoints.unpin": MEMBER,
    "downloads.open_link": PUBLIC,  # the link is signed
    "downloads.checkpoint": VIEWER,
    "downloads.checkpoint_file": VIEWER,
    "downloads.merge": MEMBER,
    "downloads.gguf": MEMBER,
    "downloads.artifact": VIEWER,
    "downloads.everything": VIEWER,
    "downloads.uploaded": VIEWER,
}


def guard(app: Flask) -> None:
    """Put the table in front of every route of the app."""
    app.before_request(check)


def check() -> Response | None:
    """Answer a request that the table does not let through; else note who calls in `g.caller`."""
    g.caller = None
    if request.endpoint is None:
        return None  # Flask itself answers what is no route
    rule = POLICY.get(request.endpoint)
    if rule is None:
        return unruled(request.endpoint)
    if rule.role != "public" or rule.recognise:
        g.caller = by_token() if api_call() else by_session()
    if rule.role == "public":
        return None
    if g.caller is None:
        return stranger()
    if g.caller.must_change_password and not rule.while_changing_password:
        return redirect(url_for("accounts.password"), 303)
    if rule.role == "operator" and not g.caller.operator:
        raise Refused(
            "This is an operator's: workers and caps are every team's.", code="role_too_low", status=403
        )
    return None if rule.role in ("signed_in", "operator") else within_team(g.caller, Role(rule.role))


def require(role: Role | str) -> Caller:
    """The caller, where a part of a route asks for more than the route. Raises Refused (403)."""
    if not g.caller.may(role):
        raise Refused(f"This needs the role «{Role(role)}» in the team.", code="role_too_low", status=403)
    return g.caller


def api_call() -> bool:
    """Whether the request is for the API: JSON, bearer token, no cookies."""
    return request.path.startswith(API)


def by_token() -> Caller:
    """The caller that the bearer token stands for. Raises Refused (401)."""
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise Refused(
            "You didn't provide an API key. Send a token of your team as «Authorization: Bearer TOKEN».",
            code="invalid_api_key",
            status=401,
        )
    with transaction() as db:
        caller = teams.token(db, secret.strip())
    if caller is None:
        raise Refused(
            f"Incorrect API key provided: {masked(secret.strip())}. Make one on the Team page or with "
            "`burnish token create`.",
            code="invalid_api_key",
            status=401,
        )
    return caller


def by_session() -> Caller | None:
    """Who is signed in with this browser, if anybody."""
    secret = session.get(SESSION_KEY)
    if not secret:
        return None
    with transaction() as db:
        return sessions.caller(db, secret)


def stranger() -> Response:
    """A page asks to sign in first; what a script in a page calls gets a 401."""
    if request.method in ("GET", "HEAD") and "HX-Request" not in request.headers:
        back = request.full_path.rstrip("?")
        return redirect(f"{url_for('accounts.sign_in')}?next={quote(back)}", 302)
    raise Refused("You are signed out. Sign in, then try again.", code="signed_out", status=401)


def within_team(caller: Caller, role: Role) -> Response | None:
    """Refuse (403) a role that is too low; send a person without a team to make one."""
    if caller.role is None:
        return redirect(url_for("team.index"), 303)
    require(role)
    return None


def unruled(endpoint: str) -> Response:
    """A route that somebody forgot to rule on: an error in tests, no such page in production."""
    if current_app.testing:
        raise LookupError(f"No rule for «{endpoint}» in web/policy.py.")
    log.error("no rule for endpoint %s: refused", endpoint)
    abort(404)


def masked(secret: str) -> str:
    """Enough of a wrong token to recognise it, never all of it."""
    return f"{secret[:10]}…{secret[-2:]}" if len(secret) > 16 else "…"
