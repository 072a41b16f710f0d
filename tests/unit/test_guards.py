"""The list of guards that `make mutants` removes follows the code: each still stands where the list says."""

from pathlib import Path

import pytest

from tests.mutants.__main__ import removed
from tests.mutants.guards import GUARDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_where_the_list_says(guard):
    assert removed((ROOT / guard.file).read_text(), guard)
    for test in guard.tests:
        path, name = test.split("::")
        assert f"def {name.split('[')[0]}(" in (ROOT / path).read_text()
