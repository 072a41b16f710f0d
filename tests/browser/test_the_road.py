"""The whole road in a browser: sign in, invite, upload, train, watch, compare, download, repeat."""

import io
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from shared import teams
from shared.db import transaction
from tests.browser.conftest import Visit
from tests.factories import PASSWORD

pytestmark = pytest.mark.browser
MINUTES = 60_000


def upload(page: Page, path: Path, name: str = "") -> None:
    """A dataset by the page; ends on its own page once its rows are read."""
    page.goto("/datasets")
    page.get_by_label("Drop a file here, or choose one").set_input_files(path)
    if name:
        page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Upload", exact=True).click()
    page.wait_for_url(re.compile(r"/datasets/ds-"))
    expect(page.get_by_text("First rows")).to_be_visible(timeout=2 * MINUTES)


def upload_model(page: Page, path: Path, name: str) -> None:
    """A base model by the page; ends on its own page once it is imported."""
    page.goto("/models")
    page.get_by_label("Drop a zip here, or choose one").set_input_files(path)
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Upload", exact=True).click()
    page.wait_for_url(re.compile(r"/models/base-"))
    expect(page.locator("#model .chip").first).to_have_text("ready", timeout=2 * MINUTES)


def submit(page: Page, name: str, *, epochs: str = "2", weights: str = "full") -> str:
    """The form for a classifier over the newest dataset and the tiny encoder; returns the job's address."""
    page.get_by_role("link", name="Train with it").click()
    expect(page.get_by_role("radio", name=re.compile("Text classification"))).to_be_checked()
    page.get_by_label("Start from").select_option(label=tiny(page))
    page.get_by_label("Epochs").fill(epochs)
    page.get_by_label("Weights", exact=True).select_option(weights)
    page.locator("#name").fill(name)
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url(re.compile(r"/jobs/ftjob-"))
    return page.url


def tiny(page: Page) -> str:
    """The tiny encoder's words in the list of base models."""
    options = page.get_by_label("Start from").locator("option").all_inner_texts()
    return next(option for option in options if "tiny encoder" in option)


def state(page: Page, word: str, minutes: float = 3) -> None:
    """Wait until the job page says so by itself; where it ends otherwise, tell why."""
    chip = page.locator("#job .title .chip")
    expect(chip).to_have_text(re.compile("succeeded|failed|cancelled"), timeout=int(minutes * MINUTES))
    cause = page.locator(".cause")
    told = cause.inner_text() + page.locator("#log").inner_text() if cause.count() else ""
    assert chip.inner_text() == word, told


def test_the_one_time_password_opens_the_door_once_and_must_be_changed(visit: Visit):
    with transaction() as db:
        _, one_time = teams.add_user(db, "first@example.com", "First team")
    page = visit.sign_in("first@example.com", one_time)
    page.wait_for_url("**/password")
    visit.go("/jobs")
    expect(page).to_have_url(re.compile("/password"))
    for field in page.locator("input[type=password]").all():
        field.fill(one_time if "current" in (field.get_attribute("autocomplete") or "") else PASSWORD)
    page.locator("main button[type=submit]").click()
    page.wait_for_url("**/jobs")
    expect(page.get_by_role("heading", name="Nothing has been trained here yet")).to_be_visible()


def test_a_colleague_joins_by_a_link(owner: Visit, chrome: Browser):
    page = owner.go("/team")
    page.get_by_role("button", name="Make an invitation link").click()
    link = page.locator("[data-secret]").inner_text().strip()
    guest = Visit(chrome, owner.live)
    guest.page.goto(link)
    guest.page.get_by_label("E-mail").fill("colleague@example.com")
    for field in guest.page.locator("input[type=password]").all():
        field.fill(PASSWORD)
    guest.page.locator("main button[type=submit]").click()
    guest.page.wait_for_url("**/jobs")
    guest.close()
    owner.go("/team")
    expect(page.get_by_text("colleague@example.com").first).to_be_visible()


def test_an_upload_shows_its_rows_its_columns_and_what_is_wrong_with_which_row(owner: Visit, rows: Path):
    upload(owner.page, rows)
    expect(owner.page.get_by_role("cell", name="a good day number 0")).to_be_visible()
    expect(owner.page.get_by_text("Row 18", exact=False).first).to_be_visible()
    expect(owner.page.locator(".spread").get_by_text("yes").first).to_be_visible()
    expect(
        owner.page.locator("[aria-labelledby=fit-classification]").get_by_text("fits", exact=True)
    ).to_be_visible()


def test_sample_rows_are_one_click_away(owner: Visit):
    page = owner.go("/datasets")
    page.get_by_role("button", name="Try sample rows: text classification").click()
    page.wait_for_url(re.compile(r"/datasets/ds-"))
    expect(page.get_by_text("First rows")).to_be_visible(timeout=2 * MINUTES)


