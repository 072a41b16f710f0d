"""What a person is told after a verb is what the job does."""

import pytest

from shared import jobs
from shared.db import transaction
from shared.tables import Kind
from tests.factories import a_job, a_user, a_worker
from tests.visitor import Visitor


@pytest.mark.parametrize(
    ("verb", "kind", "running", "said"),
    [
        ("pause", Kind.TRAIN, False, "The job is paused."),
        ("pause", Kind.TRAIN, True, "It pauses at the end of this step."),
        ("cancel", Kind.TRAIN, False, "The job is cancelled."),
        ("cancel", Kind.TRAIN, True, "It stops at the end of this step and keeps the checkpoint."),
        ("cancel", Kind.IMPORT, True, "It stops within moments."),
    ],
)
def test_what_is_said_fits_what_happens(app, alpha, verb, kind, running, said):
    with transaction() as db:
        member = a_user(db, alpha.team)
        job = a_job(db, alpha.team, kind)
        assert not running or jobs.claim(db, a_worker(db).id, job.slot)
    visitor = Visitor(app, member)
    page = visitor.get(visitor.post(f"/jobs/{job.id}/{verb}").headers["Location"]).text
    told = [line for line in (said, "keeps the checkpoint", "at the end of this step.") if line in page]
    assert told == [
        line for line in (said, "keeps the checkpoint", "at the end of this step.") if line in said
    ]
