"""People come in, are invited, forget their passwords and leave."""

import re
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlmodel import Session, select

from shared import links, mail, sessions, teams
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.settings import settings
from shared.tables import ApiToken, BrowserSession, Link, LinkKind, Membership, Role, User
from shared.teams import Caller
from tests.factories import PASSWORD, a_team, a_token, a_user
from tests.visitor import Visitor

NEW = "another walk in the rain"


@pytest.fixture
def house(app):
    """A team with an owner and a viewer."""
    with transaction() as db:
        team = a_team(db, "Alpha")
        return SimpleNamespace(
            team=team,
            owner=a_user(db, team, Role.OWNER, "owner@example.com"),
            viewer=a_user(db, team, Role.VIEWER, "viewer@example.com"),
        )


def secret_on(page: str) -> str:
    found = re.search(r"data-secret>([^<]+)<", page)
    assert found, page
    return found[1]


def caller_of(db, secret: str) -> Caller:
    caller = teams.token(db, secret)
    assert caller
    return caller


def path_of(link: str) -> str:
    return link.removeprefix(settings().public_url)


def test_a_one_time_password_leads_to_choosing_ones_own(app):
    with transaction() as db:
        _, one_time = teams.add_user(db, "New@Example.com", "Alpha", "owner")
    visitor = Visitor(app)
    assert visitor.sign_in("new@example.com", one_time).location == "/password"
    assert visitor.get("/team").location == "/password"
    answer = visitor.post("/password", old=one_time, password=NEW, again=NEW)
    assert (answer.status_code, answer.location) == (303, "/")
    assert visitor.get("/team").status_code == 200
    assert Visitor(app).sign_in("new@example.com", one_time).status_code == 422


def test_adding_a_known_person_again_gives_a_fresh_password_and_ends_sessions(app, house):
    visitor = Visitor(app, house.owner)
    with transaction() as db:
        again, one_time = teams.add_user(db, "owner@example.com", "Alpha", Role.OWNER)
    assert again.id == house.owner.id
    assert visitor.get("/team").status_code == 302
    assert Visitor(app).sign_in("owner@example.com", one_time).status_code == 303


def test_an_unknown_address_gets_the_same_answer_as_a_wrong_password(app, house):
    def answer(email):
        page = Visitor(app).sign_in(email, "wrong, and long enough")
        return page.status_code, re.sub(r'(value|content)="[^"]*"', "", page.text)

    assert answer("owner@example.com") == answer("nobody@example.com")


def test_the_eleventh_wrong_password_waits_but_another_person_does_not(app, house):
    visitor = Visitor(app)
    token = visitor.token("/sign-in")

    def knock(email, password):
        form = {"csrf_token": token, "email": email, "password": password}
        return visitor.client.post("/sign-in", data=form).status_code

    assert [knock("throttled@example.com", "wrong") for _ in range(11)] == [422] * 10 + [429]
    assert knock("viewer@example.com", PASSWORD) == 303


def test_signing_in_gives_a_new_session_and_signing_out_ends_it(app, house):
    visitor = Visitor(app)
    visitor.get("/sign-in")
    before = visitor.client.get_cookie("burnish")
    visitor.sign_in("owner@example.com", PASSWORD)
    cookie = visitor.client.get_cookie("burnish")
    assert before
    assert cookie
    assert cookie.value != before.value
    assert cookie.http_only
    assert cookie.same_site == "Lax"
    visitor.post("/sign-out")
    visitor.client.set_cookie("burnish", cookie.value)
    assert visitor.get("/team").status_code == 302


def test_after_signing_in_a_person_comes_where_they_wanted_but_never_elsewhere(app, house):
    assert Visitor(app).get("/team?tab=x").location == "/sign-in?next=/team%3Ftab%3Dx"
    assert Visitor(app).sign_in("owner@example.com", PASSWORD, next="/team").location == "/team"
    for elsewhere in ("https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"):
        assert Visitor(app).sign_in("owner@example.com", PASSWORD, next=elsewhere).location == "/"


def test_sessions_end_by_idleness_and_by_age(app, house):
    for column, moment in (("seen_at", now() - timedelta(hours=25)), ("expires_at", now())):
        visitor = Visitor(app, house.owner)
        assert visitor.get("/team").status_code == 200
        with transaction() as db:
            for row in db.exec(select(BrowserSession)):
                setattr(row, column, moment)
        assert visitor.get("/team").status_code == 302


def test_the_cookie_holds_nothing_that_the_database_holds(app, house):
    with transaction() as db:
        secret = sessions.begin(db, house.owner.id)
        assert secret not in db.exec(select(BrowserSession.id_hash)).all()


