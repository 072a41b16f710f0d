"""Base models from a hub, by the page: only where the operator allows it, and never by an odd name."""

import pytest

from shared.db import transaction
from shared.settings import settings
from tests.factories import a_team, a_user
from tests.visitor import Visitor


@pytest.fixture
def member(clean, app) -> Visitor:
    with transaction() as db:
        user = a_user(db, a_team(db))
    return Visitor(app, user)


def test_without_leave_the_page_has_no_field_and_a_request_is_refused(member: Visitor):
    assert 'name="hub"' not in member.get("/models").text
    answer = member.post("/models/hub", hub="owner/name")
    assert answer.status_code == 400
    assert "ALLOW_HUB=true" in answer.text


def test_where_it_is_allowed_an_odd_name_is_refused_beside_its_field(
    member: Visitor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(settings(), "allow_hub", True)
    assert 'name="hub"' in member.get("/models").text
    answer = member.post("/models/hub", hub="../../etc", revision="")
    assert answer.status_code == 400
    assert "looks like «owner/name»" in answer.text
    assert 'value="../../etc"' in answer.text


def test_where_it_is_allowed_an_import_is_queued(member: Visitor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings(), "allow_hub", True)
    answer = member.post("/models/hub", hub="owner/name", revision="main")
    assert answer.status_code == 303
    assert "owner/name" in member.get(answer.location).text
