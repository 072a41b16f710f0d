"""Forms in a browser: what is wrong is said beside its field, and nothing that was typed is lost."""

import re

import pytest
from playwright.sync_api import expect
from sqlmodel import select

from shared.db import transaction
from shared.tables import Job, Kind, Team
from tests.browser.conftest import Visit
from tests.factories import a_dataset

pytestmark = pytest.mark.browser


@pytest.fixture
def team(owner: Visit, request: pytest.FixtureRequest) -> Team:
    """The signed-in person's team, with one dataset."""
    with transaction() as db:
        row = db.exec(select(Team).where(Team.name == request.node.name[:60])).one()
        a_dataset(db, row, name="conversations")
        return row


def fill(visit: Visit) -> None:
    """A form that would pass."""
    page = visit.go("/jobs/new?recipe=sft")
    page.get_by_label("Dataset version").select_option(index=1)
    expect(page.locator("#quote")).to_contain_text("Ready")
    page.locator("#name").fill("my bot")


def jobs_of(team: Team) -> int:
    with transaction() as db:
        return len(db.exec(select(Job).where(Job.team_id == team.id, Job.kind == Kind.TRAIN)).all())


def test_a_learning_rate_of_a_billion_is_refused_beside_its_field(owner: Visit, team: Team):
    fill(owner)
    page = owner.page
    page.get_by_label("Learning rate", exact=True).fill("1e9")
    page.get_by_label("Epochs").fill("7")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#learning_rate-wrong")).to_contain_text("Learning rate")
    expect(page.get_by_label("Learning rate", exact=True)).to_be_focused()
    expect(page.get_by_label("Learning rate", exact=True)).to_have_value("1000000000")
    expect(page.get_by_label("Epochs")).to_have_value("7")
    expect(page.locator("#name")).to_have_value("my bot")
    assert jobs_of(team) == 0


def test_words_in_a_number_field_come_back_as_typed(owner: Visit, team: Team):
    fill(owner)
    page = owner.page
    page.get_by_label("Batch size").fill("a few")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#batch_size-wrong")).to_be_visible()
    expect(page.get_by_label("Batch size")).to_have_value("a few")


def test_an_advanced_field_that_is_wrong_unfolds(owner: Visit, team: Team):
    fill(owner)
    page = owner.page
    page.locator("#advanced summary").click()
    page.get_by_label("LoRA rank").fill("100000")
    expect(page.locator("[data-changed]")).to_have_text("1")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#lora_rank-wrong")).to_be_visible()
    expect(page.get_by_label("LoRA rank")).to_be_focused()


def test_several_processes_are_asked_for_told_and_kept_by_a_clone(owner: Visit, team: Team):
    fill(owner)
    page = owner.page
    page.locator("#advanced summary").click()
    page.get_by_role("textbox", name="Processes").fill("17")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#processes-wrong")).to_have_text(
        "The processes are a whole number from 1 to 16; 17 is not."
    )
    page.get_by_role("textbox", name="Processes").fill("2")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#reproduce")).to_contain_text("Processes")
    job = page.url.rsplit("/", 1)[1]
    with transaction() as db:
        assert db.get_one(Job, job).resources == {"processes": 2}
    owner.go(f"/jobs/new?from={job}")
    page.locator("#advanced summary").click()
    expect(page.get_by_role("textbox", name="Processes")).to_have_value("2")


def test_without_a_dataset_the_form_says_so(owner: Visit, team: Team):
    page = owner.go("/jobs/new?recipe=sft")
    expect(page.locator("#quote")).to_contain_text("Choose a dataset")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#dataset-wrong")).to_be_visible()
    expect(page.locator("#dataset")).to_be_focused()


def test_two_clicks_on_submit_make_one_job(owner: Visit, team: Team):
    fill(owner)
    page = owner.page
    sent = page.evaluate(
        """async () => {
            const form = document.querySelector("#ask");
            const send = () => fetch(form.action, {method: "POST", body: new FormData(form)});
            const answers = await Promise.all([send(), send(), send()]);
            return answers.map((answer) => answer.url);
        }"""
    )
    assert len(set(sent)) == 1
    assert "/jobs/ftjob-" in sent[0]
    page.get_by_role("button", name="Start training").dblclick()
    page.wait_for_url(re.compile("/jobs/ftjob-"))
    assert page.url == sent[0]
    assert jobs_of(team) == 1


def test_the_keyboard_alone_reaches_the_submit_button(owner: Visit, team: Team):
    fill(owner)
    page = owner.page
    page.locator("body").press("Tab")
    for _ in range(60):
        focused = page.evaluate("document.activeElement.id")
        if focused == "submit":
            break
        page.keyboard.press("Tab")
    assert focused == "submit"
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/jobs/ftjob-"))


def test_another_recipe_brings_its_own_knobs_and_keeps_the_name(owner: Visit, team: Team):
    fill(owner)
    page = owner.page
    expect(page.get_by_label("LoRA rank")).to_be_attached()
    page.get_by_role("radio", name=re.compile("Text classification")).check()
    expect(page.get_by_label("Weigh rare labels up")).to_be_attached()
    expect(page.locator("#name")).to_have_value("my bot")
    expect(page.locator("#model")).to_have_value("minilm-l6-v2")


def test_a_wrong_cron_line_is_refused_beside_its_field(owner: Visit, team: Team):
    page = owner.go("/schedules/new")
    page.get_by_label("Name", exact=True).fill("nightly")
    page.get_by_label("Cron line").fill("every now and then")
    page.get_by_label("Dataset", exact=True).select_option(label="conversations")
    page.get_by_role("button", name="Create the schedule").click()
    expect(page.locator("#cron-wrong")).to_be_visible()
    expect(page.get_by_label("Cron line")).to_have_value("every now and then")