def test_changing_a_password_signs_other_browsers_out(app, house):
    here, there = Visitor(app, house.owner), Visitor(app, house.owner)
    assert here.post("/password", old="not it at all", password=NEW, again=NEW).status_code == 422
    assert here.post("/password", old=PASSWORD, password="short", again="short").status_code == 422
    assert here.post("/password", old=PASSWORD, password=NEW, again=NEW + "!").status_code == 422
    assert here.post("/password", old=PASSWORD, password=NEW, again=NEW).status_code == 303
    assert here.get("/team").status_code == 200
    assert there.get("/team").status_code == 302


def test_an_invitation_makes_an_account_with_its_role_and_works_once(app, house):
    page = Visitor(app, house.owner).post("/team/invitations", role="member", days="7")
    join = path_of(secret_on(page.text))
    guest = Visitor(app)
    assert "Alpha" in guest.get(join).text
    assert guest.post(join, join, email="guest@example.com", password="short").status_code == 422
    assert guest.post(join, join, email="guest@example.com", password=NEW).status_code == 303
    assert guest.get("/team").status_code == 200
    with transaction() as db:
        roles = {user.email: member.role for user, member in teams.members(db, house.team.id)}
    assert roles["guest@example.com"] == Role.MEMBER
    assert Visitor(app).get(join).status_code == 410
    assert guest.post(join, email="again@example.com", password=NEW).status_code == 410


def test_an_invitation_for_one_address_is_for_nobody_else(app, house):
    page = Visitor(app, house.owner).post(
        "/team/invitations", role="viewer", days="1", email="Only@Example.com"
    )
    join = path_of(secret_on(page.text))
    assert Visitor(app).post(join, join, email="other@example.com", password=NEW).status_code == 422
    assert Visitor(app).post(join, join, email="only@example.com", password=NEW).status_code == 303


def test_an_invitation_asks_a_known_address_for_its_own_password(app, house):
    with transaction() as db:
        other = a_team(db, "Beta")
        owner = a_user(db, other, Role.OWNER, "b@example.com")
        _, secret = links.invite(db, other.id, Role.MEMBER, created_by=owner.id)
    join = f"/join/{secret}"
    assert Visitor(app).post(join, join, email="owner@example.com", password=NEW).status_code == 422
    visitor = Visitor(app)
    assert visitor.post(join, join, email="owner@example.com", password=PASSWORD).status_code == 303
    assert "Beta" in visitor.get("/team").text


def test_whoever_is_signed_in_joins_by_one_click_and_loses_no_rights(app, house):
    with transaction() as db:
        _, secret = links.invite(db, house.team.id, Role.VIEWER, created_by=house.owner.id)
    assert Visitor(app, house.owner).post(f"/join/{secret}").status_code == 303
    with transaction() as db:
        assert db.get_one(Membership, (house.team.id, house.owner.id)).role == Role.OWNER


def test_an_invitation_ends_by_time_and_by_withdrawal(app, house):
    with transaction() as db:
        late, late_secret = links.invite(db, house.team.id, Role.MEMBER)
        late.expires_at = now()
        row, secret = links.invite(db, house.team.id, Role.MEMBER)
    assert Visitor(app).get(f"/join/{late_secret}").status_code == 410
    assert Visitor(app).get(f"/join/{secret}").status_code == 200
    Visitor(app, house.owner).post(f"/team/invitations/{row.id}/withdraw")
    assert Visitor(app).get(f"/join/{secret}").status_code == 410


def test_an_owner_hands_over_a_reset_link_that_works_once(app, house):
    signed_in = Visitor(app, house.viewer)
    page = Visitor(app, house.owner).post(f"/team/members/{house.viewer.id}/reset-link")
    reset = path_of(secret_on(page.text))
    guest = Visitor(app)
    assert guest.post(reset, reset, password=NEW, again="not the same").status_code == 422
    assert guest.post(reset, reset, password=NEW, again=NEW).location == "/sign-in"
    assert guest.get(reset).status_code == 410
    assert signed_in.get("/team").status_code == 302
    assert Visitor(app).sign_in("viewer@example.com", NEW).status_code == 303


def test_an_owner_cannot_take_over_somebody_who_belongs_to_other_teams(app, house):
    with transaction() as db:
        teams.join(db, a_team(db, "Beta").id, house.viewer.id, Role.OWNER)
        with pytest.raises(Refused, match="teams that you do not own"):
            links.reset_by_owner(db, house.team.id, house.viewer.id, house.owner.id)


def test_a_reset_link_ends_after_its_time(app, house):
    with transaction() as db:
        secret = links.reset_by_owner(db, house.team.id, house.viewer.id, house.owner.id)
        db.exec(select(Link).where(Link.kind == LinkKind.PASSWORD_RESET)).one().expires_at = now()
    assert Visitor(app).get(f"/reset/{secret}").status_code == 410


