"""The network that a trainer reaches where it may have no network namespace, as in a container: none."""

import json
import socket
import subprocess
from pathlib import Path

import pytest

from worker import landlock, seccomp
from worker.zygote import Zygote

CALLER = """
import json, socket
from pathlib import Path
from worker import walls, zygote
walls.own_network = lambda: False
def calling(folder, stop, *, forked):
    def tried(kind, what):
        try:
            with socket.socket(socket.AF_INET, kind) as own:
                what(own)
            return "done"
        except PermissionError:
            return "refused"
    server = "127.0.0.1", json.loads((folder / "attempt.json").read_text())["port"]
    def look():
        return {
            "connect": tried(socket.SOCK_STREAM, lambda own: own.connect(server)),
            "listen": tried(socket.SOCK_STREAM, lambda own: own.bind(("127.0.0.1", 0))),
            "send": tried(socket.SOCK_DGRAM, lambda own: own.sendto(b"x", server)),
        }
    found = [look()]
    forked()
    found.append(look())
    (folder / "found.json").write_text(json.dumps(found))
    return 0
def warm_up():
    import worker.engine.__main__ as engine
    engine.run = calling
zygote.warm_up = warm_up
zygote.main()
"""


@pytest.mark.skipif(
    landlock.version() < landlock.TCP_SINCE or not seccomp.possible(),
    reason="needs a kernel whose Landlock knows TCP",
)
def test_a_trainer_alone_reaches_no_server_and_several_reach_one_another(monkeypatch, tmp_path: Path):
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **more: popen([command[0], "-c", CALLER, *command[3:]], **more)
    )
    zygote, found = Zygote.start(), {}
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            for processes in (1, 2):
                folder = tmp_path / str(processes)
                folder.mkdir()
                told = {"port": server.getsockname()[1], "processes": processes}
                (folder / "attempt.json").write_text(json.dumps(told))
                assert zygote.fork(folder).wait(60) == 0, (folder / "output.log").read_text()
                found[processes] = json.loads((folder / "found.json").read_text())
    finally:
        zygote.stop()
    every = ("connect", "listen", "send")
    landlocked = {"connect": "refused", "listen": "refused", "send": "done"}
    assert found[1] == [landlocked, dict.fromkeys(every, "refused")], "TCP by Landlock, then all by seccomp"
    assert found[2] == [dict.fromkeys(every, "done")] * 2
