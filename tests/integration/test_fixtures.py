"""The fixtures keep tests apart."""

from sqlmodel import func, select

from shared import storage
from shared.db import transaction
from shared.tables import Team
from tests.factories import a_dataset, a_job, a_team


def count(db) -> int:
    return db.exec(select(func.count()).select_from(Team)).one()


def test_what_a_test_writes_through_db_is_gone_for_the_next(db):
    assert count(db) == 0
    a_team(db)
    db.commit()
    assert count(db) == 1


def test_the_next_one_sees_no_row(db):
    assert count(db) == 0


def test_what_clean_commits_is_seen_by_another_session(clean):
    with transaction() as db:
        job = a_job(db, a_team(db))
    with transaction() as db:
        assert db.get(type(job), job.id)


def test_after_clean_the_tables_are_empty_again(db):
    assert count(db) == 0


def test_a_dataset_of_the_factory_is_in_the_store(db):
    version = a_dataset(db, a_team(db), [{"text": "good", "label": "yes"}])
    assert version.key
    assert storage.exists(version.key)
