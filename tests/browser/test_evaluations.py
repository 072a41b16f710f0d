"""Models judged and compared in a browser: the form, the comparison that fills itself, the page of one."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from sqlmodel import select

from shared.db import transaction
from shared.tables import Team
from tests.attempts import json_lines
from tests.browser.conftest import Visit
from tests.factories import CHAT, a_base_model, a_dataset, tiny_causal_lm

pytestmark = pytest.mark.browser
MINUTES = 60_000


@pytest.fixture
def rows(owner: Visit, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A dataset's address, in a team with two base models of its own."""
    folder = tiny_causal_lm(tmp_path / "tiny")
    with transaction() as db:
        team = db.exec(select(Team).where(Team.name == request.node.name[:60])).one()
        for title in ("Plain Jane", "Fancy Nancy"):
            a_base_model(db, folder, team=team).title = title
        return f"/datasets/{a_dataset(db, team, name='talk').dataset_id}"


def test_two_models_are_judged_compared_and_their_results_downloaded(owner: Visit, rows: str):
    page = owner.go(rows)
    page.get_by_role("link", name="Evaluate models on it").click()
    expect(page.locator("#quote")).to_contain_text("Choose a model.")
    page.get_by_label("Plain Jane").check()
    expect(page.get_by_label("Judged as")).to_have_value("sft")
    expect(page.locator("#quote")).to_contain_text("Ready")
    page.get_by_label("Fancy Nancy").focus()
    page.keyboard.press("Space")
    expect(page.get_by_label("Fancy Nancy")).to_be_focused()
    expect(page.get_by_role("button", name="Start comparing")).to_be_visible()
    page.locator("#name").fill("side by side")
    page.get_by_role("button", name="Start comparing").click()
    page.wait_for_url(re.compile(r"/evaluations/compare\?comparison="))
    # the two are the same model: the page fills itself, and finds no difference
    expect(page.get_by_role("region", name="Metrics of each model")).to_contain_text(
        "no clear difference", timeout=2 * MINUTES
    )
    expect(page.locator("#rows")).to_contain_text(f"All models answer these {len(CHAT)} rows alike.")
    page.get_by_role("link", name=f"All, {len(CHAT)}").click()
    expect(page.locator("#rows li")).to_have_count(len(CHAT))
    page.get_by_role("link", name="Fancy Nancy").click()
    expect(page.locator("#scores tbody tr")).to_have_count(3)
    expect(page.locator("#scores svg.whisker").first).to_be_visible()
    expect(page.locator("#worst li").first).to_contain_text("What is")
    with page.expect_download() as coming:
        page.get_by_role("link", name=re.compile("Rows as JSONL")).click()
    lines = json_lines(Path(coming.value.path()).read_text())
    assert [line["row"] for line in lines] == list(range(1, len(CHAT) + 1))
    page.locator("#others").get_by_role("button", name="Compare").click()
    page.wait_for_url(re.compile(r"/evaluations/compare\?job=.*&job="))
    expect(page.get_by_role("region", name="Metrics of each model")).to_contain_text("no clear difference")
