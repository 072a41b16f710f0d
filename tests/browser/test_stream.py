"""A job page that follows its job: by a stream, and by polling where there is none."""

import pytest
from playwright.sync_api import Route, expect
from sqlmodel import select

from shared.db import transaction
from shared.tables import Event, EventType, Job, State, Team
from tests.browser.conftest import Visit
from tests.factories import a_job

pytestmark = pytest.mark.browser


def test_a_page_without_a_stream_polls_and_asks_for_one_again(owner: Visit, request: pytest.FixtureRequest):
    with transaction() as db:
        team = db.exec(select(Team).where(Team.name == request.node.name[:60])).one()
        job = a_job(db, team, state=State.PAUSED)
    page, full = owner.page, True

    def answer(route: Route) -> None:
        if full and "once=1" not in route.request.url:
            route.fulfill(status=204)  # as a web that has no place left
        else:
            route.continue_()

    page.route("**/events?*", answer)
    page.clock.install()
    with page.expect_request("**/events?*once=1"):
        owner.go(f"/jobs/{job.id}")
    say(job.id, 1, "told to whoever asks")
    expect(page.get_by_text("told to whoever asks")).to_be_attached()
    full = False
    with page.expect_request(lambda asked: "/events?" in asked.url and "once=1" not in asked.url):
        page.clock.fast_forward(31_000)
    page.route("**/events?*once=1", lambda route: route.abort())  # no poll would come through
    say(job.id, 2, "told by the stream")
    expect(page.get_by_text("told by the stream")).to_be_attached()


def say(job_id: str, number: int, message: str) -> None:
    """A line of the job's log."""
    with transaction() as db:
        team_id = db.get_one(Job, job_id).team_id
        db.add(Event(job_id=job_id, lease_id="lease", seq=number, team_id=team_id, type=EventType.LOG,
                     data={"message": message}))  # fmt: skip
