"""The benchmarks of the queue still run: each once, small, with nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.sections import BENCH

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_benchmarks_of_the_queue_still_run():
    before = {page: page.read_bytes() for page in BENCH.iterdir()}
    files = [f"tests/bench/test_{name}.py" for name in ("claims", "load", "first_step")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "bench", *files],
        cwd=ROOT, env=os.environ | {"BENCH_QUICK": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert {page: page.read_bytes() for page in BENCH.iterdir()} == before
