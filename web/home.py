"""Where people and machines knock first."""

from flask import Blueprint, Response, g, jsonify, redirect, url_for
from sqlalchemy import text
from werkzeug.wrappers import Response as Answer

from shared.db import transaction

pages = Blueprint("home", __name__)


@pages.get("/")
def start() -> Answer:
    """To the jobs, or to the door."""
    return redirect(url_for("jobs.index" if g.caller else "accounts.sign_in"))


@pages.get("/health")
def health() -> Response:
    """200 where the database answers; what a proxy or container asks."""
    with transaction() as db:
        db.connection().execute(text("SELECT 1"))
    return jsonify(status="ok")
