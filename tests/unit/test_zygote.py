"""The process that forks trainers: fast, and nothing survives it. Real processes throughout."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from shared.tables import Slot
from tests.attempts import TINY, events, parquet, write_attempt
from worker import landlock, walls
from worker.slots import Slots
from worker.zygote import Trainer, Zygote, sandbox_facts

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Question {n}?"},
            {"role": "assistant", "content": f"Answer {n}."},
        ]
    }
    for n in range(8)
]
FOR_EVER = {"epochs": 100, "max_steps": 1_000_000, "batch_size": 1, "evaluations": 1, "checkpoints": 1}


@pytest.fixture(scope="module")
def zygote() -> Generator[Zygote]:
    zygote = Zygote.start()
    yield zygote
    zygote.stop()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["causal_lm"](tmp_path_factory.mktemp("base") / "tiny")


def attempt(folder: Path, base: Path, **spec: object) -> Path:
    """An attempt at chat fine-tuning of the tiny model."""
    rows = parquet(folder.with_suffix(".parquet"), ROWS * 100)
    knobs = {"max_length": 64, "valid_fraction": 0} | spec
    return write_attempt(
        folder, recipe="sft", spec=knobs, columns={"messages": "messages"}, base_model=base, train=rows
    )


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    """Until it is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether the process runs (one that has ended and waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def a_long_one(zygote: Zygote, folder: Path, base: Path) -> Trainer:
    """A trainer that has begun to train and would go on for hours."""
    trainer = zygote.fork(attempt(folder, base, **FOR_EVER))
    wait_for(lambda: events(folder, "step") or trainer.poll() is not None)
    assert trainer.poll() is None, (folder / "output.log").read_text()
    return trainer


def test_a_trainer_is_forked_in_milliseconds_and_does_its_attempt(zygote: Zygote, base: Path, tmp_path: Path):
    assert zygote.fork(attempt(tmp_path / "first", base, max_steps=1)).wait(120) == 0
    folder = attempt(tmp_path / "second", base, max_steps=1)
    started = time.monotonic()
    trainer = zygote.fork(folder)
    latency = time.monotonic() - started
    assert trainer.wait(60) == 0
    assert latency < 2, "a cold start takes longer than that on any machine"
    assert [event["data"]["stage"] for event in events(folder, "stage")][-1] == "done"
    assert zygote.alive


def test_a_trainer_with_the_pid_of_an_earlier_one_has_an_end_of_its_own():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, lifeline = os.pipe()
    zygote = Zygote(subprocess.Popen(["/bin/sleep", "60"]), ours, lifeline)

    def forked(*words: dict[str, int]) -> Trainer:
        for word in words:
            theirs.send(json.dumps(word).encode())
        return zygote.fork(Path("/"))

    try:
        first = forked({"forked": 4711}, {"exited": 4711, "code": 0})
        second = forked({"forked": 4711})
        assert (first.poll(), second.poll()) == (0, None)
        theirs.send(json.dumps({"exited": 4711, "code": 20}).encode())
        assert (first.poll(), second.poll()) == (0, 20)
    finally:
        zygote.stop()
        theirs.close()
        os.close(reading)


def test_terminate_lets_it_save_and_kill_does_not(zygote: Zygote, base: Path, tmp_path: Path):
    polite = a_long_one(zygote, tmp_path / "polite", base)
    polite.terminate()
    assert polite.wait(30) == 75
    assert list((tmp_path / "polite" / "checkpoints").glob("step-*"))
    abrupt = a_long_one(zygote, tmp_path / "abrupt", base)
    abrupt.kill()
    assert abrupt.wait(10) == -signal.SIGKILL
    assert not (tmp_path / "abrupt" / "checkpoints").exists()


def test_a_trainer_has_no_network_no_credentials_and_no_way_to_more_rights(
    zygote: Zygote, base: Path, tmp_path: Path
):
    trainer = a_long_one(zygote, tmp_path / "walled", base)
    proc = Path(f"/proc/{trainer.pid}")
    told = dict(line.split("=", 1) for line in (proc / "environ").read_text().split("\0") if "=" in line)
    assert not [name for name in told if "SECRET" in name or "PASSWORD" in name or name.endswith("_URL")]
    assert told["HF_HUB_OFFLINE"] == "1"
    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert (proc / "oom_score_adj").read_text().strip() == str(walls.OOM_SCORE)
    if sandbox_facts()["network_namespace"]:
        assert (proc / "ns" / "net").readlink() != Path("/proc/self/ns/net").readlink()
        interfaces = (proc / "net" / "dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    trainer.kill()
    trainer.wait(10)


def test_credentials_stay_with_the_supervisor():
    kept = walls.environment(
        {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "DATABASE_URL": "y", "CUDA_HOME": "/c"}
    )
    assert kept["PATH"] == "/bin"
    assert kept["CUDA_HOME"] == "/c"
    assert not {"AWS_SECRET_ACCESS_KEY", "DATABASE_URL"} & kept.keys()
    assert kept["GOMP_SPINCOUNT"] == "2000", "threads that spin for long starve others"


def test_what_a_trainer_prints_goes_to_its_log(zygote: Zygote, tmp_path: Path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "attempt.json").write_text('{"kind": "train", "recipe": 5}')
    trainer = zygote.fork(folder)
    assert trainer.wait(30) == 1
    wait_for(lambda: "ValidationError" in (folder / "output.log").read_text(), 5)
    assert events(folder, "error")[-1]["data"]["code"] == "crashed"


def test_the_death_of_the_zygote_is_the_death_of_its_trainers(base: Path, tmp_path: Path):
    zygote = Zygote.start()
    trainer = a_long_one(zygote, tmp_path / "orphan", base)
    zygote.process.kill()
    wait_for(lambda: not runs(trainer.pid), 1)
    assert trainer.wait(5) == -signal.SIGKILL
    assert not zygote.alive
    with pytest.raises(OSError, match="gone"):
        zygote.fork(tmp_path / "orphan")
    zygote.stop()


def test_nothing_is_left_a_second_after_the_worker_is_killed(base: Path, tmp_path: Path):
    folder = attempt(tmp_path / "left", base, **FOR_EVER)
    code = (
        "import sys, time; from pathlib import Path; from worker.zygote import Zygote\n"
        "zygote = Zygote.start(); trainer = zygote.fork(Path(sys.argv[1]))\n"
        "print(zygote.process.pid, trainer.pid, flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pids = [int(word) for word in worker.stdout.readline().split()]
    wait_for(lambda: events(folder, "step"))
    assert all(runs(pid) for pid in pids)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    wait_for(lambda: not any(runs(pid) for pid in pids), 1)


DAEMON = """
import os, sys, time
from pathlib import Path
from worker import zygote
def attacked(folder, stop, **more):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        Path(folder, "daemon").write_text(str(os.getpid()))
        time.sleep(600)
    while not (Path(folder, "daemon").exists() and Path(folder, "daemon").read_text()):
        time.sleep(0.01)
    return 0
def warm_up():
    import worker.engine.__main__ as engine
    engine.run = attacked
zygote.warm_up = warm_up
zygote.main()
"""


def test_a_daemon_that_a_trainer_leaves_behind_ends_with_it(monkeypatch, tmp_path: Path):
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **more: popen([command[0], "-c", DAEMON, *command[3:]], **more)
    )
    (tmp_path / "attempt.json").write_text("{}")
    zygote = Zygote.start()
    try:
        assert zygote.fork(tmp_path).wait(60) == 0
        daemon = int((tmp_path / "daemon").read_text())
        wait_for(lambda: not runs(daemon), 1)
    finally:
        zygote.stop()


STUBBORN = """
import ctypes, os, time
from pathlib import Path
from worker import zygote
def stubborn(folder, stop, **more):
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    Path(folder, "pid").write_text(str(os.getpid()))
    time.sleep(600)
def warm_up():
    import worker.engine.__main__ as engine
    engine.run = stubborn
zygote.warm_up = warm_up
zygote.main()
"""
WORKER = f"""
import subprocess, sys, time
from pathlib import Path
from shared.tables import Slot
from worker.slots import Slots
from worker.zygote import Zygote
popen = subprocess.Popen
subprocess.Popen = lambda command, **more: popen([command[0], "-c", {STUBBORN!r}, *command[3:]], **more)
slots = Slots(Path(sys.argv[1]), {{Slot.COMPUTE: 1}})
index = slots.take(Slot.COMPUTE)
zygote = Zygote.start()
zygote.fork(Path(sys.argv[2]), slots.locks(Slot.COMPUTE, [index]))
print(zygote.process.pid, flush=True)
time.sleep(600)
"""


def test_a_slot_is_nobodys_while_a_trainer_of_a_killed_worker_lives(tmp_path: Path):
    slots, folder = tmp_path / "slots", tmp_path / "attempt"
    folder.mkdir()
    (folder / "attempt.json").write_text("{}")
    command = [sys.executable, "-c", WORKER, str(slots), str(folder)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    zygote = int(worker.stdout.readline())
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    trainer = int((folder / "pid").read_text())
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    wait_for(lambda: not runs(zygote), 5)
    try:
        assert runs(trainer), "it must outlive its worker here"
        assert Slots(slots, {Slot.COMPUTE: 1}).take(Slot.COMPUTE) is None
    finally:
        os.kill(trainer, signal.SIGKILL)
    wait_for(lambda: not runs(trainer), 5)
    wait_for(lambda: Slots(slots, {Slot.COMPUTE: 1}).take(Slot.COMPUTE) == 0, 5)


def test_a_slot_is_free_again_when_its_trainer_has_ended_and_its_worker_gives_it_back(
    zygote: Zygote, base: Path, tmp_path: Path
):
    slots = Slots(tmp_path / "slots", {Slot.COMPUTE: 1})
    index = slots.take(Slot.COMPUTE)
    assert index == 0
    folder = attempt(tmp_path / "short", base, max_steps=1)
    assert zygote.fork(folder, slots.locks(Slot.COMPUTE, [index])).wait(120) == 0
    slots.give_back(Slot.COMPUTE, index, None)
    assert Slots(tmp_path / "slots", {Slot.COMPUTE: 1}).take(Slot.COMPUTE) == 0


BURGLAR = """
import json, os
from pathlib import Path
from worker import zygote
def attacked(folder, stop, **more):
    told = json.loads(Path(folder, "attempt.json").read_text())
    def tried(what):
        try:
            what()
            return "done"
        except OSError as wrong:
            return type(wrong).__name__
    secret, supervisor = Path(told["wanted"][1:]), os.environ["SUPERVISOR"]
    found = {
        "read its own data": tried(Path(told["train"]).read_bytes),
        "write in its folder": tried(lambda: Path(folder, "made").write_text("x")),
        "write in its cache": tried(lambda: Path(told["cache"], "made").write_text("x")),
        "change its data": tried(lambda: Path(told["train"]).write_text("x")),
        "read another's file": tried(secret.read_bytes),
        "write beside it": tried(lambda: secret.with_name("made").write_text("x")),
        "list a folder": tried(lambda: list(secret.parent.iterdir())),
        "read the supervisor's environment": tried(Path("/proc", supervisor, "environ").read_bytes),
        "signal the supervisor": tried(lambda: os.kill(int(supervisor), 0)),
        "move its file out": tried(lambda: Path(folder, "made").rename(secret.with_name("moved"))),
    }
    Path(folder, "found.json").write_text(json.dumps(found))
    return 0
def warm_up():
    import worker.engine.__main__ as engine
    engine.run = attacked
zygote.warm_up = warm_up
zygote.main()
"""


@pytest.mark.skipif(landlock.version() < 6, reason="needs a kernel with Landlock that scopes signals")
def test_a_trainer_opens_only_what_its_attempt_needs(monkeypatch, tmp_path: Path):
    popen = subprocess.Popen

    def burgled(command: list[str], env: dict[str, str], **more):
        env = env | {"SUPERVISOR": str(os.getpid())}
        return popen([command[0], "-c", BURGLAR, *command[3:]], env=env, **more)

    monkeypatch.setattr(subprocess, "Popen", burgled)
    folder, cache, others = (tmp_path / name for name in ("attempt", "cache", "others"))
    for place in (folder, cache, others):
        place.mkdir()
    (others / "secret").write_text("s")
    (tmp_path / "rows.parquet").write_text("rows")
    told = {"train": str(tmp_path / "rows.parquet"), "cache": str(cache), "wanted": f"_{others / 'secret'}"}
    (folder / "attempt.json").write_text(json.dumps(told))
    zygote = Zygote.start()
    try:
        assert zygote.fork(folder).wait(60) == 0
    finally:
        zygote.stop()
    found = json.loads((folder / "found.json").read_text())
    allowed = {name for name, answer in found.items() if answer == "done"}
    assert allowed == {"read its own data", "write in its folder", "write in its cache"}, found
    assert set(found.values()) == {"done", "PermissionError"}


def test_many_threads_may_ask_at_once(zygote: Zygote, base: Path, tmp_path: Path):
    from concurrent.futures import ThreadPoolExecutor

    def one(number: int) -> int:
        return zygote.fork(attempt(tmp_path / str(number), base, max_steps=1)).wait(120)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [0] * 4


def test_the_facts_of_the_sandbox_are_plain():
    facts = sandbox_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["dies_with_worker"]


def test_the_watchdog_alone_ends_a_trainer(base: Path, tmp_path: Path):
    zygote = Zygote.start()
    trainer = a_long_one(zygote, tmp_path / "watched", base)
    os.kill(zygote.process.pid, signal.SIGSTOP)
    os.close(zygote.lifeline)
    wait_for(lambda: not runs(trainer.pid), 1)
    zygote.process.kill()
    zygote.process.wait()
    zygote.channel.close()
