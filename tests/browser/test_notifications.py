"""The pages of notifications in a browser: a webhook from its first line to its end, and one's own e-mails."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.receiver import Receiver

pytestmark = pytest.mark.browser


def test_an_owner_adds_a_webhook_tests_it_reads_its_log_and_deletes_it(owner: Visit):
    with Receiver(port=owner.live.hooks) as receiver:
        receiver.answers = [503]
        page = owner.go("/team")
        page.get_by_role("link", name="Notifications").click()
        page.get_by_label("Address").fill("http://hooks.example.com/")
        page.get_by_role("button", name="Add the webhook").click()
        expect(page.get_by_text("anybody on the way can read")).to_be_visible()
        page.get_by_label("Address").fill(receiver.url)
        page.get_by_role("button", name="Add the webhook").click()
        expect(page.locator("#secret")).to_contain_text(re.compile(r"^whsec_"))
        page.get_by_role("button", name="Send a test").click()
        expect(page.locator("#secret")).to_have_count(0)
        log = page.locator("#log")
        expect(log.get_by_text("It answered 503")).to_be_visible(timeout=30_000)  # without a reload
        log.get_by_role("button", name="Deliver again").click()
        expect(page.locator("#log").get_by_text("delivered", exact=True)).to_be_visible(timeout=30_000)
        assert len(receiver.received) == 2
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        page.get_by_role("button", name="Switch off").click()
        expect(page.locator("h1 + .chip")).to_have_text("off")
        page.get_by_label("is cancelled").uncheck()
        page.get_by_role("button", name="Change the webhook").click()
        expect(page.get_by_text("The webhook has changed.")).to_be_visible()
        expect(page.get_by_label("is cancelled")).not_to_be_checked()
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("The webhook is deleted.")).to_be_visible()
        expect(page.get_by_role("link", name=receiver.url)).to_have_count(0)


def test_somebody_chooses_of_which_jobs_they_hear_by_mail(owner: Visit):
    page = owner.go("/team/notifications")
    expect(page.get_by_text("E-mail is not set up on this server")).to_be_visible()
    page.get_by_label(re.compile("^Write to")).select_option("the jobs that I start")
    card = page.locator("section", has=page.get_by_role("heading", name="E-mail to you"))
    card.get_by_label("succeeds").uncheck()
    page.get_by_role("button", name="Keep this choice").click()
    expect(page.get_by_text("Your choice is kept.")).to_be_visible()
    expect(page.get_by_label(re.compile("^Write to"))).to_have_value("mine")
    expect(card.get_by_label("succeeds")).not_to_be_checked()
    expect(card.get_by_label("fails")).to_be_checked()
