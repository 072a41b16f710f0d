"""Every route is ruled: who may call it, what strangers see, which headers it carries."""

import re
from types import SimpleNamespace

import pytest
from flask import Flask
from sqlalchemy import inspect, text
from sqlmodel import select
from werkzeug.routing import Rule

from shared import base_models, links, outbox, schedules, webhooks
from shared.db import engine, transaction
from shared.ids import new_id
from shared.settings import settings
from shared.tables import Artifact, Event, EventType, Kind, Link, Ready, Role, State, Transition
from tests.factories import (
    a_base_model,
    a_checkpoint,
    a_dataset,
    a_file,
    a_job,
    a_team,
    a_token,
    a_user,
    an_attempt,
)
from tests.visitor import Visitor, the_web
from web import create_app
from web.policy import POLICY

SAFE = {"GET"}
SECRETS = {"token"}  # parameters of public routes that are signed or random: not a team's ids
CANARY = "CANARY-OF-ALPHA"


@pytest.fixture
def world(app):
    """Team Alpha with one of everything, and team Beta with an owner and a token."""
    with transaction() as db:
        alpha, beta = a_team(db, "Alpha"), a_team(db, "Beta")
        owner = a_user(db, alpha, Role.OWNER)
        owner.operator = True
        version = a_dataset(db, alpha, name=CANARY)
        base = a_base_model(db, team=alpha)
        job = a_job(db, alpha, name=CANARY, state=State.SUCCEEDED, base_model_id=base.id, dataset_version_id=version.id,
                    asked={"suffix": CANARY})  # fmt: skip
        checkpoint = a_checkpoint(db, job, adapter=True)
        job.best_checkpoint_id = checkpoint.id
        db.add(Transition(job_id=job.id, state=State.QUEUED, actor=owner.id, reason=CANARY))
        attempt = an_attempt(db, job)
        db.add(Event(job_id=job.id, lease_id=attempt.lease_id, seq=1, team_id=alpha.id, type=EventType.LOG,
                     data={"message": CANARY}))  # fmt: skip
        file = a_file(db, alpha, CANARY.encode(), "canary.jsonl", "batch")
        batch = a_job(db, alpha, Kind.INFER, name=CANARY, file_id=file.id, recipe="sft", spec={"endpoint": "/v1/chat/completions"},
                      state=State.SUCCEEDED, base_model_id=base.id)  # fmt: skip
        evaluation = a_job(db, alpha, Kind.EVALUATE, name=CANARY, recipe="sft", state=State.SUCCEEDED, base_model_id=base.id,
                           dataset_version_id=version.id)  # fmt: skip
        artifact = Artifact(
            team_id=alpha.id, job_id=job.id, form="metrics", state=Ready.READY, file_id=file.id
        )
        db.add(artifact)
        order = {"recipe": "sft", "base_model": base.id, "name": CANARY}
        schedule = schedules.create(db, team_id=alpha.id, name=CANARY, cron="0 2 * * *", zone="UTC",
                                    dataset_id=version.dataset_id, order=order)  # fmt: skip
        links.invite(db, alpha.id, Role.VIEWER)
        webhook, _ = webhooks.create(db, team_id=alpha.id, url=f"https://hooks.example.com/{CANARY}")
        delivery = outbox.try_out(db, webhook)
        db.flush()
        ids = {
            "file_id": file.id,
            "job_id": job.id,
            "batch_id": batch.id,
            "evaluation_id": evaluation.id,
            "checkpoint_id": checkpoint.id,
            "artifact_id": artifact.id,
            "dataset_id": version.dataset_id,
            "version_id": version.id,
            "schedule_id": schedule.id,
            "webhook_id": webhook.id,
            "delivery_id": delivery.id,
            "model": base_models.name_of(checkpoint, job, alpha),
            "base_id": base.id,
            "base_model_id": base.id,
            "model_id": base.id,
            "worker_id": attempt.worker_id,
            "user_id": owner.id,
            "link_id": db.exec(select(Link.id)).one(),
            "name": "adapter_config.json",
            "number": "version 1",
        }
        token_secret = a_token(db, alpha)
        ids["token_id"] = db.connection().execute(text("SELECT id FROM api_tokens")).scalar_one()
        stranger = a_user(db, beta, Role.OWNER)
        return SimpleNamespace(
            alpha=alpha, beta=beta, owner=owner, stranger=stranger, ids=ids, alpha_token=token_secret,
            token=a_token(db, beta), viewer=a_user(db, alpha, Role.VIEWER), viewer_token=a_token(db, alpha, Role.VIEWER),
        )  # fmt: skip


def routes(app: Flask) -> list[tuple[Rule, str]]:
    """(rule, method) of every route."""
    rules: list[Rule] = sorted(app.url_map.iter_rules(), key=str)
    return [(rule, verb) for rule in rules for verb in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})]


