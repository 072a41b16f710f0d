"""Webhooks on their pages and over the API."""

import pytest
from sqlmodel import col, select

from shared import webhooks
from shared.db import transaction
from shared.errors import Refused
from shared.tables import Role, Webhook
from tests.factories import a_token, a_user
from tests.integration.webhooks.messages import deliveries
from tests.visitor import Api, Visitor, error_of, the_web
from worker import postman


@pytest.fixture
def visitor(house):
    return Visitor(the_web(), house.owner)


def test_the_page_shows_the_secret_once_and_the_log_with_every_try(house, visitor, receiver):
    page = visitor.post("/team/webhooks", url=receiver.url, occasions="failed", kinds="train")
    assert "whsec_" in page.text
    at = f"/team/webhooks/{newest_webhook().id}"
    assert "whsec_" not in visitor.get(at).text
    assert visitor.post(f"{at}/test").location == at
    receiver.answers = [503]
    postman.deliver()
    seen = visitor.get(at).text
    assert "burnish.test" in seen
    assert "It answered 503" in seen
    assert visitor.post(f"/team/deliveries/{deliveries()[-1].id}/again").location == at
    postman.deliver()
    assert "delivered" in visitor.get(at).text
    assert "whsec_" in visitor.post(f"{at}/secret").text
    assert visitor.post(at, url=receiver.url, occasions="started", kinds="infer").location == at
    assert (newest_webhook().occasions, newest_webhook().kinds) == (["started"], ["infer"])
    visitor.post(f"{at}/toggle")
    assert not newest_webhook().active
    visitor.post(f"{at}/delete")
    assert visitor.get(at).status_code == 404


def newest_webhook():
    with transaction() as db:
        return db.exec(select(Webhook).order_by(col(Webhook.id).desc())).first()


def test_a_wrong_address_comes_back_with_the_sentence_beside_it(visitor):
    page = visitor.post("/team/webhooks", url="http://169.254.169.254/", occasions="failed", kinds="train")
    assert page.status_code == 422
    assert "Use https://." in page.text
    assert 'value="http://169.254.169.254/"' in page.text
    page = visitor.post("/team/webhooks", url="https://hooks.example.com/", kinds="train")
    assert (page.status_code, "Choose one or several of started" in page.text) == (422, True)


def test_a_viewer_chooses_mails_and_sees_no_webhook(house, receiver):
    with transaction() as db:
        viewer = a_user(db, house.team, Role.VIEWER)
    page = Visitor(the_web(), viewer).get("/team/notifications").text
    assert receiver.url not in page
    assert "Owners of the team set webhooks up" in page


def test_the_api_does_what_the_page_does(house, receiver):
    with transaction() as db:
        api = Api(the_web(), a_token(db, house.team))
    made = api.post("/webhooks", json={"url": receiver.url, "occasions": ["failed"]})
    assert made["secret"].startswith("whsec_")
    assert made["kinds"] == ["train", "evaluate", "infer"]
    at = f"/webhooks/{made['id']}"
    assert api.get(at)["secret"] is None
    assert [one["id"] for one in api.get("/webhooks")["data"]] == [made["id"], house.webhook.id]
    sent = api.post(f"{at}/test")
    postman.deliver()
    [logged] = api.get(f"{at}/deliveries")["data"]
    assert (logged["id"], logged["state"], logged["tries"][0]["status"]) == (sent["id"], "delivered", 204)
    assert receiver.received[0].headers["webhook-id"] == sent["id"]
    assert api.post(f"/webhooks/deliveries/{sent['id']}/again")["state"] == "waiting"
    assert api.post(f"{at}/secret")["secret"] not in (None, made["secret"])
    assert api.post(at, json={"active": False})["active"] is False
    assert api.post(at, json={"active": True, "occasions": ["started"]})["occasions"] == ["started"]
    wrong = error_of(api.post(at, 400, json={"url": "https://10.0.0.1/"}))
    assert (wrong["param"], "not public" in wrong["message"]) == ("url", True)
    api.ask("DELETE", at)
    api.get(at, 404)


def test_a_team_has_a_bounded_number_of_webhooks(house):
    with transaction() as db:
        for n in range(webhooks.MOST_OF_A_TEAM - 1):
            webhooks.create(db, team_id=house.team.id, url=f"https://hooks{n}.example.com/")
        with pytest.raises(Refused, match="at most 20"):
            webhooks.create(db, team_id=house.team.id, url="https://hooks.example.com/")
