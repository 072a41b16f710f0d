"""`make bench` runs the scripts of this folder; each writes its page in docs/bench."""

import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_training_beside_trl():
    if find_spec("trl") is None:
        pytest.skip("TRL is not here: install the extra `bench`.")
    subprocess.run([sys.executable, "-m", "tests.bench.training"], check=True)