def arguments(rule):
    return re.findall(r"<(?:\w+:)?(\w+)>", rule.rule)


def path(rule, values):
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda found: values[found[1]], rule.rule)


def missing(ids):
    """Ids of the same form that nothing has."""
    return {
        name: re.sub(r"[0-9a-z]{26}$", "", value) + new_id("")
        if re.search(r"[0-9a-z]{26}$", value)
        else "no-such-thing"
        for name, value in ids.items()
    }


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def is_api(rule):
    return rule.rule.startswith("/v1/")


def test_every_route_has_a_rule_and_every_rule_a_route(app):
    assert {rule.endpoint for rule, _ in routes(app)} == set(POLICY)


def test_a_route_without_a_rule_is_refused(app, monkeypatch):
    monkeypatch.delitem(POLICY, "home.health")
    with pytest.raises(LookupError, match=r"home\.health"):
        app.test_client().get("/health")
    monkeypatch.setitem(app.config, "TESTING", False)
    assert app.test_client().get("/health").status_code == 404


def test_a_stranger_gets_a_401_or_is_sent_to_the_door(app, world):
    client = app.test_client()
    for rule, method in routes(app):
        if POLICY[rule.endpoint].role == "public":
            continue
        answer = client.open(path(rule, world.ids | {"token": "x"}), method=method)
        if is_api(rule):
            assert (answer.status_code, answer.json["error"]["code"]) == (401, "invalid_api_key"), rule
        elif method in SAFE:
            assert (answer.status_code, answer.location[:9]) == (302, "/sign-in?"), rule
        else:
            assert answer.status_code == 401, rule


def test_every_method_that_a_route_lacks_is_answered_in_form(app, world):
    for rule, _ in routes(app):
        answer = app.test_client().open(path(rule, world.ids | {"token": "x"}), method="PATCH")
        assert answer.status_code == 405, rule
        assert (answer.is_json and answer.json["error"]) if is_api(rule) else "<h1>" in answer.text


def test_a_foreign_id_looks_like_a_missing_one_on_every_route(app, world):
    """The same status and the same bytes, but for the id itself; and nothing changes."""
    before = rows()
    none = missing(world.ids)
    walked = 0
    for rule, method in routes(app):
        names = set(arguments(rule)) - SECRETS
        if not names or POLICY[rule.endpoint].role in ("public", "operator"):
            continue  # workers are no team's
        if rule.endpoint == "team.set_role":
            continue
        foreign, absent = (ask(app, world, rule, method, ids) for ids in (world.ids, none))
        assert foreign.status_code == absent.status_code == 404, (
            rule,
            method,
            foreign.status_code,
            absent.status_code,
        )
        assert plain(foreign, world.ids) == plain(absent, none), rule
        assert CANARY not in foreign.text
        walked += 1
    assert walked > 30
    assert rows() == before


def ask(app, world, rule, method, ids):
    """Beta's owner asks for these ids."""
    if is_api(rule):
        return app.test_client().open(path(rule, ids), method=method, headers=bearer(world.token), json={})
    visitor = Visitor(app, world.stranger)
    if method in SAFE:
        return visitor.get(path(rule, ids))
    return visitor.post(path(rule, ids), role="viewer")


def plain(answer, ids: dict[str, str]) -> str:
    text_only = re.sub(r'name="csrf-token" content="[^"]*"|value="[^"]*"', "", answer.text)
    for value in sorted(ids.values(), key=len, reverse=True):
        text_only = text_only.replace(value, "ID")
    return text_only


def rows():
    """How many rows each table has, and when it last changed; not those that note a visit."""
    with engine().connect() as connection:
        names = [
            n
            for n in inspect(connection).get_table_names()
            if n not in ("browser_sessions", "api_tokens", "alembic_version")
        ]
        return {
            name: connection.execute(text(f'SELECT count(*), max(xmin::text::bigint) FROM "{name}"')).one()
            for name in names
        }


def test_another_team_sees_no_word_of_ours_on_any_page(app, world):
    visitor = Visitor(app, world.stranger)
    for rule, method in routes(app):
        if method not in SAFE or arguments(rule) or rule.endpoint == "stream.follow":
            continue
        headers = bearer(world.token) if is_api(rule) else {}
        answer = visitor.get(rule.rule, headers=headers)
        assert answer.status_code < 400, rule
        assert CANARY not in answer.text, rule
        assert world.ids["job_id"] not in answer.text, rule


def test_our_own_team_sees_it(app, world):
    client = app.test_client()
    seen = [
        client.get(path, headers=bearer(world.alpha_token)).text
        for path in (
            "/v1/files",
            "/v1/fine_tuning/jobs",
            "/v1/models",
            "/v1/schedules",
            "/v1/batches",
            "/v1/evaluations",
            "/v1/webhooks",
        )
    ]
    ids = ("file_id", "job_id", "model", "schedule_id", "batch_id", "evaluation_id", "webhook_id")
    for found, name in zip(seen, ids, strict=True):
        assert world.ids[name] in found, name


