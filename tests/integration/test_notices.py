"""E-mails about jobs, over a real SMTP server: who gets which, what they say, what happens when none takes them."""

import email
import email.policy
import socket
import ssl
import threading
import time
from contextlib import suppress
from datetime import timedelta
from email.message import EmailMessage
from types import SimpleNamespace

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from sqlalchemy import update
from sqlmodel import col, select

from shared import jobs, mail, notices, teams
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.settings import settings
from shared.stack import free_port, random_ports
from shared.stories import STORIES
from shared.tables import Delivery, Kind, Membership, Occasion, Role, Sent, State, User
from tests.certificates import certificate
from tests.factories import a_job, a_team, a_user
from tests.visitor import Visitor, the_web
from worker import postman


class Postbox:
    """What the server has taken. `refuses`: with which word it refuses the next messages."""

    def __init__(self) -> None:
        self.letters: list[tuple[str, EmailMessage]] = []
        self.refuses = ""

    async def handle_DATA(self, _server, _session, envelope) -> str:  # noqa: N802 - aiosmtpd calls it so
        if self.refuses:
            return self.refuses
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.letters += [(to, message) for to in envelope.rcpt_tos]
        return "250 taken"


def a_port() -> int:
    """A port for a server of a test."""
    return free_port(random_ports()["postgres"] + 5000)


@pytest.fixture
def postbox(stack, monkeypatch):
    box = Postbox()
    server = Controller(box, hostname="127.0.0.1", port=a_port())
    server.start()
    monkeypatch.setattr(settings(), "smtp_url", f"smtp://127.0.0.1:{server.port}")
    yield box
    server.stop()


@pytest.fixture
def house(clean, postbox):
    """A team of three: one wants to hear of everything, one of their own failures, one of nothing."""
    with transaction() as db:
        team = a_team(db, "Night Shift")
        everything, own, nothing = (
            a_user(db, team, email=f"{n}@example.com") for n in ("all", "own", "none")
        )
        notices.choose(db, team.id, everything.id, "team", list(Occasion))
        notices.choose(db, team.id, own.id, "mine", ["failed"])
        return SimpleNamespace(team=team, everything=everything, own=own, nothing=nothing)


def ended(house, state=State.FAILED, kind=Kind.INFER, **fields):
    with transaction() as db:
        job = a_job(db, house.team, kind, **({"name": "nightly"} | fields))
        jobs.end(db, job, state, "test", "diverged", "The loss is no number.")
        return job


def test_each_person_hears_of_what_they_chose(house, postbox):
    ended(house, created_by=house.own.id)
    ended(house, created_by=house.nothing.id)
    ended(house, State.SUCCEEDED, created_by=house.own.id)
    postman.deliver()
    got = sorted((to, message["Subject"]) for to, message in postbox.letters)
    failed, succeeded = "«nightly» has failed", "«nightly» has succeeded"
    assert got == [
        ("all@example.com", failed), ("all@example.com", failed), ("all@example.com", succeeded), ("own@example.com", failed),
    ]  # fmt: skip
    assert postman.deliver() == 0


def test_a_mail_of_a_failure_says_what_happened_what_to_do_and_where(house, postbox):
    job = ended(house)
    postman.deliver()
    [(_, message)] = postbox.letters
    text = message.get_content()
    assert message.get_content_type() == "text/plain"
    assert "The inference «nightly» of the team «Night Shift» has failed." in text
    assert "The loss is no number." in text
    assert STORIES["diverged"].advice in text
    assert f"http://127.0.0.1:8000/jobs/{job.id}" in text
    assert "http://127.0.0.1:8000/team/notifications" in text
    assert message["Message-ID"].startswith("<evt_")
    assert message["Auto-Submitted"] == "auto-generated"


def test_nobody_hears_of_imports_or_of_another_teams_jobs(house, postbox):
    ended(house, kind=Kind.IMPORT)
    with transaction() as db:
        jobs.end(db, a_job(db, a_team(db), Kind.INFER), State.FAILED, "test")
    assert postman.deliver() == 0


def test_a_name_of_several_lines_stays_one_subject(house, postbox):
    ended(house, name="nightly\r\nBcc: evil@example.com\u2028x" + "y" * 300)
    postman.deliver()
    [(to, message)] = postbox.letters
    assert to == "all@example.com"
    assert message["Bcc"] is None
    assert message["Subject"].startswith("«nightly Bcc: evil@example.com x")


def test_who_has_left_or_may_not_sign_in_gets_nothing_that_was_on_its_way(house, postbox):
    ended(house, created_by=house.own.id)
    with transaction() as db:
        db.delete(db.get_one(Membership, (house.team.id, house.everything.id)))
        db.get_one(User, house.own.id).disabled_at = now()
    postman.deliver()
    assert postbox.letters == []
    with transaction() as db:
        found = db.exec(select(Delivery)).all()
    assert {(one.state, one.log[0]["said"]) for one in found} == {
        (Sent.GIVEN_UP, "The person has left the team.")
    }
    ended(house, created_by=house.own.id)
    assert postman.deliver() == 0


