"""Other forms of a checkpoint in a browser: the button, the job behind it, the link that takes its place."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from sqlmodel import select

from shared import jobs, queue
from shared.db import transaction
from shared.jobs import Order
from shared.tables import Team
from tests.browser.conftest import Visit
from tests.browser.test_the_road import state
from tests.factories import a_base_model, a_dataset, tiny_causal_lm, tiny_llama

pytestmark = pytest.mark.browser
MINUTES = 60_000
QUICK = {"epochs": 1, "batch_size": 4, "max_length": 64, "evaluations": 1, "checkpoints": 1}


def trained(request: pytest.FixtureRequest, folder: Path) -> str:
    """The address of a chat job that trains an adapter on that Llama, in the owner's team."""
    with transaction() as db:
        team = db.exec(select(Team).where(Team.name == request.node.name[:60])).one()
        base = a_base_model(db, folder, team=team)
        base.facts = base.facts | {"architecture": "LlamaForCausalLM"}
        version = a_dataset(db, team)
        order = Order(team_id=team.id, recipe="sft", model=base.id, dataset_version_id=version.id,
                      hyperparameters=QUICK, seed=7)  # fmt: skip
        job = jobs.submit(db, order)
    queue.wake(job.slot)
    return f"/jobs/{job.id}"


def test_a_gguf_file_is_built_by_its_button_and_its_link_downloads_it(
    owner: Visit, request: pytest.FixtureRequest, tmp_path: Path
):
    page = owner.go(address := trained(request, tiny_llama(tmp_path / "tiny")))
    state(page, "succeeded")
    newest = page.locator("#downloads tbody tr").first
    newest.get_by_role("button", name="Build GGUF").click()
    expect(page).to_have_url(re.compile(f"{address}#downloads"))
    link = newest.get_by_role("link", name=re.compile("GGUF, "))
    expect(link).to_be_visible(timeout=2 * MINUTES)
    expect(newest.get_by_role("button", name="Build GGUF")).to_have_count(0)
    with page.expect_download() as coming:
        link.click()
    assert coming.value.suggested_filename.endswith(".gguf")
    assert Path(coming.value.path()).read_bytes()[:4] == b"GGUF"
    newest.get_by_text("Compared with the trained model").click()
    expect(newest).to_contain_text(
        re.compile(r"Over \d+ tokens 100 % of the likeliest next tokens are equal")
    )
    newest.get_by_role("link", name="Its job").click()
    expect(page.get_by_text("Compared with the trained model. Over")).to_be_visible()


def test_a_gguf_file_that_cannot_be_made_says_why_beside_the_checkpoint(
    owner: Visit, request: pytest.FixtureRequest, tmp_path: Path
):
    page = owner.go(trained(request, tiny_causal_lm(tmp_path / "tiny")))
    state(page, "succeeded")
    newest = page.locator("#downloads tbody tr").first
    newest.get_by_role("button", name="Build GGUF").click()
    expect(newest).to_contain_text("this one has no merges", timeout=2 * MINUTES)
    expect(newest.get_by_role("button", name="Build GGUF again")).to_be_visible()
