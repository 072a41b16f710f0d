"""What a trainer takes of the machine at most. Real trainers that try for more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker import limits, seccomp
from worker.zygote import Zygote

ROOT = Path(__file__).parents[2]
BOMB = """
import json, mmap, os, resource, socket, subprocess, threading
from pathlib import Path
from worker import limits, zygote
def greedy(folder, stop, *, forked):
    forked()
    def tried(what):
        try:
            what()
            return "done"
        except (OSError, MemoryError, RuntimeError) as wrong:
            return os.strerror(wrong.errno) if isinstance(wrong, OSError) else type(wrong).__name__
    def a_thread():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    def a_process():
        if os.fork() == 0:
            os._exit(0)
    def a_large_file():
        with open(folder / "large", "wb") as file:
            file.truncate(resource.getrlimit(resource.RLIMIT_FSIZE)[0] + 1)
    found = {
        "a thread": tried(a_thread),
        "a pair of sockets": tried(lambda: [end.close() for end in socket.socketpair()]),
        "a process": tried(a_process),
        "a program": tried(lambda: subprocess.run(["/bin/true"])),
        "a shell": tried(lambda: os.posix_spawn("/bin/sh", ["sh"], {})),
        "a socket": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "a file larger than the disk": tried(a_large_file),
        "more memory than there is": tried(lambda: mmap.mmap(-1, limits.memory() + (1 << 20), mmap.MAP_PRIVATE)),
        "a core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    }
    (folder / "found.json").write_text(json.dumps(found))
    return 0
def warm_up():
    import worker.engine.__main__ as engine
    engine.run = greedy
zygote.warm_up = warm_up
zygote.main()
"""


@pytest.mark.skipif(not seccomp.possible(), reason="needs a machine whose system calls are known")
def test_a_trainer_is_bounded_and_its_worker_lives(monkeypatch, tmp_path: Path):
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **more: popen([command[0], "-c", BOMB, *command[3:]], **more)
    )
    zygote = Zygote.start()
    try:
        for name in ("first", "second"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "attempt.json").write_text("{}")
            assert zygote.fork(folder).wait(60) == 0, (folder / "output.log").read_text()
            assert json.loads((folder / "found.json").read_text()) == {
                "a thread": "done",
                "a pair of sockets": "done",
                "a process": "Operation not permitted",
                "a program": "Operation not permitted",
                "a shell": "Operation not permitted",
                "a socket": "Permission denied",
                "a file larger than the disk": "File too large",
                "more memory than there is": "Cannot allocate memory",
                "a core": 0,
            }
        assert zygote.alive
    finally:
        zygote.stop()


THREADS = """
import os, threading
from pathlib import Path
from worker import limits
os.setresuid(54_321, 54_321, 54_321)
limits.THREADS, limits.PER_CPU = 64, 0
limits.limit(Path("/"), on_a_gpu=False, processes=1)
ends, count = threading.Event(), 0
try:
    while count < 4096:
        threading.Thread(target=ends.wait, daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count)
ends.set()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_user_besides_root_gets_no_threads_without_end():
    told = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert 32 < int(told.stdout) < 4096


def test_what_a_container_may_have_counts(monkeypatch, tmp_path: Path):
    whole = limits.memory()
    monkeypatch.setattr(limits, "OF_A_CONTAINER", tmp_path / "memory.max")
    assert limits.memory() == whole
    limits.OF_A_CONTAINER.write_text("max\n")
    assert limits.memory() == whole
    limits.OF_A_CONTAINER.write_text(f"{1 << 30}\n")
    assert limits.memory() == 1 << 30


SMALL = """
import resource
from worker.engine import importer
small = 1 << 31
resource.setrlimit(resource.RLIMIT_DATA, (small, small))
with importer.bounded_memory():
    assert resource.getrlimit(resource.RLIMIT_DATA) == (small, small)
"""


def test_an_import_works_on_a_machine_with_less_memory_than_it_may_take():
    told = subprocess.run(
        [sys.executable, "-c", SMALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
