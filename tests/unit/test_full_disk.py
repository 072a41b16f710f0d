"""A disk that is full while a checkpoint is written: a real file system without room, in a namespace of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attempts import events, parquet, write_attempt
from tests.factories import CHAT, tiny_causal_lm
from worker.exits import DISK_FULL

OWN = ["unshare", "--user", "--map-root-user", "--mount"]
ROOM = "64k"


def namespaces_allowed() -> bool:
    """Whether this user may mount in a namespace of its own."""
    tried = [*OWN, "mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(tried, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not namespaces_allowed(), reason="no mount in a namespace of one's own here")
def test_a_full_disk_is_told_as_such_and_no_half_checkpoint_stands(tmp_path: Path):
    attempt = write_attempt(
        tmp_path / "attempt",
        recipe="sft",
        spec={"epochs": 1, "batch_size": 4, "max_length": 64, "valid_fraction": 0, "checkpoints": 1},
        columns={"messages": "messages"},
        base_model=tiny_causal_lm(tmp_path / "base"),
        train=parquet(tmp_path / "rows.parquet", CHAT),
    )
    place = attempt / "checkpoints"
    place.mkdir()
    script = (
        f"mount -t tmpfs -o size={ROOM} none {place} && {sys.executable} -m worker.engine {attempt};"
        f" code=$?; ls {place}; exit $code"
    )
    done = subprocess.run(
        [*OWN, "sh", "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == DISK_FULL, done.stderr
    assert [name for name in done.stdout.split() if name.startswith("step-")] == []
    assert not events(attempt, "checkpoint")
