"""The embedded stack: real Postgres, Valkey and SeaweedFS from wheels, then web, worker and beat.

Everything lies in one data folder (BURNISH_HOME, default `.burnish`):

    env          addresses and secrets, under the names of `shared.settings` in capitals; mode 0600
    ports.json   the ports of last time, taken again where they are free
    postgres/ valkey/ seaweedfs/   data        logs/   output of each program
    run/         pid files, and the lock that the running stack holds

A part whose address stands in the environment (DATABASE_URL, REDIS_URL, S3_ENDPOINT) is used as it
is and not started. Servers listen on loopback alone.
"""

import fcntl
import json
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from shared.servers import (
    GRPC_OFFSET,
    LOOPBACK,
    SEAWEED_PORTS,
    http_answers,
    postgres,
    seaweedfs,
    sockets_of_others,
    valkey,
)
from shared.supervisor import SIGNALS, Failed, Program, Supervisor

PREFERRED = {
    "postgres": 15432,
    "valkey": 16379,
    "s3": 18333,
    "master": 19333,
    "volume": 18080,
    "filer": 18888,
    "admin": 13646,
}
GIVEN = {"postgres": "DATABASE_URL", "valkey": "REDIS_URL", "seaweedfs": "S3_ENDPOINT"}
TIER = 1  # above the servers
WEB_THREADS = 640  # at most; every open live page holds one
WORKER_STOP_SECONDS = 40  # a trainer finishes its step and writes a checkpoint


class Running(Exception):
    """Another process runs the stack of this data folder; the message is its address."""


def home_folder() -> Path:
    """The data folder of this machine, absolute."""
    return Path(os.environ.get("BURNISH_HOME") or ".burnish").absolute()


class Home:
    """A data folder: its addresses and secrets, its ports, its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.env_file = self.folder / "env"
        self.ports_file = self.folder / "ports.json"
        self.lock_file = self.folder / "run" / "up.lock"
        self.lock: int | None = None

    def open(self) -> None:
        """Make the folder and take its lock. Raises Running."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock_file.parent.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Running(self.environment().get("PUBLIC_URL", "")) from None
        self.lock = handle

    def close(self) -> None:
        """Give the lock back."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def is_running(self) -> bool:
        """Whether some process holds the lock."""
        try:
            handle = os.open(self.lock_file, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def environment(self) -> dict[str, str]:
        """What stands in the file `env`."""
        lines = self.env_file.read_text().splitlines() if self.env_file.exists() else []
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def write_environment(self, values: dict[str, str]) -> None:
        """Replace the file `env`, readable for its owner alone."""
        fresh = self.env_file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        fresh.replace(self.env_file)

    def ports(self) -> dict[str, int]:
        """The ports of last time."""
        return json.loads(self.ports_file.read_text()) if self.ports_file.exists() else {}


def given(part: str) -> bool:
    """Whether the environment names a server of somebody else's for this part."""
    return bool(os.environ.get(GIVEN[part]))


def is_free(port: int) -> bool:
    """Whether nothing listens there, on any address."""
    for address in ("0.0.0.0", LOOPBACK):  # noqa: S104 - asked, not served
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def is_free_for_seaweed(port: int) -> bool:
    """Whether nothing stands in the way of one of SeaweedFS's services there."""
    return is_free(port) and is_free(port + GRPC_OFFSET) and not sockets_of_others(port)


def free_port(preferred: int, taken: Collection[int] = (), usable: Callable[[int], bool] = is_free) -> int:
    """The first port from `preferred` on that is `usable` and not `taken`."""
    port = preferred
    while port in taken or not usable(port):
        port = port + 1 if port < 65000 - GRPC_OFFSET else 20000
    return port


