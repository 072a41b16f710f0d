"""The processes behind the fixtures `stack` and `live`."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis
from sqlalchemy import insert
from sqlmodel import SQLModel, col, select, text

from shared import base_models, jobs, teams
from shared.db import engine, transaction
from shared.errors import Refused
from shared.settings import settings
from shared.stack import (
    GIVEN,
    Home,
    free_port,
    prepare,
    programs,
    random_ports,
    start_servers,
)
from shared.supervisor import Supervisor
from shared.tables import FINAL, BaseModel, Job, Kind, Role, Team, Worker

CACHED = type(settings)  # what lru_cache makes; asking anything else for its attributes may not be harmless
SHORT = {
    "HEARTBEAT_SECONDS": "0.5",
    "LEASE_SECONDS": "3",
    "SWEEP_SECONDS": "1",
    "RETRY_SECONDS": "1",
    "TRAINER_THREADS": "1",  # two that wait for each other are slow on a busy machine
}


def until(condition: Callable[[], object], seconds: float = 30, what: str = "") -> object:
    """The condition's first true value. Fails after that many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {seconds:g} s: {what or condition}")
        time.sleep(0.05)
    return value


def aim(environment: dict[str, str]) -> None:
    """Let this process's settings, engine, store and broker be those of that environment."""
    if all(os.environ.get(name) == value for name, value in environment.items()):
        return
    if engine.cache_info().currsize:
        engine().dispose()
    for name in (*SHORT, "WEBHOOK_HOSTS"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in {"shared", "web", "worker"} and name != "shared.recipe":
            for value in list(vars(module).values()):
                if isinstance(value, CACHED):
                    value.cache_clear()


MANY = 1000  # rows


@cache
def known_base_models() -> list[dict[str, Any]]:
    """The rows that every installation has."""
    return [one.model_dump() for one in (*base_models.packaged(), *base_models.from_presets())]


def empty() -> None:
    """No rows but the known base models, no messages. Few rows are deleted, in one statement as they hang on one
    another: that is twenty times as fast as to truncate the tables.
    """
    names = [table.name for table in SQLModel.metadata.sorted_tables]
    deletions = ", ".join(f"in_{name} AS (DELETE FROM {name})" for name in names)
    with engine().begin() as connection:
        counts = " + ".join(f"(SELECT count(*) FROM {name})" for name in names)
        many = connection.execute(text(f"SELECT {counts}")).scalar_one() > MANY
        connection.execute(
            text(f"TRUNCATE {', '.join(names)} CASCADE" if many else f"WITH {deletions} SELECT")
        )
        connection.execute(insert(BaseModel), known_base_models())
    with redis.Redis.from_url(settings().redis_url) as broker:
        broker.flushdb()


class Stack:
    """Postgres, Valkey and SeaweedFS in a folder of their own, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder)
        self.supervisor = Supervisor(folder)

    def start(self) -> None:
        for name in [*GIVEN.values(), "S3_PUBLIC_URL", "PUBLIC_URL", "SMTP_URL"]:
            os.environ.pop(name, None)
        self.home.open()
        ports = random_ports()
        start_servers(
            self.home, self.supervisor, public_url="http://127.0.0.1:8000", preferred=ports, durable=False
        )
        self.aim()
        prepare()

    @property
    def environment(self) -> dict[str, str]:
        """What stands in its file `env`, and where that is."""
        return self.home.environment() | {"BURNISH_HOME": str(self.home.folder), "S3_BUCKET": "burnish"}

    def aim(self) -> None:
        """Point this process's settings at it."""
        aim(self.environment)

    def stop(self) -> None:
        self.supervisor.stop(hurry=lambda: True)
        self.home.close()


class Live:
    """Web, worker and beat over their own database, bucket and broker database of a stack.

    `url` is the web's address, `home` the data folder (its file `env` names everything).
    """

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.home = folder
        self.supervisor = Supervisor(folder)
        self.port = free_port(random_ports()["postgres"] + 7000)
        self.url = f"http://127.0.0.1:{self.port}"
        self.hooks = free_port(self.port + 1)  # where a receiver of webhooks may listen

    @property
    def environment(self) -> dict[str, str]:
        """The stack's, with what is this one's own."""
        known = self.stack.environment
        return known | SHORT | {
            "BURNISH_HOME": str(self.home),
            "DATABASE_URL": known["DATABASE_URL"] + "_live",
            "REDIS_URL": known["REDIS_URL"].removesuffix("/0") + "/1",
            "S3_BUCKET": "burnish-live",
            "PUBLIC_URL": self.url,
            "WEBHOOK_HOSTS": f"127.0.0.1:{self.hooks}",
        }  # fmt: skip

    def start(self) -> None:
        plain = self.stack.environment["DATABASE_URL"].replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute("CREATE DATABASE burnish_live")
        Home(self.home).write_environment(self.environment)
        self.aim()
        prepare()
        self.supervisor.start(programs(Home(self.home), self.port))
        self.await_worker()

    def aim(self) -> None:
        """Point this process's settings at it."""
        aim(self.environment)

    def stop(self) -> None:
        self.supervisor.stop(hurry=lambda: True)

    def cancel_all(self) -> None:
        """Cancel every job that has not ended; imports end soon, and others may use what they bring."""
        self.aim()
        with transaction() as db:
            for job in db.exec(select(Job).where(col(Job.state).not_in(FINAL), Job.kind != Kind.IMPORT)):
                with suppress(Refused):  # it has ended just now
                    jobs.cancel(db, job, "tests")

    # --- for tests of crashes -----------------------------------------------------------------
    def pid(self, name: str) -> int:
        """The process id of `web`, `worker` or `beat`."""
        return self.supervisor.children[name].process.pid

    def kill(self, name: str) -> None:
        """kill -9 of that process alone."""
        self.supervisor.kill(name)

    def end(self, name: str) -> None:
        """SIGTERM, and wait until it is gone."""
        self.supervisor.end([self.supervisor.children[name]])

    def begin(self, name: str) -> None:
        """Start it again."""
        self.supervisor.launch(self.supervisor.children[name].program)
        if name == "web":
            until(self.supervisor.children[name].program.ready, what="the web answers")

    def kill_worker(self) -> None:
        """kill -9 of the Celery process."""
        self.kill("worker")

    def restart_worker(self) -> None:
        """Stop the worker as a deployment does (where it still runs), start one, wait until it is ready."""
        self.end("worker")
        self.begin("worker")
        self.await_worker()

    def restart_web(self) -> None:
        """Stop the web, start it again, wait until it answers."""
        self.end("web")
        self.begin("web")

    def await_worker(self, seconds: float = 60) -> None:
        """Wait until the running Celery process has said that it is there."""

        def there() -> bool:
            self.supervisor.require_alive(self.supervisor.children["worker"])
            with transaction() as db:
                return any(row.pid == self.pid("worker") for row in db.exec(select(Worker)))

        until(there, seconds, f"a worker's row. {self.supervisor.tail('worker')}")

    # --- for tests over HTTP ------------------------------------------------------------------
    def token(self, team: str = "live", role: Role = Role.OWNER) -> str:
        """A bearer token of that team, which is made where it is missing."""
        with transaction() as db:
            row = db.exec(select(Team).where(Team.name == team)).first() or teams.create_team(db, team)
            return teams.create_token(db, row, "tests", role)[1]

    def client(self, team: str = "live") -> httpx.Client:
        """An HTTP client of that team."""
        headers = {"Authorization": f"Bearer {self.token(team)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)
