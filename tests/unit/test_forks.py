"""What the supervisor makes of a zygote's answers: here one that is slow."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from worker.zygote import Zygote


def test_a_late_answer_is_nobodys_trainer(tmp_path: Path):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, lifeline = os.pipe()
    zygote = Zygote(subprocess.Popen(["sleep", "60"]), ours, lifeline)
    try:
        with pytest.raises(OSError, match="does not answer"):
            zygote.fork(tmp_path / "first", timeout=0.2)
        theirs.send(json.dumps({"forked": 1001}).encode())
        with pytest.raises(OSError, match="gone"):
            zygote.fork(tmp_path / "second", timeout=0.2)
        assert not zygote.alive, "so that the keeper starts another"
        assert zygote.process.wait(5) < 0, "its trainers end with it, also the one whose pid came too late"
    finally:
        zygote.stop()
        theirs.close()
        os.close(reading)