def test_a_server_that_refuses_is_asked_again_with_the_same_message(house, postbox):
    ended(house)
    postbox.refuses = "451 later"
    postman.deliver()
    with transaction() as db:
        one = db.exec(select(Delivery)).one()
        assert "451" in one.log[0]["said"]
        db.exec(update(Delivery).values(due_at=now() - timedelta(seconds=1)))
    postbox.refuses = ""
    postman.deliver()
    assert [message["Message-ID"] for _, message in postbox.letters] == [f"<{one.id}@127.0.0.1>"]


def test_a_server_that_is_away_loses_nothing(house, monkeypatch):
    ended(house)
    monkeypatch.setattr(settings(), "smtp_url", "smtp://127.0.0.1:1")
    postman.deliver()
    with transaction() as db:
        one = db.exec(select(Delivery)).one()
    assert (one.state, one.tries) == (Sent.WAITING, 1)


@pytest.mark.parametrize(("scheme", "first"), [("smtp", b"2"), ("smtps", bytes.fromhex("1603034000"))])
def test_a_server_that_speaks_slowly_is_left_when_the_time_is_up(stack, monkeypatch, scheme, first):
    monkeypatch.setattr(mail, "SECONDS_IN_ALL", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def dripping():
            line, _ = server.accept()
            with line, suppress(OSError):
                line.sendall(first)
                while not ended.wait(0.1):
                    line.sendall(b"2")

        speaking = threading.Thread(target=dripping)
        speaking.start()
        monkeypatch.setattr(settings(), "smtp_url", f"{scheme}://127.0.0.1:{server.getsockname()[1]}")
        threading.Timer(10, ended.set).start()
        began = time.monotonic()
        with pytest.raises(mail.FAILURES):
            mail.deliver(mail.letter("you@example.com", "Hello", "Text"))
        assert time.monotonic() - began < 5
        ended.set()
        speaking.join()


def test_a_server_that_asks_for_tls_and_a_password_gets_both(stack, monkeypatch, tmp_path):
    box, given = Postbox(), []

    def known(_server, _session, _envelope, _mechanism, login):
        given.append((login.login, login.password))
        return AuthResult(success=True)

    key, made = certificate(tmp_path, "IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(made, key)
    server = Controller(
        box, hostname="127.0.0.1", port=a_port(), tls_context=tls, require_starttls=True, authenticator=known, auth_required=True,
    )  # fmt: skip
    server.start()
    monkeypatch.setattr(settings(), "smtp_url", f"smtp://me:p%40ss@127.0.0.1:{server.port}")
    mail.send("you@example.com", "Hello", "Text").join()
    server.stop()
    assert given == [(b"me", b"p@ss")]
    assert [(to, message["Subject"]) for to, message in box.letters] == [("you@example.com", "Hello")]


def test_without_a_server_nothing_is_kept_and_the_page_says_what_the_operator_does(house, monkeypatch):
    monkeypatch.setattr(settings(), "smtp_url", "")
    ended(house)
    with transaction() as db:
        assert db.exec(select(Delivery)).all() == []
    page = Visitor(the_web(), house.own).get("/team/notifications").text
    assert "E-mail is not set up on this server" in page
    assert "SMTP_URL" in page


def test_the_page_keeps_ones_own_choice(house):
    visitor = Visitor(the_web(), house.nothing)
    assert "not set up" not in visitor.get("/team/notifications").text
    answer = visitor.post("/team/notifications/mail", scope="team", occasions=["failed", "started"])
    assert answer.status_code == 303
    with transaction() as db:
        member = db.get_one(Membership, (house.team.id, house.nothing.id))
    assert (member.mail_scope, member.mail_occasions) == ("team", ["started", "failed"])
    assert visitor.post("/team/notifications/mail", scope="everybody").status_code == 422
    assert visitor.post("/team/notifications/mail", scope="mine").status_code == 422
    assert visitor.post("/team/notifications/mail", scope="nothing").status_code == 303


def test_the_choice_ends_with_the_membership(house):
    with transaction() as db:
        db.delete(db.get_one(Membership, (house.team.id, house.everything.id)))
        db.flush()
        teams.join(db, house.team.id, house.everything.id, Role.MEMBER)
    ended(house)
    with transaction() as db:
        assert db.exec(select(Delivery).where(col(Delivery.user_id) == house.everything.id)).all() == []


def test_a_choice_is_checked(house):
    with transaction() as db, pytest.raises(Refused):
        notices.choose(db, house.team.id, house.own.id, "mine", ["exploded"])
