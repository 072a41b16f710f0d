"""The real services under the tests: one embedded stack a pytest process, never a mock.

`stack` runs Postgres, Valkey and SeaweedFS in a temporary folder. `db` is a session whose
transaction is rolled back; `clean` is for tests that must commit. `live` adds gunicorn, a Celery
worker and beat as real processes over a database, bucket and broker database of their own on the
same servers. Before each test, settings point at what the test asks for.
"""

import os
from collections.abc import Generator
from typing import Any

import pytest
from sqlmodel import Session

from shared.db import engine
from tests import chromium
from tests.schedule import Together, needs_the_platform
from tests.services import Live, Stack, empty

SERVICES: dict[str, Stack | Live] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Aim at the services that this test uses, before its fixtures of any scope are made."""
    used = getattr(item, "fixturenames", ())
    aim = next((name for name in ("live", "stack") if name in used and name in SERVICES), None)
    if aim:
        SERVICES[aim].aim()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Which process runs which tests."""
    return Together(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """One of several processes that has run all tests of the platform needs it no longer."""
    yield
    several = "PYTEST_XDIST_WORKER" in os.environ and "live" in SERVICES
    if several and nextitem and needs_the_platform(item.nodeid) and not needs_the_platform(nextitem.nodeid):
        SERVICES.pop("live").stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a Chromium the browser suite is skipped; with CI=true that is a failure."""
    driven = [item for item in items if item.get_closest_marker("browser")]
    if not driven or chromium.find():
        return
    if os.environ.get("CI") == "true":
        pytest.exit("No Chromium for the browser suite, and CI=true.", returncode=1)
    for item in driven:
        item.add_marker(pytest.mark.skip(reason="no Chromium: install one, or name it in CHROMIUM"))


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """How pytest-playwright starts the browser that `tests.chromium` found."""
    walls = ["--no-sandbox"] if os.geteuid() == 0 else []
    return {"executable_path": chromium.find(), "args": [*walls, "--disable-dev-shm-usage"]}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """Running servers, migrated, with the known base models and the bucket in them."""
    running = Stack(tmp_path_factory.mktemp("stack"))
    try:
        running.start()
        SERVICES["stack"] = running
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def live(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Generator[Live]:
    """Web, worker and beat as processes, with short heartbeat, lease and sweep."""
    running = Live(stack, tmp_path_factory.mktemp("live"))
    try:
        running.start()
        SERVICES["live"] = running
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module", autouse=True)
def nothing_goes_on(request: pytest.FixtureRequest) -> Generator[None]:
    """What a file's tests have left running on the platform would slow down all that come after it."""
    yield
    platform = SERVICES.get("live")
    if isinstance(platform, Live) and needs_the_platform(request.node.nodeid):
        platform.cancel_all()


@pytest.fixture
def db(stack: Stack) -> Generator[Session]:
    """A session inside a transaction that is rolled back: a clean database for each test."""
    with engine().connect() as connection:
        outer = connection.begin()
        with Session(connection, expire_on_commit=False, join_transaction_mode="create_savepoint") as session:
            yield session
        outer.rollback()


@pytest.fixture
def clean(stack: Stack, request: pytest.FixtureRequest) -> Generator[None]:
    """Empty tables and an empty broker, before the test and after it. Not together with `live`."""
    if "live" in request.fixturenames:
        pytest.fail("`clean` would empty the tables under the live worker; make a team of your own instead.")
    empty()
    yield
    empty()