def test_a_forgotten_password_is_mailed_and_a_stranger_hears_the_same(app, house, monkeypatch):
    assert "Ask an owner" in Visitor(app).get("/reset").text
    sent = []
    monkeypatch.setattr(settings(), "smtp_url", "smtp://mail.example:2525")
    monkeypatch.setattr(mail, "send", lambda *message: sent.append(message) or threading.Thread())
    answers = [
        Visitor(app).post("/reset", "/reset", email=email)
        for email in ("viewer@example.com", "no@example.com")
    ]
    assert {(a.status_code, a.location) for a in answers} == {(303, "/sign-in")}
    [(to, _, text)] = sent
    assert to == "viewer@example.com"
    path = path_of(re.findall(r"http\S+/reset/\S+", text)[0])
    assert Visitor(app).get(path).status_code == 200


def test_the_last_owner_stays_an_owner_and_stays(app, house):
    owner = Visitor(app, house.owner)
    for path, fields in (
        (f"/team/members/{house.owner.id}/role", {"role": "member"}),
        (f"/team/members/{house.owner.id}/remove", {}),
        ("/team/leave", {}),
    ):
        assert owner.post(path, **fields).status_code == 409
    assert owner.post(f"/team/members/{house.viewer.id}/role", role="owner").status_code == 303
    assert owner.post("/team/leave").status_code == 303
    assert owner.get("/team").location == "/team/new"


def test_a_new_team_belongs_to_its_maker_and_can_be_switched_to(app, house):
    viewer = Visitor(app, house.viewer)
    assert viewer.post("/team/new", name="  Gamma   Ray ").status_code == 303
    assert "Gamma Ray" in viewer.get("/team").text
    assert viewer.post("/team/new", name="Alpha").status_code == 422
    assert viewer.post("/team/switch", team=house.team.id).status_code == 303
    assert "Invite somebody" not in viewer.get("/team").text
    assert Visitor(app, house.owner).post("/team/switch", team="team-none").status_code == 404


def test_a_token_is_shown_once_and_stored_as_a_hash(app, house):
    owner = Visitor(app, house.owner)
    secret = secret_on(owner.post("/team/tokens", name="ci", role="member", days="30").text)
    assert teams.well_formed(secret)
    assert secret not in owner.get("/team").text
    with transaction() as db:
        row = db.exec(select(ApiToken)).one()
        assert secret not in row.model_dump_json()
        caller = caller_of(db, secret)
    assert (caller.team_id, caller.role, caller.token_id) == (house.team.id, Role.MEMBER, row.id)


def test_a_token_dies_by_revocation_by_expiry_and_with_its_maker(app, house):
    with transaction() as db:
        row, secret = teams.create_token(db, house.team, created_by=house.viewer.id)
        assert caller_of(db, secret).role == Role.VIEWER  # never more than its maker
        row.expires_at = now()
        db.flush()
        assert teams.token(db, secret) is None
        row.expires_at = None
        teams.remove(db, house.team.id, house.viewer.id)
        assert teams.token(db, secret) is None
        own = a_token(db, house.team)
        assert caller_of(db, own).role == Role.OWNER
        token_id = caller_of(db, own).token_id
    Visitor(app, house.owner).post(f"/team/tokens/{token_id}/revoke")
    with transaction() as db:
        assert teams.token(db, own) is None


def test_a_tokens_last_use_is_noted_by_the_minute(db):
    secret = a_token(db, a_team(db))
    row = db.get_one(ApiToken, caller_of(db, secret).token_id)
    db.refresh(row)
    first = row.last_used_at
    teams.token(db, secret)
    db.refresh(row)
    assert row.last_used_at == first is not None


def test_a_mistyped_token_never_reaches_the_database():
    assert not teams.well_formed("burnish_" + "a" * 36)
    assert teams.token(Session(), "burnish_" + "a" * 36) is None


def test_roles_decide_who_sees_and_does_what_on_the_team_page(app, house):
    viewer = Visitor(app, house.viewer)
    assert "owner@example.com" in viewer.get("/team").text
    assert viewer.post("/team/invitations", role="owner", days="1").status_code == 403
    assert viewer.post("/team/tokens", role="owner", days="1").status_code == 403
    assert viewer.post(f"/team/members/{house.owner.id}/remove").status_code == 403


def test_a_disabled_person_is_out_at_once(app, house):
    visitor = Visitor(app, house.viewer)
    with transaction() as db:
        db.get_one(User, house.viewer.id).disabled_at = now()
    assert visitor.get("/team").status_code == 302
    assert Visitor(app).sign_in("viewer@example.com", PASSWORD).status_code == 422
