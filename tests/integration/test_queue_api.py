"""The queue for programs: shares, caps, workers and their drains."""

import re
from datetime import timedelta

import pytest

from shared import caps, ranking, teams
from shared.columns import now
from shared.db import transaction
from shared.tables import Kind, Outcome, Role, Slot, Worker
from tests.factories import a_job, a_team, a_token, a_user, a_worker, an_attempt
from tests.integration.test_cli import burnish
from tests.visitor import Api, Visitor, error_of


@pytest.fixture
def operator(app):
    """A client with an operator's token."""
    with transaction() as db:
        team = a_team(db, "Operations")
        person = a_user(db, team, Role.OWNER)
        person.operator = True
        db.flush()
        return Api(
            app, teams.create_token(db, team, "ops", Role.OWNER, created_by=person.id, operator=True)[1]
        )


def test_a_token_that_an_operator_makes_is_an_operators_only_where_it_is_said(app):
    with transaction() as db:
        person = a_user(db, a_team(db, "Operations"), Role.OWNER)
        person.operator = True
    visitor = Visitor(app, person)
    for said, status in (({}, 403), ({"operator": "on"}, 200)):
        page = visitor.post("/team/tokens", name="ops", role="owner", days="30", **said).text
        secret = re.search(r"burnish_[0-9A-Za-z]+", page)
        assert secret is not None
        Api(app, secret[0]).post("/caps", status, json={"compute": 5})


def test_who_is_no_operator_makes_no_operators_token(app):
    with transaction() as db:
        person = a_user(db, a_team(db, "Plain"), Role.OWNER)
    visitor = Visitor(app, person)
    page = visitor.post("/team/tokens", name="x", role="owner", days="30", operator="on").text
    secret = re.search(r"burnish_[0-9A-Za-z]+", page)
    assert secret is not None
    Api(app, secret[0]).post("/caps", 403, json={"compute": 5})
    assert "for every team" not in visitor.get("/team").text


def test_a_team_reads_its_share_and_an_operator_every_teams(alpha, operator):
    with transaction() as db:
        caps.put(db, Slot.COMPUTE, 3, alpha.team.id)
        caps.put(db, Slot.LIGHT, 8)
        an_attempt(db, a_job(db, alpha.team, Kind.INFER), slots=["compute", "compute"])
    own, together = alpha.api.get("/queue")["data"]
    assert (own["id"], own["name"]) == (alpha.team.id, "Alpha Team")
    assert (own["compute"]["occupied"], own["compute"]["cap"], own["light"]["cap"]) == (2, 3, None)
    assert (together["id"], together["compute"]["occupied"], together["light"]["cap"]) == (None, 2, 8)
    assert [line["name"] for line in operator.get("/queue")["data"]] == [
        "Alpha Team",
        "Operations",
        "All teams together",
    ]


def test_an_operators_token_sets_and_lifts_caps(alpha, operator):
    told = operator.post("/caps", json={"team": "Alpha Team", "compute": 2, "light": 0})["data"]
    assert (told[0]["compute"]["cap"], told[0]["light"]["cap"]) == (2, 0)
    told = operator.post("/caps", json={"team": alpha.team.id, "compute": None})["data"]
    assert (told[0]["compute"]["cap"], told[0]["light"]["cap"]) == (None, 0)
    assert operator.post("/caps", json={"light": 9})["data"][-1]["light"]["cap"] == 9
    operator.post("/caps", 400, json={"team": alpha.team.id})
    operator.post("/caps", 400, json={"compute": -1})
    operator.post("/caps", 404, json={"team": "Nobody", "compute": 1})


def test_an_operators_token_drains_workers_and_lets_them_take_jobs_again(alpha, operator):
    with transaction() as db:
        disk = {"free": 10, "floor": 5, "total": 20, "room": 5}
        worker = a_worker(db, host="big-iron", disk=disk)
    (seen,) = alpha.api.get("/workers")["data"]
    assert (seen["id"], seen["host"], seen["status"], seen["disk"]) == (
        worker.id,
        "big-iron",
        "takes_jobs",
        disk,
    )
    assert seen["occupied"] == {"compute": 0, "light": 0}
    assert operator.post(f"/workers/{worker.id}/drain")["status"] == "draining"
    with transaction() as db:
        assert db.get_one(Worker, worker.id).draining_at is not None
    assert operator.post(f"/workers/{worker.id}/undrain")["status"] == "takes_jobs"
    operator.post("/workers/worker-none/drain", 404)


def test_a_token_is_no_operators_unless_an_operator_made_it_for_an_owner(app, alpha):
    with transaction() as db:
        worker = a_worker(db)
        person = a_user(db, alpha.team, Role.OWNER)
        plain = teams.create_token(db, alpha.team, "plain", Role.OWNER, created_by=person.id)[1]
        person.operator = True
        db.flush()
        member = teams.create_token(db, alpha.team, "member", Role.MEMBER, created_by=person.id)[1]
        person.operator = False
    for token in (plain, member, a_token_of(alpha)):
        api = Api(app, token)
        assert error_of(api.post("/caps", 403, json={"compute": 1}))["code"] == "role_too_low"
        api.post(f"/workers/{worker.id}/drain", 403)
        api.post(f"/workers/{worker.id}/undrain", 403)
    with transaction() as db:
        assert caps.of(db, Slot.COMPUTE) == {}


def a_token_of(alpha):
    with transaction() as db:
        return a_token(db, alpha.team)


# --- what was really used ---------------------------------------------------------------------------


def three_short_imports(db, team):
    """Each took two seconds."""
    worker = a_worker(db)
    for _ in range(3):
        an_attempt(db, a_job(db, team, Kind.IMPORT), worker, slots=["light"], outcome=Outcome.SUCCEEDED,
                   started_at=now() - timedelta(seconds=32), ended_at=now() - timedelta(seconds=30))  # fmt: skip


def test_pages_and_commands_show_the_seconds_that_were_really_used(app, alpha):
    with transaction() as db:
        member = a_user(db, alpha.team)
        three_short_imports(db, alpha.team)
    page = Visitor(app, member).get("/queue").text
    assert "6 s in a day" in page
    assert "3 m 00 s in a day" not in page
    assert alpha.api.get("/queue")["data"][0]["light"]["used_seconds"] == pytest.approx(6, abs=0.1)
    assert "Alpha Team" in burnish("team", "list").stdout


def test_turns_still_go_by_a_minute_an_attempt_at_least(db):
    busy, other = a_team(db), a_team(db)
    three_short_imports(db, busy)
    worker = a_worker(db)
    an_attempt(db, a_job(db, other, Kind.IMPORT), worker, slots=["light"], outcome=Outcome.SUCCEEDED,
               started_at=now() - timedelta(seconds=130), ended_at=now() - timedelta(seconds=30))  # fmt: skip
    a_job(db, busy, Kind.IMPORT)
    a_job(db, other, Kind.IMPORT)
    turns = ranking.heads(db, "light")
    assert [turn.team_id for turn in turns if turn.team_id in (busy.id, other.id)] == [other.id, busy.id]
