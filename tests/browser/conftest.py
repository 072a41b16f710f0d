"""A real browser against the live web. Every page that a test opens is watched: an error in the
console or a report of the content security policy fails the test.
"""

import zipfile
from collections.abc import Generator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from shared import teams
from shared.db import transaction
from shared.tables import Role, User
from tests import chromium
from tests.factories import PASSWORD, tiny_causal_lm, tiny_encoder
from tests.services import Live

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
expect.set_options(timeout=15_000)


@pytest.fixture(scope="session")
def chrome() -> Generator[Browser]:
    """Chromium without a window; the suite is skipped where there is none."""
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium on this machine; `python -m tests.chromium` gets one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


class Visit:
    """One person at the browser."""

    def __init__(self, browser: Browser, live: Live, *, scripts: bool = True) -> None:
        self.live = live
        self.context: BrowserContext = browser.new_context(
            base_url=live.url,
            viewport={"width": 1280, "height": 860},
            java_script_enabled=scripts,
            reduced_motion="reduce",
        )
        self.context.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("console", self.heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))

    def heard(self, message: ConsoleMessage) -> None:
        """Keep what a browser complains about; an answer that a test asks for (422) is no complaint."""
        expected = any(f"status of {status}" in message.text for status in (400, 403, 404, 409, 413, 422))
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(f"{self.page.url}: {message.text}")

    def go(self, path: str) -> Page:
        """Open a page of the web."""
        self.page.goto(path)
        return self.page

    def sign_in(self, email: str, password: str = PASSWORD) -> Page:
        """Through the door."""
        self.go("/sign-in")
        self.page.get_by_label("E-mail").fill(email)
        self.page.get_by_label("Password", exact=True).fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        return self.page

    def close(self) -> None:
        """Leave; whatever the browser complained about is told now."""
        self.context.close()
        assert not self.complaints, "\n".join(self.complaints)


@pytest.fixture
def visit(chrome: Browser, live: Live) -> Generator[Visit]:
    """A stranger's browser."""
    visitor = Visit(chrome, live)
    yield visitor
    visitor.close()


def a_member(email: str, team: str, role: Role = Role.OWNER) -> User:
    """A person of that team whose password is `PASSWORD`."""
    with transaction() as db:
        user, _ = teams.add_user(db, email, team, role)
        teams.set_password(db, user, PASSWORD)
        return user


@pytest.fixture
def owner(visit: Visit, request: pytest.FixtureRequest) -> Visit:
    """The owner of a team that no other test sees, signed in."""
    name = request.node.name[:60]
    a_member(f"{abs(hash(name))}@example.com", name)
    visit.sign_in(f"{abs(hash(name))}@example.com")
    visit.page.wait_for_url("**/jobs")
    return visit


@pytest.fixture(scope="session")
def zips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny base models as zips for the upload: `encoder` and `chat`."""
    folder = tmp_path_factory.mktemp("zips")
    made = {}
    for name, maker in (("encoder", tiny_encoder), ("chat", tiny_causal_lm)):
        source = maker(folder / name)
        made[name] = folder / f"tiny-{name}.zip"
        with zipfile.ZipFile(made[name], "w") as archive:
            for path in sorted(source.iterdir()):
                archive.write(path, path.name)
    return made


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A CSV for a classifier: 60 rows, one of them without a label."""
    path = tmp_path / "moods.csv"
    lines = [
        f'"a {word} day number {n}",{label}'
        for n in range(30)
        for word, label in (("good", "yes"), ("bad", "no"))
    ]
    path.write_text("text,label\n" + "\n".join([*lines[:16], '"nobody knows",', *lines[16:]]) + "\n")
    return path
