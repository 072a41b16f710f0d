"""Who hears of the team's jobs: webhooks with what they have heard, and each person's e-mails."""

from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, flash, g, redirect, render_template, request
from sqlmodel import Session, col
from sqlmodel.sql.expression import SelectOfScalar
from werkzeug.wrappers import Response

from shared import mail, notices, outbox, webhooks
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Delivery, Kind, MailScope, Membership, Occasion, Role

pages = Blueprint("notifications", __name__)

SHOWN = 50  # deliveries on a webhook's page
OCCASIONS = {
    Occasion.STARTED.value: "starts",
    Occasion.SUCCEEDED.value: "succeeds",
    Occasion.FAILED.value: "fails",
    Occasion.CANCELLED.value: "is cancelled",
}
KINDS = {
    Kind.TRAIN.value: "trainings",
    Kind.EVALUATE.value: "evaluations",
    Kind.INFER.value: "inference",
    Kind.EXPORT.value: "exports",
    Kind.IMPORT.value: "imports",
}
SCOPES = {
    MailScope.NOTHING.value: "no job",
    MailScope.MINE.value: "the jobs that I start",
    MailScope.TEAM.value: "every job of the team",
}


@pages.get("/team/notifications")
def index() -> str:
    """One's own e-mails; for owners the team's webhooks."""
    return index_page()


@pages.post("/team/notifications/mail")
def choose_mail() -> str | tuple[str, int] | Response:
    """Of which jobs one hears by e-mail."""
    form = request.form
    try:
        with transaction() as db:
            notices.choose(
                db, g.caller.team_id, g.caller.user_id, form.get("scope", ""), form.getlist("occasions")
            )
    except Refused as refused:
        return index_page(wrong={f"mail_{refused.param}": refused.message}), 422
    flash("Your choice is kept.", "good")
    return redirect("/team/notifications", 303)


@pages.post("/team/webhooks")
def create() -> str | tuple[str, int]:
    """Make a webhook and show its secret, this once."""
    try:
        with transaction() as db:
            webhook, secret = webhooks.create(
                db, team_id=g.caller.team_id, created_by=g.caller.user_id, **asked()
            )
    except Refused as refused:
        return index_page(typed=asked(), wrong={refused.param or "url": refused.message}), 422
    return show_page(webhook.id, secret=secret)


@pages.get("/team/webhooks/<webhook_id>")
def show(webhook_id: str) -> str:
    """One webhook: what it hears of, and what it has heard."""
    return show_page(webhook_id)


@pages.post("/team/webhooks/<webhook_id>")
def update(webhook_id: str) -> str | tuple[str, int] | Response:
    """Change where it is and what it hears of."""
    try:
        with transaction() as db:
            webhooks.update(db, webhooks.locked(db, g.caller.team_id, webhook_id), **asked())
    except Refused as refused:
        if refused.status == 404:
            raise
        return show_page(webhook_id, typed=asked(), wrong={refused.param or "url": refused.message}), 422
    return back(webhook_id, "The webhook has changed.")


@pages.post("/team/webhooks/<webhook_id>/toggle")
def toggle(webhook_id: str) -> Response:
    """On or off."""
    with transaction() as db:
        webhook = webhooks.locked(db, g.caller.team_id, webhook_id)
        (outbox.switch_off if webhook.active else webhooks.switch_on)(db, webhook)
    said = (
        "It hears of what happens from now on." if webhook.active else "It hears of nothing while it is off."
    )
    return back(webhook_id, said)


@pages.post("/team/webhooks/<webhook_id>/secret")
def rotate(webhook_id: str) -> str:
    """Make another secret and show it, this once."""
    with transaction() as db:
        secret = webhooks.rotate(db, webhooks.locked(db, g.caller.team_id, webhook_id))
    return show_page(webhook_id, secret=secret, rotated=True)


@pages.post("/team/webhooks/<webhook_id>/test")
def try_out(webhook_id: str) -> Response:
    """Send a message that tells of nothing."""
    with transaction() as db:
        outbox.try_out(db, webhooks.locked(db, g.caller.team_id, webhook_id))
    return back(webhook_id, "A test is on its way; what comes of it stands in the log within seconds.")


@pages.post("/team/webhooks/<webhook_id>/delete")
def delete(webhook_id: str) -> Response:
    """Take it away with its log."""
    with transaction() as db:
        webhooks.delete(db, webhooks.locked(db, g.caller.team_id, webhook_id))
    flash("The webhook is deleted.", "good")
    return redirect("/team/notifications", 303)


@pages.post("/team/deliveries/<delivery_id>/again")
def again(delivery_id: str) -> Response:
    """Deliver a message again."""
    with transaction() as db:
        delivery = outbox.again(db, g.caller.team_id, delivery_id)
    return back(delivery.webhook_id or "", "It is delivered again, with the same id.")


# --- details ----------------------------------------------------------------------------------------


def asked() -> dict[str, Any]:
    """The form's webhook."""
    form = request.form
    return {
        "url": form.get("url", "").strip(),
        "occasions": form.getlist("occasions"),
        "kinds": form.getlist("kinds"),
    }


def blank() -> dict[str, Any]:
    """The form before anything is typed."""
    return {"url": "", "occasions": list(OCCASIONS), "kinds": [k.value for k in webhooks.USUAL_KINDS]}


def index_page(*, typed: dict[str, Any] | None = None, wrong: dict | None = None) -> str:
    """The page, with what was typed and what is wrong with it."""
    owner = g.caller.may(Role.OWNER)
    with transaction() as db:
        found = webhooks.all_for(db, g.caller.team_id) if owner else []
        return render_template(
            "notifications/index.html",
            lines=[(webhook, newest(db, outbox.log(webhook))) for webhook in found],
            member=db.get_one(Membership, (g.caller.team_id, g.caller.user_id)),
            owner=owner,
            by_mail=mail.possible(),
            last_mail=newest(db, outbox.mails(g.caller.team_id, g.caller.user_id)),
            typed=typed or blank(),
            wrong=wrong or {},
            **words(),
        )


def show_page(
    webhook_id: str,
    *,
    typed: dict[str, Any] | None = None,
    wrong: dict | None = None,
    secret: str = "",
    rotated: bool = False,
) -> str:
    """A webhook's page; `secret` is shown only now."""
    with transaction() as db:
        webhook = webhooks.get(db, g.caller.team_id, webhook_id)
        shown = outbox.log(webhook).order_by(col(Delivery.id).desc()).limit(SHOWN)
        return render_template(
            "notifications/webhook.html",
            webhook=webhook,
            host=urlsplit(webhook.url).netloc,
            deliveries=list(db.exec(shown)),
            tries=outbox.TRIES,
            typed=typed or webhook,
            wrong=wrong or {},
            secret=secret,
            rotated=rotated,
            **words(),
        )


def newest(db: Session, deliveries: SelectOfScalar[Delivery]) -> Delivery | None:
    """The newest of these."""
    return db.exec(deliveries.order_by(col(Delivery.id).desc()).limit(1)).first()


def words() -> dict[str, Any]:
    """What the templates call things."""
    return {"occasions": OCCASIONS, "kinds": KINDS, "scopes": SCOPES}


def back(webhook_id: str, sentence: str) -> Response:
    """To the webhook's page, with what has happened."""
    flash(sentence, "good")
    return redirect(f"/team/webhooks/{webhook_id}", 303)
