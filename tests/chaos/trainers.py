"""Trainers that die again and again, that take all memory, that flood, that try to get out (F31, F35, F40, F44)."""

import json
import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from shared.budgets import HOST_MEMORY
from shared.tables import Outcome, State
from tests.chaos.cluster import WORKERS, Cluster
from tests.chaos.processes import everybody, lease_of, living, trainers_of
from tests.chaos.scenario import scenario
from tests.chaos.workload import MEDIUM, SHORT, Submitted, attempts, holder, row
from tests.chaos.world import World
from tests.services import until

GROWTH_BYTES = 64 << 20  # of a worker while its trainer prints 200 MB
TRAINER_BYTES = 256 << 20  # for what it takes beyond its zygote's

FLOOD = """
line = b"\\x1b[31m\\0\\xff" * 20_000  # no newline, an escape, NUL, bytes that are no text
for _ in range(2_000):
    os.write(1, line)
os.write(1, b"\\n")
"""

DEVOUR = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
print("READY", flush=True)
signal.sigwait({signal.SIGUSR2})
hoard = []
while True:
    hoard.append(b"x" * (16 << 20))
"""

ESCAPE = """
import json, socket
found = {}
for path, mode in SECRETS:
    try:
        open(path, mode).close()
        found[path] = "open"
    except OSError as no:
        found[path] = str(no)
for port in PORTS:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        found[f"port {port}"] = "open"
    except OSError as no:
        found[f"port {port}"] = str(no)
found["environment"] = sorted(name for name in os.environ if "AWS" in name or "URL" in name or "SECRET" in name)
daemon = os.fork()
if daemon == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in range(3, 64):
        try:
            os.close(number)
        except OSError:
            pass
    time.sleep(600)
    os._exit(0)
os.waitpid(daemon, 0)
print("FOUND " + json.dumps(found), flush=True)
"""


def attacked(world: World, code: str, epochs: int = SHORT) -> Submitted:
    """A job whose trainer does this first, inside its walls."""
    world.cluster.attack.write_text(f"import os\n{code}")
    world.hurt()
    return world.submit(epochs)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@scenario(
    "F35",
    "a trainer that dies by SIGSEGV whenever it has begun",
    "three attempts, then the end with its story; others go on",
)
def a_job_is_poison(world: World) -> None:
    poison, other = world.submit(MEDIUM), world.submit(MEDIUM)
    world.failures_expected = True
    deadline = time.monotonic() + 90
    while row(poison).state != State.FAILED and time.monotonic() < deadline:
        if row(poison).state == State.RUNNING:
            worker = world.cluster.folder / holder(world.cluster, poison)
            for pid in trainers_of_lease(world.cluster, worker.name, attempts(poison)[-1].lease_id):
                os.kill(pid, signal.SIGSEGV)
                world.hurt()
        time.sleep(0.05)
    assert row(poison).state == State.FAILED
    assert "SIGSEGV" in (row(poison).reason or ""), row(poison).reason
    assert len(attempts(poison)) <= 4
    world.work.await_end([other], 60)
    assert (row(other).state, len(attempts(other))) == (State.SUCCEEDED, 1)


def trainers_of_lease(cluster: Cluster, worker: str, lease: str) -> list[int]:
    """The trainers of that worker that work under the lease."""
    return [pid for pid in trainers_of(cluster.pid(worker)) if lease_of(pid) == lease]


@scenario(
    "F31",
    "the kernel kills a trainer for want of memory",
    "told in these words and tried once more; worker and database live",
)
def the_memory_runs_out(world: World) -> None:
    job = attacked(world, DEVOUR, MEDIUM)
    name = holder(world.cluster, job)
    log = output_of(world, name, job)
    until(lambda: log.exists() and "READY" in log.read_text(), 30, "it begins")
    world.cluster.attack.unlink()
    (trainer,) = trainers_of(world.cluster.pid(name))
    with little_memory(trainer):
        os.kill(trainer, signal.SIGUSR2)
        until(lambda: attempts(job)[0].ended_at, 30, "the kernel kills it")
    first = attempts(job)[0]
    assert (first.outcome, first.reason_code) == (Outcome.CRASHED, HOST_MEMORY)
    world.work.await_end([job], 60)
    assert len(attempts(job)) == 2


@contextmanager
def little_memory(pid: int) -> Generator[None]:
    """A cgroup in which that process gets `TRAINER_BYTES` more; then the kernel kills it."""
    old = Path("/sys/fs/cgroup/memory")
    top, limit = (old, "memory.limit_in_bytes") if old.is_dir() else (old.parent, "memory.max")
    group = top / f"burnish-chaos-{pid}"
    try:
        group.mkdir()
        (group / limit).write_text(str(TRAINER_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as no:
        raise AssertionError(f"This row needs a memory cgroup that one may write to: {no}") from no
    try:
        yield
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), 10, "the cgroup is empty")
        group.rmdir()


def output_of(world: World, worker: str, job: Submitted) -> Path:
    """Where the job's first attempt prints."""
    return world.cluster.folder / worker / "attempts" / attempts(job)[0].lease_id / "output.log"


