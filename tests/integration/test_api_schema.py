"""Schemathesis reads `/openapi.json` and looks for requests that break what it promises."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shared.db import transaction
from tests.factories import a_base_model, a_dataset, a_file, a_job, a_team, a_token
from tests.services import empty
from tests.visitor import the_web

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 40  # of each operation
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def described(stack):
    """The API of a team that has a little of everything."""
    stack.aim()
    empty()
    app = the_web()
    with transaction() as db:
        team = a_team(db)
        a_dataset(db, team)
        a_base_model(db, team=team)
        a_job(db, team)
        a_file(db, team, purpose="batch")
        secret = a_token(db, team)
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    schema.config.update(headers={"Authorization": f"Bearer {secret}"})
    yield schema
    empty()


def test_no_request_breaks_the_document(described, subtests):
    seen: set[int] = set()
    for found in described.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def attempt(case):
            seen.add(case.call_and_validate(checks=CHECKS).status_code)

        with subtests.test(operation.label):
            attempt()
    assert {200, 400, 404} <= seen
    assert 401 not in seen
