"""The queue page costs the same however many jobs it shows, and says how many it does not show."""

from contextlib import contextmanager

import pytest
from sqlalchemy import event, text

from shared import jobs
from shared.db import engine, transaction
from shared.tables import Kind
from tests.factories import a_job, a_team, a_user, a_worker
from tests.visitor import Visitor


@contextmanager
def statements():
    """The SQL that is run meanwhile."""
    seen = []

    def note(_connection, _cursor, statement, *_):
        seen.append(statement)

    event.listen(engine(), "before_cursor_execute", note)
    yield seen
    event.remove(engine(), "before_cursor_execute", note)


@pytest.fixture
def visitor(app, alpha):
    with transaction() as db:
        other = a_team(db)
        worker = a_worker(db, slots={"compute": 2, "light": 1})
        for team in (alpha.team, other):
            a_job(db, team, Kind.INFER)
        for _ in range(2):
            assert jobs.claim(db, worker.id, "compute")
        a_job(db, other, Kind.INFER)
        user = a_user(db, alpha.team)
    return Visitor(app, user)


def wait(alpha, many):
    """So many more jobs of the team wait, each for its turn or for an import."""
    with transaction() as db:
        imports = a_job(db, alpha.team, Kind.IMPORT)
        for number in range(many):
            job = a_job(db, alpha.team, Kind.INFER)
            if number % 3 == 0:
                jobs.hold(db, job, {imports.id})


def test_the_page_asks_as_often_for_many_jobs_as_for_few(alpha, visitor):
    for _ in range(2):
        wait(alpha, 4)
    with statements() as few:
        assert "4 more jobs" not in visitor.get("/queue").text
    with transaction() as db:
        for _ in range(3):
            worker = a_worker(db, slots={"compute": 1})
            assert jobs.claim(db, worker.id, "compute")
    wait(alpha, 30)
    with statements() as many:
        page = visitor.get("/queue").text
    assert page.count("Why it waits") == 1
    assert page.count("It waits for another job to end.") > 10
    assert len(many) == len(few)


def test_the_page_says_how_many_more_wait(alpha, visitor):
    wait(alpha, 48)
    assert "of this team wait" not in visitor.get("/queue").text
    wait(alpha, 7)
    assert "7 more jobs of this team wait after these." in visitor.get("/queue").text


def test_jobs_of_one_base_model_are_submitted_without_waiting_for_each_other(alpha):
    """Within one thread, so that waiting for the other would end with the lock's time-out."""
    order = jobs.Order(
        team_id=alpha.team.id, recipe="sft", model=alpha.model.id, dataset_version_id=alpha.chat.id
    )
    with transaction() as first:
        jobs.submit(first, order)
        with transaction() as second:
            jobs.submit(second, order)
            assert second.connection().execute(text("SELECT count(*) FROM jobs")).scalar() == 1