def choose_ports(home: Home, say: Callable[[str], None], preferred: dict[str, int]) -> dict[str, int]:
    """A free port for each server, those of last time first; says which it stepped over."""
    wanted = preferred | {name: port for name, port in home.ports().items() if name in preferred}
    ports: dict[str, int] = {}
    taken: set[int] = set()
    for name, port in wanted.items():
        usable = is_free_for_seaweed if name in SEAWEED_PORTS else is_free
        ports[name] = free_port(port, taken, usable)
        taken |= {ports[name], ports[name] + GRPC_OFFSET}
    moved = [f"{name} {port} → {ports[name]}" for name, port in wanted.items() if ports[name] != port]
    if moved:
        say(f"Ports of the servers that are taken, and what is used instead: {', '.join(moved)}.")
    home.ports_file.write_text(json.dumps(ports))
    return ports


def random_ports() -> dict[str, int]:
    """Ports to try first where several stacks share a machine, as in tests."""
    first = random.randrange(20000, 22500)
    return {name: first + 13 * number for number, name in enumerate(PREFERRED)}


def addresses(home: Home, ports: dict[str, int], public_url: str) -> dict[str, str]:
    """The whole file `env`: secrets of last time or new ones, addresses of this time."""
    known = home.environment()
    known.setdefault("SECRET_KEY", secrets.token_hex(32))
    known.setdefault("AWS_ACCESS_KEY_ID", secrets.token_hex(10))
    known.setdefault("AWS_SECRET_ACCESS_KEY", secrets.token_hex(20))
    database = urlsplit(known.get("DATABASE_URL", "")).password or secrets.token_hex(20)
    broker = urlsplit(known.get("REDIS_URL", "")).password or secrets.token_hex(20)
    known["DATABASE_URL"] = f"postgresql+psycopg://burnish:{database}@{LOOPBACK}:{ports['postgres']}/burnish"
    known["REDIS_URL"] = f"redis://:{broker}@{LOOPBACK}:{ports['valkey']}/0"
    known["S3_ENDPOINT"] = f"http://{LOOPBACK}:{ports['s3']}"
    known["PUBLIC_URL"] = public_url
    return known


def use(home: Home) -> None:
    """Let this process's settings speak of that data folder's stack.

    Keys of some other store that happen to be in the environment do not count for the embedded one.
    """
    os.environ["BURNISH_HOME"] = str(home.folder)
    if not given("seaweedfs") and home.env_file.exists():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            os.environ[name] = home.environment()[name]
    from shared.settings import settings

    settings.cache_clear()


# --- our own programs -------------------------------------------------------------------------


def web_command(host: str, port: int, processes: int = 1) -> list[str]:
    """gunicorn over the web. Threads are many because each live page holds one."""
    memory = Path("/dev/shm")  # noqa: S108 - its heartbeat file must not wait for a disk
    return [
        sys.executable, "-m", "gunicorn", "web:create_app()", f"--bind={host}:{port}",
        f"--workers={processes}", "--worker-class=gthread", f"--threads={WEB_THREADS}",
        "--timeout=120", "--graceful-timeout=3", "--no-control-socket", "--access-logfile=-",
        *([f"--worker-tmp-dir={memory}"] if memory.is_dir() else []),
    ]  # fmt: skip


def worker_command() -> list[str]:
    """Celery in its threads pool; how many threads stands in `shared.queue`."""
    return [
        sys.executable, "-m", "celery", "-A", "worker.tasks", "worker", "--pool=threads",
        "--without-gossip", "--without-mingle", "--loglevel=INFO",
    ]  # fmt: skip


def beat_command() -> list[str]:
    """Celery's clock; it keeps nothing on disk."""
    return [sys.executable, "-m", "celery", "-A", "worker.tasks", "beat", "--loglevel=INFO", "--pidfile="]


def programs(home: Home, port: int, host: str = LOOPBACK) -> list[Program]:
    """Web, worker and beat over the stack that the settings name."""
    environment = {"BURNISH_HOME": str(home.folder), "PYTHONUNBUFFERED": "1"}
    web = Program(
        name="web",
        command=web_command(host, port),
        tier=TIER,
        ready=lambda: http_answers(port, "/health"),
        environment=environment,
        stop_seconds=8,
    )
    worker = Program(
        name="worker",
        command=worker_command(),
        tier=TIER,
        environment=environment,
        stop_seconds=WORKER_STOP_SECONDS,
    )
    beat = Program(name="beat", command=beat_command(), tier=TIER, environment=environment)
    return [web, worker, beat]