@scenario(
    "F40",
    "a trainer prints 200 MB without a newline, with escapes, NUL and no text",
    "cut off at 2 MB; the worker does not grow with it; the job goes on",
)
def a_trainer_floods(world: World) -> None:
    job = attacked(world, FLOOD)
    name = holder(world.cluster, job)
    log = output_of(world, name, job)
    before = most = memory(world.cluster.pid(name))
    until(lambda: log.exists() and log.stat().st_size, 30, "it prints")
    world.cluster.attack.unlink()
    most_log = 0
    while row(job).state == State.RUNNING:
        most = max(most, memory(world.cluster.pid(name)))
        most_log = max(most_log, log.stat().st_size if log.exists() else 0)
        time.sleep(0.2)
    assert row(job).state == State.SUCCEEDED, row(job).reason
    assert most - before < GROWTH_BYTES, f"the worker grew by {(most - before) >> 20} MiB"
    assert 0 < most_log <= 2 << 20, f"{most_log} bytes were kept"


@scenario(
    "F44",
    "a trainer tries the servers' ports, reads what is secret, writes elsewhere, leaves a daemon behind",
    "nothing answers, nothing is found; the daemon is gone after the job",
)
def a_trainer_tries_to_get_out(world: World) -> None:
    ports = sorted(world.cluster.stack.home.ports().values())
    secrets = [(f"/proc/{world.cluster.pid(one)}/environ", "rb") for one in WORKERS]
    secrets += [(str(world.cluster.stack.home.env_file), "rb")]
    secrets += [(str(world.cluster.folder / one / "escaped"), "wb") for one in WORKERS]
    code = ESCAPE.replace("PORTS", repr(ports)).replace("SECRETS", repr(secrets))
    job = attacked(world, code, MEDIUM)
    name = holder(world.cluster, job)
    log = output_of(world, name, job)
    until(lambda: log.exists() and "FOUND" in log.read_text(), 30, "what it found")
    world.cluster.attack.unlink()
    told = next(line for line in log.read_text().splitlines() if "FOUND" in line)
    found = json.loads(told.removeprefix("FOUND "))
    assert found.pop("environment") == []
    assert "open" not in found.values(), found
    assert len(found) == len(ports) + len(secrets)
    lease = attempts(job)[0].lease_id
    until(lambda: trainers_of_lease(world.cluster, name, lease), 10, "the trainer has begun")
    (trainer,) = trainers_of_lease(world.cluster, name, lease)
    daemons = left_by(trainer)
    assert daemons, "the daemon was there"
    world.work.await_end([job], 90)
    until(lambda: not living(daemons), 2, "the daemon is gone with its job")


def left_by(trainer: int) -> set[int]:
    """The processes but the trainer itself whose output goes where the trainer's does."""
    pipes = {pid: output(pid) for pid in everybody()}
    return {pid for pid, pipe in pipes.items() if pipe and pipe == pipes[trainer]} - {trainer}


def output(pid: int) -> str:
    """What its standard output is."""
    try:
        return str(Path(f"/proc/{pid}/fd/1").readlink())
    except OSError:
        return ""
