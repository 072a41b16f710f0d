"""The rights of a trainer, whose worker may be root's: none of root's, few devices, no sight of its zygote."""

import json
import os
import subprocess

import pytest

from worker import landlock
from worker.zygote import Zygote

CURIOUS = """
import json, os
from pathlib import Path
from worker import walls, zygote
restrict = walls.landlock.restrict
walls.landlock.restrict = lambda folder, given: given.get("landlock", True) and restrict(folder, given)
def curious(folder, stop, *, forked):
    def tried(what):
        try:
            what()
            return "done"
        except PermissionError:
            return "refused"
    forked()
    shared = Path("/dev/shm", f"burnish-{os.getpid()}")
    status = dict(line.split(":\\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
    found = {
        "rights": sum(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")),
        "bound": int(status["CapBnd"], 16),
        "forget": tried(lambda: Path("/dev/null").write_text("x")),
        "chance": tried(lambda: Path("/dev/urandom").open("rb").read(1)),
        "shared memory": tried(lambda: (shared.write_text("x"), shared.unlink())),
        "other devices": tried(lambda: os.close(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))),
        "the zygote's environment": tried(Path("/proc", str(os.getppid()), "environ").read_bytes),
        "its own environment": tried(Path("/proc/self/environ").read_bytes),
        "its own folder": tried(lambda: (folder / "made").write_text("x")),
    }
    (folder / "found.json").write_text(json.dumps(found))
    return 0
def warm_up():
    import worker.engine.__main__ as engine
    engine.run = curious
zygote.warm_up = warm_up
zygote.main()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What a trainer alone, one of two processes and one without Landlock have found."""
    popen, told = subprocess.Popen, {}
    with pytest.MonkeyPatch.context() as patch:
        curious = lambda command, **more: popen([command[0], "-c", CURIOUS, *command[3:]], **more)  # noqa: E731
        patch.setattr(subprocess, "Popen", curious)
        zygote = Zygote.start()
    try:
        for name, given in (("alone", {}), ("of two", {"processes": 2}), ("open", {"landlock": False})):
            folder = tmp_path_factory.mktemp("rights")
            (folder / "attempt.json").write_text(json.dumps(given))
            assert zygote.fork(folder).wait(60) == 0, (folder / "output.log").read_text()
            told[name] = json.loads((folder / "found.json").read_text())
    finally:
        zygote.stop()
    return told


def test_a_trainer_has_no_right_of_roots_and_writes_in_its_folder_all_the_same(found: dict[str, dict]):
    for told in found.values():
        assert told["rights"] == 0
        assert told["bound"] == 0 or os.geteuid() != 0
        assert (told["its own folder"], told["its own environment"]) == ("done", "done")


@pytest.mark.skipif(not landlock.version(), reason="needs a kernel with Landlock")
def test_a_trainer_opens_few_devices_and_shares_memory_only_with_other_processes_of_its_own(
    found: dict[str, dict],
):
    assert (found["alone"]["forget"], found["alone"]["chance"]) == ("done", "done")
    assert found["alone"]["other devices"] == "refused"
    assert (found["alone"]["shared memory"], found["of two"]["shared memory"]) == ("refused", "done")


def test_a_zygote_is_not_to_be_read_also_where_there_is_no_landlock(found: dict[str, dict]):
    assert found["open"]["the zygote's environment"] == "refused"