def test_a_viewer_changes_nothing(app, world):
    before = rows()
    visitor = Visitor(app, world.viewer)
    for rule, method in routes(app):
        role = POLICY[rule.endpoint].role
        if role not in (Role.MEMBER, Role.OWNER, "operator"):
            continue
        where = path(rule, world.ids)
        if is_api(rule):
            answer = app.test_client().open(where, method=method, headers=bearer(world.viewer_token), json={})
            assert (answer.status_code, answer.json["error"]["code"]) == (403, "role_too_low"), rule
        else:
            answer = visitor.get(where) if method in SAFE else visitor.post(where)
            assert answer.status_code == 403, rule
    assert rows() == before


def test_every_form_is_refused_without_its_token(app, world):
    client = Visitor(app, world.owner).client
    before = rows()
    for rule, method in routes(app):
        if method in SAFE or is_api(rule):
            continue
        answer = client.open(path(rule, world.ids | {"token": "x"}), method=method, data={"role": "viewer"})
        assert answer.status_code == 400, rule
        assert "grown too old" in answer.text, (rule, re.findall("<p>.*<.p>", answer.text))
    assert rows() == before


def test_the_api_takes_no_cookie_and_pages_take_no_token(app, world):
    visitor = Visitor(app, world.owner)
    assert visitor.get("/v1/files").status_code == 401
    assert visitor.client.post("/v1/fine_tuning/jobs", json={}).status_code == 401
    assert app.test_client().get("/team", headers=bearer(world.alpha_token)).status_code == 302
    assert app.test_client().get(f"/v1/files?api_key={world.alpha_token}").status_code == 401


def test_every_answer_carries_the_strict_headers(app, world):
    visitor = Visitor(app, world.owner)
    for rule, method in [*routes(app), (None, "GET")]:
        where = path(rule, world.ids | {"token": "x", "name": "base.css"}) if rule else "/no/such/page"
        if rule and rule.endpoint == "stream.follow":
            continue
        answer = visitor.client.open(where, method=method, headers=bearer(world.alpha_token))
        headers = answer.headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';"), where
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["x-request-id"].startswith("req_")
        assert "Strict-Transport-Security" not in headers
        if rule is None or rule.endpoint != "assets.file":
            public = rule is not None and POLICY[rule.endpoint].role == "public"
            assert public or headers["Cache-Control"] == "no-store", where


def test_over_https_cookies_are_bound_to_the_host(clean, monkeypatch):
    monkeypatch.setattr(settings(), "public_url", "https://burnish.example")
    monkeypatch.setattr(settings(), "s3_public_url", "https://store.example/bucket")
    answer = the_web().test_client().get("/sign-in", base_url="https://burnish.example")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("__Host-burnish=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(cookie.split("; "))
    assert "max-age=31536000" in answer.headers["Strict-Transport-Security"]
    assert "img-src 'self' data: https://store.example;" in answer.headers["Content-Security-Policy"]


def test_a_host_that_is_not_ours_is_refused(app):
    assert app.test_client().get("/sign-in", headers={"Host": "rebound.example"}).status_code == 400
    assert app.test_client().get("/sign-in", headers={"Host": "localhost:1234"}).status_code == 200


def test_forwarded_headers_count_only_behind_trusted_proxies(clean, monkeypatch):
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    assert the_web().test_client().get("/sign-in", headers=headers).status_code == 200
    monkeypatch.setattr(settings(), "trusted_proxies", 1)
    assert the_web().test_client().get("/sign-in", headers=headers).status_code == 400


def test_the_web_does_not_start_on_another_revision(clean, monkeypatch):
    from shared import migrate

    monkeypatch.setattr(migrate, "head", lambda: "0000")
    with pytest.raises(RuntimeError, match="burnish migrate"):
        create_app()


def test_the_start_page_leads_on(app, world):
    assert app.test_client().get("/").location == "/sign-in"
    assert Visitor(app, world.owner).get("/").location == "/jobs"
    assert app.test_client().get("/health").json == {"status": "ok"}


def test_hostile_text_never_becomes_a_fault_of_ours(app, world):
    client = app.test_client()
    for hostile in (
        "%00",
        "..%2f..%2fetc%2fpasswd",
        "%252e%252e",
        "a%ff",
        "'%3B--",
        "x" * 3000,
        "%F0%9F%A6%84",
    ):
        for where in ("/v1/files/", "/v1/models/", "/v1/fine_tuning/jobs/", "/jobs/", "/download/", "/join/"):
            for headers in (bearer(world.alpha_token), {}):
                assert client.get(where + hostile, headers=headers).status_code < 500, where + hostile
    for header in ("Bearer \x7f", "Bearer " + "é", "Basic x", "Bearer"):
        assert client.get("/v1/files", headers={"Authorization": header}).status_code == 401
