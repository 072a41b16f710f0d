"""`burnish up` as people meet it: real processes, killed, stopped, started again, ports taken."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from shared.servers import GRPC_OFFSET, SOCKETS, postgres
from shared.stack import Home, free_port, random_ports
from shared.supervisor import Supervisor
from tests.chaos.processes import descendants
from tests.services import until

BURNISH = Path(sys.executable).with_name("burnish")
GIVEN = (
    "DATABASE_URL",
    "REDIS_URL",
    "S3_ENDPOINT",
    "PUBLIC_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
)


def processes_of(home: Path) -> list[int]:
    """Every process with that data folder in its command or environment, but for ourselves."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if (
                str(home).encode() in said
                and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


class UpProcess:
    """A `burnish up` in a process of its own, with what it says."""

    def __init__(self, home: Path, *, ignore_interrupt: bool = False, **environment: str) -> None:
        self.home = home
        self.output = home.with_name(home.name + f"-{time.monotonic_ns()}.log")
        clean = {name: value for name, value in os.environ.items() if name not in GIVEN}
        own = {"BURNISH_HOME": str(home), "PORT": str(a_port()), "PYTHONUNBUFFERED": "1"}
        ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignore_interrupt else None
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [BURNISH, "up"],
                env=clean | own | environment,
                stdout=output,
                stderr=output,
                preexec_fn=ignore,  # noqa: PLW1509 - before any thread
            )
        until(lambda: self.url or self.ended(), 60, "up says that it is up")

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def url(self) -> str:
        found = re.search(r"Burnish is up at (\S+)", self.said)
        return found[1] if found else ""

    def ended(self) -> bool:
        assert self.process.poll() is None, self.said
        return False

    def end(self, number: int, seconds: float = 60) -> int:
        """Send the signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def a_port() -> int:
    return free_port(random_ports()["filer"] + 5000)


Starter = Callable[..., UpProcess]


@pytest.fixture(scope="module")
def start() -> Iterator[Starter]:
    """Starts stacks and ends those that a test leaves."""
    started: list[UpProcess] = []

    def begin(home: Path, **more) -> UpProcess:
        started.append(UpProcess(home, **more))
        return started[-1]

    yield begin
    for up in started:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("up") / "home"


@pytest.fixture(scope="module")
def up(start, home) -> UpProcess:
    """A stack that the tests of this file look at."""
    return start(home)


def burnish(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in GIVEN}
    return subprocess.run(
        [BURNISH, *words],
        check=False,
        env=clean | {"BURNISH_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_web_answers(up):
    assert httpx.get(up.url, follow_redirects=True, trust_env=False).status_code < 400


def test_a_second_up_says_so_and_exits_with_the_address(up, home):
    second = burnish(home, "up")
    assert second.returncode == 0
    assert up.url in second.stdout


def test_secrets_are_for_the_owner_alone(up, home):
    assert stat.S_IMODE((home / "env").stat().st_mode) == 0o600


def test_the_file_env_has_the_names_of_the_settings(up, home):
    names = set(Home(home).environment())
    assert {*GIVEN, "SECRET_KEY"} <= names


def test_the_database_refuses_who_does_not_know_the_password(up, home):
    import psycopg

    url = Home(home).environment()["DATABASE_URL"].replace("+psycopg", "")
    for wrong in (re.sub(r":[^:@/]+@", ":wrong@", url), re.sub(r"//burnish:[^@]+@", "//postgres@", url)):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(wrong)


def test_a_crashed_web_is_started_again(up, home):
    pid = int((home / "run" / "web.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    until(lambda: "web ended with signal SIGKILL; starting it again" in up.said, 10, "it says so")
    until(lambda: answers(up.url), 20, "the web answers again")


def test_a_crashed_postgres_is_started_again(up, home):
    pid = int((home / "run" / "postgres.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    until(lambda: "postgres ended with signal SIGKILL" in up.said, 10, "it says so")
    until(
        lambda: burnish(home, "user", "add", "after@example.com", "--team", "T").returncode == 0,
        20,
        "rows are there",
    )


def test_a_database_that_is_killed_keeps_its_commits_also_where_it_is_not_durable(tmp_path):
    import psycopg

    url = f"postgresql://burnish:word@127.0.0.1:{a_port()}/burnish"
    program = postgres(tmp_path, {"DATABASE_URL": url}, durable=False)
    supervisor = Supervisor(tmp_path)
    supervisor.start([program])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE told (number int)")
        for number in range(100):
            connection.execute("INSERT INTO told VALUES (%s)", (number,))
        server = supervisor.children["postgres"].process.pid
        os.kill(server, signal.SIGSTOP)  # it forks no more
        for pid in {server} | descendants(server):
            os.kill(pid, signal.SIGKILL)
    supervisor.children["postgres"].process.wait()
    supervisor.start([program])
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM told").fetchone() == (100,)
    supervisor.stop(hurry=lambda: True)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_after_kill_9_nothing_is_left_and_the_next_up_has_the_data(start, up, home):
    """Last of those that share a stack."""
    known = Home(home).environment()
    assert burnish(home, "user", "add", "kept@example.com", "--team", "Kept").returncode == 0
    up.end(signal.SIGKILL)
    until(lambda: not processes_of(home), 20, f"every process is gone: {processes_of(home)}")
    again = start(home, ignore_interrupt=True)
    fresh = Home(home).environment()
    assert fresh["SECRET_KEY"] == known["SECRET_KEY"]
    said = burnish(home, "user", "add", "kept@example.com", "--team", "Kept")
    assert said.returncode == 0, said.stderr
    assert again.end(signal.SIGINT) == 0, "SIGINT counts although the parent ignores it"
    assert not processes_of(home)
    assert not list((home / "run").glob("*.pid"))


def test_what_a_killed_up_left_running_is_ended_at_the_next_start(start, tmp_path):
    """A process that outlived its supervisor is known by its pid file and start time."""
    from shared.supervisor import Supervisor, started_at

    home = tmp_path / "home"
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    supervisor = Supervisor(home)
    (home / "run" / "left.pid").write_text(f"{left.pid} {started_at(left.pid)} 15\n")
    (home / "run" / "reused.pid").write_text(f"{stranger.pid} 1 15\n")
    assert supervisor.sweep() == ["left"]
    assert left.wait(5) == -signal.SIGTERM
    assert stranger.poll() is None, "another process under an old number is let alone"
    stranger.kill()
    stranger.wait()


@pytest.mark.slow
def test_only_what_the_environment_lacks_is_started_and_taken_ports_are_stepped_over(start, stack, tmp_path):
    home = tmp_path / "home"
    outside = {name: stack.environment[name] for name in ("DATABASE_URL", "REDIS_URL")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = start(home, PORT=str(port), **outside)
        assert f"Port {port} is taken; using" in up.said
        assert not up.url.endswith(f":{port}")
    assert {file.stem for file in (home / "run").glob("*.pid")} == {"seaweedfs", "web", "worker", "beat"}
    assert up.end(signal.SIGTERM) == 0
    assert not processes_of(home)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="to be somebody else one must be root"
)
def test_the_servers_run_without_root_and_beside_what_another_user_left(tmp_path):
    """SeaweedFS would go on without a socket that it may not replace, and its store would never answer."""
    home, preferred = tmp_path / "home", random_ports()
    left = SOCKETS / f"seaweedfs-filer-grpc-{preferred['filer'] + GRPC_OFFSET}.sock"
    left.touch()
    script = (
        "import sys, json, pathlib; from shared.stack import *; from shared.supervisor import Supervisor\n"
        "home = Home(pathlib.Path(sys.argv[1])); home.open(); s = Supervisor(home.folder)\n"
        "start_servers(home, s, preferred=json.loads(sys.argv[2]), durable=False)\n"
        "from shared import migrate, storage; migrate.upgrade(); storage.ensure_bucket(); s.stop(); print('good')\n"
    )
    os.chown(tmp_path, 65534, 65534)
    # the capability only lets it read this Python, which may lie in root's own folder
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    clean = {name: value for name, value in os.environ.items() if name not in GIVEN}
    try:
        done = subprocess.run(
            [*drop, *read, sys.executable, "-c", script, home, json.dumps(preferred)],
            check=False,
            capture_output=True,
            text=True,
            env=clean,
            timeout=60,
        )
    finally:
        left.unlink()
    assert "good" in done.stdout, done.stderr
    assert (home / "postgres").stat().st_uid == 65534
    assert Home(home).ports()["filer"] > preferred["filer"], "the port of that socket is stepped over"
