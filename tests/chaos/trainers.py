"""Trainers that die again and again, that flood, that try to get out (F35, F40, F44)."""

import json
import os
import signal
import time
from pathlib import Path

from shared.tables import State
from tests.chaos.cluster import SERVERS, Cluster
from tests.chaos.processes import everybody, lease_of, living, trainers_of
from tests.chaos.scenario import scenario
from tests.chaos.workload import MEDIUM, SHORT, Submitted, attempts, holder, row
from tests.chaos.world import World
from tests.services import until

SUPERVISOR_BYTES = 200 << 20

FLOOD = """
line = b"\\x1b[31m\\0\\xff" * 20_000  # no newline, an escape, NUL, bytes that are no text
for _ in range(2_000):
    os.write(1, line)
os.write(1, b"\\n")
"""

ESCAPE = """
import json, socket
found = {}
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
    "F40",
    "a trainer prints 200 MB without a newline, with escapes, NUL and no text",
    "cut off at 2 MB; the worker stays small; the job goes on",
)
def a_trainer_floods(world: World) -> None:
    job = attacked(world, FLOOD)
    name = holder(world.cluster, job)
    world.cluster.attack.unlink()
    log = world.cluster.folder / name / "attempts" / attempts(job)[0].lease_id / "output.log"
    most = most_log = 0
    while row(job).state == State.RUNNING:
        most = max(most, memory(world.cluster.pid(name)))
        most_log = max(most_log, log.stat().st_size if log.exists() else 0)
        time.sleep(0.2)
    assert row(job).state == State.SUCCEEDED
    assert most < SUPERVISOR_BYTES, f"the worker took {most >> 20} MiB"
    assert 0 < most_log <= 2 << 20


@scenario(
    "F44",
    "a trainer tries the servers' ports, looks for secrets, leaves a daemon behind",
    "nothing answers, nothing is found; the daemon is gone after the job",
)
def a_trainer_tries_to_get_out(world: World) -> None:
    known = world.cluster.stack.home.ports()
    job = attacked(world, ESCAPE.replace("PORTS", repr(sorted(known.values()))), MEDIUM)
    name = holder(world.cluster, job)
    folder = world.cluster.folder / name / "attempts" / attempts(job)[0].lease_id
    until(lambda: "FOUND" in (folder / "output.log").read_text(), 30, "what it found")
    world.cluster.attack.unlink()
    told = next(line for line in (folder / "output.log").read_text().splitlines() if "FOUND" in line)
    found = json.loads(told.removeprefix("FOUND "))
    assert found.pop("environment") == []
    assert "open" not in found.values(), found
    assert len(found) >= len(SERVERS)
    daemons = left_by(folder)
    assert daemons, "the daemon was there"
    world.work.await_end([job], 90)
    until(lambda: not living(daemons), 2, "the daemon is gone with its job")


def left_by(folder: Path) -> set[int]:
    """The processes but the trainer whose output goes where that attempt's does."""
    pipes = {pid: output(pid) for pid in everybody()}
    (trainer,) = (pid for pid in pipes if lease_of(pid) == folder.name)
    return {pid for pid, pipe in pipes.items() if pipe and pipe == pipes[trainer]} - {trainer}


def output(pid: int) -> str:
    """What its standard output is."""
    try:
        return str(Path(f"/proc/{pid}/fd/1").readlink())
    except OSError:
        return ""