def test_what_is_no_dataset_is_refused_beside_the_field(owner: Visit, tmp_path: Path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "a", "label": "x"}\nthis is not JSON\n')
    page = owner.go("/datasets")
    page.get_by_label("Drop a file here, or choose one").set_input_files(path)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.locator("#file-wrong")).to_contain_text("2")
    expect(page.locator("#file")).to_be_focused()


def test_a_job_is_trained_watched_compared_downloaded_and_used(
    owner: Visit, rows: Path, zips: dict[str, Path]
):
    page = owner.page
    upload_model(page, zips["encoder"], "tiny encoder")
    upload(page, rows)
    job = submit(page, "moods", epochs="4")
    state(page, "succeeded")
    # it came to its end while the page was open: chart, scores, samples and log are there without a reload
    expect(page.locator("#chart canvas")).to_be_visible()
    expect(page.locator("#scores table")).to_contain_text("F1")
    expect(page.locator("#log-lines li").first).to_be_visible()
    expect(page.locator("table.confusion")).to_be_visible()
    before = page.locator("#scores table").inner_text()
    page.reload()
    assert page.locator("#scores table").inner_text() == before
    page.locator("#chart-table summary").click()
    expect(page.get_by_role("region", name="Loss by step")).to_be_visible()
    downloads(page)
    answers(owner, job)
    repeats(owner, job)


def downloads(page: Page) -> None:
    """The checkpoint comes as a zip that holds a model, under a name of its own."""
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download", exact=True).click()
    assert coming.value.suggested_filename.startswith("moods-step-")
    with zipfile.ZipFile(io.BytesIO(Path(coming.value.path()).read_bytes())) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert any(name.endswith("model.safetensors") for name in names)
    assert not any("optimizer" in name for name in names)
    with page.expect_download() as coming:
        page.get_by_role("link", name="CSV").click()
    assert Path(coming.value.path()).read_text().startswith("step,train_loss")


def answers(owner: Visit, job: str) -> None:
    """The tuned model answers the rows of a dataset, and the answers are shown and downloaded."""
    page = owner.page
    page.goto(job)
    page.get_by_role("link", name="Run on a dataset").click()
    page.get_by_label("Dataset version").select_option(index=1)
    page.get_by_role("button", name="Start answering").click()
    page.wait_for_url(re.compile(r"/jobs/batch_"))
    state(page, "succeeded")
    expect(page.locator("#answers tbody tr").first).to_be_visible()
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download", exact=True).click()
    assert Path(coming.value.path()).stat().st_size > 0


def repeats(owner: Visit, job: str) -> None:
    """The job again as it was, again with changes, and again every night."""
    page = owner.page
    page.goto(job)
    page.get_by_role("link", name="Clone").click()
    expect(page.get_by_label("Epochs")).to_have_value("4")
    expect(page.locator("#name")).to_have_value("moods")
    page.goto(job)
    page.get_by_role("button", name="Train again").click()
    expect(page).not_to_have_url(job)
    expect(page.get_by_text("again after")).to_be_visible()
    state(page, "succeeded")
    page.goto(job)
    page.get_by_role("link", name="Repeat on a schedule").click()
    page.get_by_role("button", name="Weekdays at 06:00").click()
    expect(page.locator("#cron")).to_have_value("0 6 * * 1-5")
    expect(page.locator("#quote li").first).to_contain_text("06:00")
    page.get_by_role("button", name="Create the schedule").click()
    page.wait_for_url(re.compile(r"/schedules/schedule-"))
    expect(page.get_by_role("heading", name="moods")).to_be_visible()
    page.get_by_role("button", name="Turn off").click()
    expect(page.locator(".title .chip")).to_have_text("off")


def test_a_running_job_stops_and_keeps_its_checkpoint(owner: Visit, rows: Path, zips: dict[str, Path]):
    page = owner.page
    upload_model(page, zips["encoder"], "tiny encoder")
    upload(page, rows)
    submit(page, "long", epochs="100")
    expect(page.locator("#live-step")).to_contain_text("step", timeout=MINUTES)
    page.get_by_role("button", name="Stop and keep the checkpoint").click()
    state(page, "succeeded")
    expect(page.locator("#scores table")).to_be_visible()
    page.locator("#downloads tbody tr").first.get_by_role("button", name="Go on from here").click()
    expect(page.get_by_text("going on from step")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    state(page, "cancelled")


def test_a_merged_model_is_built_and_shown_without_a_reload(
    owner: Visit, rows: Path, zips: dict[str, Path], tmp_path: Path
):
    page = owner.page
    upload_model(page, zips["encoder"], "tiny encoder")
    upload(page, rows)
    submit(page, "adapter", weights="lora")
    state(page, "succeeded")
    newest = page.locator("#downloads tbody tr").first
    newest.get_by_role("button", name="Build merged model").click()
    merged = newest.get_by_role("link", name=re.compile("Merged, "))
    expect(merged).to_be_visible(timeout=MINUTES)
    with page.expect_download() as started:
        merged.click()
    started.value.save_as(tmp_path / "merged.zip")
    inside = {Path(name).name for name in zipfile.ZipFile(tmp_path / "merged.zip").namelist()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= inside