# --- up and down ------------------------------------------------------------------------------


def start_servers(
    home: Home,
    supervisor: Supervisor,
    *,
    public_url: str = "",
    preferred: dict[str, int] | None = None,
    durable: bool = True,
) -> None:
    """Start the servers that the environment does not give, and point the settings at them all.

    Another process may take a port between our look and the server's: then once more with others.
    """
    for chance in range(4):
        ports = choose_ports(home, supervisor.say, preferred or PREFERRED)
        env = addresses(home, ports, public_url)
        home.write_environment(env)
        try:
            supervisor.start(servers(home.folder, env, ports, durable=durable))
        except Failed as failure:
            supervisor.stop()
            if chance == 3 or not any(
                taken in str(failure).lower() for taken in ("in use", "not available", "bind")
            ):
                raise
            home.ports_file.unlink(missing_ok=True)
            preferred = random_ports()
        else:
            use(home)
            return


def servers(home: Path, env: dict[str, str], ports: dict[str, int], *, durable: bool) -> Iterator[Program]:
    """Those that the environment does not give. Each is made when the ones before it have been
    launched: a new Postgres cluster takes half a second in which the others come up."""
    if not given("seaweedfs"):
        yield seaweedfs(home, env, ports)
    if not given("valkey"):
        yield valkey(home, env, durable=durable)
    if not given("postgres"):
        yield postgres(home, env, durable=durable)


def prepare() -> None:
    """The database at its newest revision, the known base models in it, the bucket there."""
    from shared import migrate, storage

    migrate.upgrade()
    know_base_models()
    storage.ensure_bucket()


def know_base_models() -> None:
    """Rows for the base models that come as packages; their weights are imported on first use."""
    from shared import base_models
    from shared.db import transaction

    with transaction() as db:
        base_models.ensure_known(db)


@contextmanager
def stoppable() -> Generator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, even where the parent ignored them."""

    def stop(number: int, frame: object) -> None:  # noqa: ARG001 - the signature is the system's
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def running(
    folder: Path, *, port: int, host: str = LOOPBACK, say: Callable[[str], None] = print
) -> Generator["Up"]:
    """The whole stack of that data folder, stopped in order at the end. Raises Running and Failed."""
    home = Home(folder)
    home.open()
    supervisor = Supervisor(home.folder, say)
    with stoppable():
        try:
            for name in supervisor.sweep():
                say(f"Stopped a {name} that an earlier run had left behind.")
            yield start(home, supervisor, port, host)
        finally:
            stop_all(supervisor)
            home.close()


def start(home: Home, supervisor: Supervisor, port: int, host: str) -> "Up":
    """Servers, then the database's revision, then web, worker and beat."""
    began = time.monotonic()
    asked, port = port, free_port(port)
    if port != asked:
        supervisor.say(f"Port {asked} is taken; using {port}.")
    url = os.environ.get("PUBLIC_URL") or f"http://{LOOPBACK}:{port}"
    start_servers(home, supervisor, public_url=url)
    prepare()
    supervisor.start(programs(home, port, host))
    supervisor.say(f"Burnish is up at {url} ({time.monotonic() - began:.1f} s). Data: {home.folder}")
    return Up(home, supervisor, url)


def stop_all(supervisor: Supervisor) -> None:
    """Stop everything; a second signal meanwhile stops the waiting."""
    again = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: again.set())
    if supervisor.children:
        supervisor.say("Stopping. Once more to stop at once.")
    supervisor.stop(again.is_set)


class Up:
    """A running stack."""

    def __init__(self, home: Home, supervisor: Supervisor, url: str) -> None:
        self.home = home
        self.supervisor = supervisor
        self.url = url

    def tend(self) -> None:
        """Look after the programs once."""
        self.supervisor.check()

    def stay(self) -> None:
        """Look after the programs until a signal comes, which raises KeyboardInterrupt."""
        while True:
            self.tend()
            time.sleep(0.3)
