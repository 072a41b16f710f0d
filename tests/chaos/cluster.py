"""The cluster that the chaos tests break: two web processes, two workers of two slots, two beats, and
Postgres, Valkey and SeaweedFS of its own, with a fault link between every program and every server.

Each worker has a home of its own, as on a machine of its own. This process speaks to the servers
directly, so that what it observes is not what it breaks.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from sqlmodel import select

from shared.db import transaction
from shared.servers import http_answers
from shared.stack import beat_command, free_port, random_ports, web_command, worker_command
from shared.supervisor import Program
from shared.tables import Worker
from tests.chaos.processes import descendants
from tests.chaos.proxy import Fault, Link, Proxy
from tests.receiver import Receiver
from tests.services import SHORT, Stack, aim, until

WEBS, WORKERS, BEATS = ("web-1", "web-2"), ("worker-1", "worker-2"), ("beat-1", "beat-2")
PROGRAMS = (*WEBS, *WORKERS, *BEATS)
SERVERS = ("postgres", "valkey", "seaweedfs")
ADDRESS = {"postgres": "DATABASE_URL", "valkey": "REDIS_URL", "seaweedfs": "S3_ENDPOINT"}
SLOTS = 2  # of computation, on each worker
DRAIN_SECONDS = 45
ROOT = Path(__file__).parents[2]
HOSTILE = Path(__file__).with_name("hostile.py")


class Cluster:
    """Start it in the main thread: programs die with the thread that started them."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.folder = folder
        self.receiver = receiver  # of the teams' webhooks
        self.attack = folder / "hostile" / "attack.py"  # what trainers do first, while it is there
        self.stack = Stack(folder / "servers")
        self.proxy = Proxy()
        self.links: dict[tuple[str, str], Link] = {}
        self.ports: dict[str, int] = {}
        self.frozen: set[str] = set()

    # --- up and down ------------------------------------------------------------------------------
    def start(self) -> None:
        """Everything up: a minute at most."""
        self.attack.parent.mkdir(parents=True)
        shutil.copy(HOSTILE, self.attack.with_name("sitecustomize.py"))
        self.stack.start()
        self.supervisor = self.stack.supervisor
        for name in WEBS:
            self.ports[name] = free_port(random_ports()["postgres"] + 7000, self.ports.values())
        for program in PROGRAMS:
            for server in SERVERS:
                port = urlsplit(self.stack.environment[ADDRESS[server]]).port
                self.links[program, server] = self.proxy.link(port or 0)
        aim(self.environment())
        self.supervisor.start([self.program(name) for name in PROGRAMS])
        self.await_workers()

    def stop(self) -> None:
        """Everything down, at once."""
        for name in list(self.frozen):
            self.thaw(name)
        self.stack.stop()
        self.proxy.close()

    def environment(self, program: str = "") -> dict[str, str]:
        """What a program's settings are: its links instead of the servers' own addresses."""
        own = {"COMPUTE_SLOTS": str(SLOTS), "WEBHOOK_HOSTS": self.receiver.at}
        known = self.stack.environment | SHORT | own
        if not program:
            return known | {"PUBLIC_URL": self.url(WEBS[0])}
        home = self.folder / program
        home.mkdir(exist_ok=True)
        through = {ADDRESS[s]: ported(known[ADDRESS[s]], self.links[program, s].port) for s in SERVERS}
        return known | through | {
            "BURNISH_HOME": str(home),
            "PUBLIC_URL": self.url(program if program in WEBS else WEBS[0]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join([str(self.attack.parent), str(ROOT)]),
        }  # fmt: skip

    def url(self, web: str) -> str:
        return f"http://127.0.0.1:{self.ports[web]}"

    def program(self, name: str, **more: str) -> Program:
        """Web, worker or beat of that name, with more of an environment."""
        command, ready = beat_command(), lambda: True
        if name in WEBS:
            port = self.ports[name]
            command, ready = web_command("127.0.0.1", port), lambda: http_answers(port, "/health")
        elif name in WORKERS:
            command = worker_command()
        environment = self.environment(name) | more
        return Program(name, command, 1, ready, environment, stop_seconds=DRAIN_SECONDS)

    # --- one program or server --------------------------------------------------------------------
    def pid(self, name: str) -> int:
        return self.supervisor.children[name].process.pid

    def alive(self, name: str) -> bool:
        return self.supervisor.children[name].process.poll() is None

    def kill(self, name: str) -> None:
        """kill -9: of a worker or beat alone, of a web or server with the processes that it has forked."""
        with suppress(ProcessLookupError):
            os.kill(self.pid(name), signal.SIGSTOP)  # it forks no more while we look
        below = set() if name in (*WORKERS, *BEATS) else descendants(self.pid(name))
        for pid in {self.pid(name)} | below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.supervisor.children[name].process.wait()

    def begin(self, name: str) -> None:
        """Start it again; a server is waited for."""
        child = self.supervisor.children[name]
        program = self.program(name) if name in PROGRAMS else child.program
        if name == "postgres":
            for stale in self.stack.home.folder.glob("postgres/postmaster.pid"):
                stale.unlink()
        self.supervisor.launch(program)
        if name not in WORKERS:
            until(program.ready, 40, f"{name} is ready again")

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to stop and wait until it is gone."""
        process = self.supervisor.children[name].process
        process.send_signal(number)
        until(lambda: process.poll() is not None, DRAIN_SECONDS, f"{name} ends")

    def freeze(self, name: str, *, alone: bool = False) -> None:
        """SIGSTOP of the process, and of those below it unless `alone`."""
        self.frozen.add(name)
        self.signal(name, signal.SIGSTOP, alone=alone)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.frozen.discard(name)
        self.signal(name, signal.SIGCONT)

    def signal(self, name: str, number: signal.Signals, *, alone: bool = False) -> None:
        top = self.pid(name)
        for pid in {top} | (set() if alone else descendants(top)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_all(self) -> None:
        """kill -9 of every program and of every server, with all that is below them."""
        for name in (*PROGRAMS, *SERVERS):
            self.kill(name)

    def begin_all(self) -> None:
        """Start what is down, servers first; workers are waited for."""
        for name in (*SERVERS, *PROGRAMS):
            if not self.alive(name):
                self.begin(name)
        self.await_workers()

    @contextmanager
    def copied_database(self) -> Generator[Callable[[], None]]:
        """Copies the database's files as they are now. The value puts the copy in their place: the server is
        killed, and started from the copy where it had been alive.
        """
        files = self.stack.home.folder / "postgres"
        copy = files.with_name("postgres.copy")
        self.end("postgres", signal.SIGINT)
        subprocess.run(["cp", "-a", files, copy], check=True)
        self.begin("postgres")

        def put_back() -> None:
            running = self.alive("postgres")
            self.kill("postgres")
            shutil.rmtree(files)
            copy.rename(files)
            if running:
                self.begin("postgres")

        try:
            yield put_back
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    # --- links ------------------------------------------------------------------------------------
    def fault(self, fault: Fault, server: str, programs: tuple[str, ...] = PROGRAMS) -> None:
        """From now on that goes wrong between these programs and the server."""
        for program in programs:
            self.links[program, server].set(fault)

    def heal(self) -> None:
        """No link has a fault, nothing is frozen, nothing is down."""
        for link in self.links.values():
            link.heal()
        for name in list(self.frozen):
            self.thaw(name)
        self.begin_all()

    @contextmanager
    def faulty(
        self, fault: Fault, server: str, programs: tuple[str, ...] = PROGRAMS, seconds: float = 0
    ) -> Generator[None]:
        """Inside the block that goes wrong, for at least so many seconds."""
        until_then = time.monotonic() + seconds
        self.fault(fault, server, programs)
        try:
            yield
            time.sleep(max(0.0, until_then - time.monotonic()))
        finally:
            for program in programs:
                self.links[program, server].heal()

    # --- what is there ----------------------------------------------------------------------------
    def worker_ids(self) -> dict[str, str]:
        """{id in the database: name} of the running workers."""
        pids = {self.pid(name): name for name in WORKERS if self.alive(name)}
        with transaction() as db:
            return {row.id: pids[row.pid] for row in db.exec(select(Worker)) if row.pid in pids}

    def await_workers(self, seconds: float = 120) -> None:
        """Wait until every running worker has said that it is there."""
        running = {name for name in WORKERS if self.alive(name)}
        until(lambda: running <= set(self.worker_ids().values()), seconds, "the workers' rows")


def ported(url: str, port: int) -> str:
    """The address with another port."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit(":", 1)[0] + f":{port}"))
