"""Where people and machines knock first."""

from flask import Blueprint, Response, current_app, g, jsonify, redirect, url_for
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.wrappers import Response as Answer

from shared.db import transaction

pages = Blueprint("home", __name__)


@pages.get("/")
def start() -> Answer:
    """To the jobs, or to the door."""
    return redirect(url_for("jobs.index" if g.caller else "accounts.sign_in"))


@pages.get("/health")
def health() -> Response:
    """200 where the database answers, else 503 with the reason; what a proxy or container asks."""
    try:
        if current_app.extensions["pulse"].silent:
            return unwell("The database accepts connections and does not answer.")
        with transaction() as db:
            db.connection().execute(text("SELECT 1"))
    except (OperationalError, PoolTimeout):
        return unwell("The database is away.")
    return jsonify(status="ok")


def unwell(reason: str) -> Response:
    """What is wrong."""
    response = jsonify(status="unavailable", reason=reason)
    response.status_code = 503
    return response
