"""`make bench` measures inference beside plain transformers and writes docs/bench/inference.md."""

import subprocess
import sys

import pytest


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_inference_beside_plain_transformers():
    subprocess.run([sys.executable, "-m", "tests.bench.inference"], check=True)
