"""Callers of the web in this process: a browser without a screen, and a program with a token."""

import io
import re
from functools import cache
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from shared import sessions
from shared.db import transaction
from shared.settings import settings
from shared.tables import User
from web import create_app
from web.accounts import limiter
from web.policy import SESSION_KEY

LABELLED = [{"text": f"row {n}", "label": "yes" if n % 2 else "no"} for n in range(12)]
TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


@cache
def made(_: str) -> Flask:
    """The web over those settings."""
    return create_app(testing=True)


def the_web() -> Flask:
    """The web over the settings of now, made once for the same ones; nobody has tried a password lately."""
    app = made(settings().model_dump_json())
    limiter.reset()
    return app


class Visitor:
    """Somebody with a browser; signed in where a user is given."""

    def __init__(self, app: Flask, user: User | None = None) -> None:
        self.client: FlaskClient = app.test_client()
        if user is not None:
            with transaction() as db:
                secret = sessions.begin(db, user.id)
            with self.client.session_transaction() as cookie:
                cookie[SESSION_KEY] = secret

    def get(self, path: str, **more: Any) -> TestResponse:
        """Load a page."""
        return self.client.get(path, **more)

    def token(self, page: str = "/password") -> str:
        """The token of the first form on a page."""
        found = TOKEN.search(self.get(page).text) or TOKEN.search(self.get("/sign-in").text)
        assert found, f"no form on {page}"
        return found[1]

    def post(self, path: str, page: str = "/password", **fields: Any) -> TestResponse:
        """Send a form, with the token of a page that has one."""
        return self.client.post(path, data={"csrf_token": self.token(page)} | fields)

    def sign_in(self, email: str, password: str, **more: Any) -> TestResponse:
        """Through the door."""
        return self.post("/sign-in", "/sign-in", email=email, password=password, **more)


def cookies(user: User) -> dict[str, str]:
    """What the browser keeps in which somebody is signed in."""
    cookie = Visitor(the_web(), user).client.get_cookie("burnish")
    assert cookie is not None
    return {"burnish": cookie.value}


class Api:
    """A team's client of the API in this process."""

    def __init__(self, app, token):
        self.client = app.test_client()
        self.headers = {"Authorization": f"Bearer {token}"}

    def ask(self, method, path, status=200, headers=None, **more):
        answer = self.client.open("/v1" + path, method=method, headers=self.headers | (headers or {}), **more)
        assert answer.status_code == status, answer.text
        return answer

    def get(self, path, status=200, **more):
        return self.ask("GET", path, status, **more).json

    def post(self, path, status=200, **more):
        return self.ask("POST", path, status, **more).json

    def upload(self, data, name="rows.jsonl", purpose="fine-tune", status=200, **fields):
        form = {"purpose": purpose, "file": (io.BytesIO(data), name)} | fields
        return self.post("/files", status, data=form)


def error_of(answer):
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return answer["error"]
