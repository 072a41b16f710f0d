"""A failed job in a browser: its card, the button, the job that the button starts."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from sqlmodel import select

from shared.db import transaction
from shared.tables import Event, EventType, State, Team
from tests.browser.conftest import Visit
from tests.browser.test_the_road import state
from tests.factories import a_base_model, a_dataset, a_job, tiny_causal_lm

pytestmark = pytest.mark.browser
QUICK = {"epochs": 1, "batch_size": 8, "max_length": 64, "evaluations": 1, "checkpoints": 1, "method": "full"}


def test_a_job_that_was_killed_for_want_of_memory_is_retried_by_its_card_with_half_the_batch(
    owner: Visit, request: pytest.FixtureRequest, tmp_path: Path
):
    with transaction() as db:
        team = db.exec(select(Team).where(Team.name == request.node.name[:60])).one()
        base, version = a_base_model(db, tiny_causal_lm(tmp_path / "tiny"), team=team), a_dataset(db, team)
        job = a_job(db, team, base_model_id=base.id, dataset_version_id=version.id, spec=QUICK, state=State.FAILED,
                    reason_code="host_out_of_memory", reason="The machine ran out of memory.", seed=3)  # fmt: skip
        db.add(Event(job_id=job.id, lease_id="lease-x", seq=1, team_id=team.id, type=EventType.LOG,
                     data={"message": "step 1 begins"}))  # fmt: skip
    page = owner.go(f"/jobs/{job.id}")
    card = page.locator(".cause")
    expect(card.get_by_role("heading", name="The machine ran out of memory")).to_be_visible()
    expect(card.get_by_text("step 1 begins")).to_be_hidden()
    card.get_by_text("The end of its log").click()
    expect(card.get_by_text("step 1 begins")).to_be_visible()
    card.get_by_role("button", name="Retry with half the batch (4)").click()
    page.wait_for_url(lambda address: "/jobs/ftjob-" in address and job.id not in address)
    expect(page.get_by_text("with that one setting changed")).to_be_visible()
    expect(page.get_by_role("link", name=job.id)).to_be_visible()
    state(page, "succeeded")
    expect(
        page.locator("#reproduce div", has=page.get_by_text("Batch size", exact=True)).first
    ).to_contain_text(re.compile(r"Batch size\s*4"))
