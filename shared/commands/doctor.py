"""doctor: what is running, what is wrong and how to mend it."""

import argparse
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

from shared.commands.failures import spoken
from shared.commands.running import aim
from shared.stack import Home, home_folder

PACKAGES = ("torch", "transformers", "peft", "celery", "flask", "sqlmodel")
SCARCE_BYTES = 5 * 1024**3


@dataclass(frozen=True)
class Fact:
    """A line of the report; `mend` says what to do where something is wrong."""

    name: str
    value: str
    mend: str = ""


def doctor(_: argparse.Namespace) -> int:
    """Print the facts, then what is wrong. 1 where something is."""
    facts = list(examined())
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        print(f"{'!' if fact.mend else ' '} {fact.name:<{width}}  {fact.value}")
    wrong = [fact for fact in facts if fact.mend]
    if not wrong:
        print("\nNothing is wrong.")
        return 0
    print("\nWhat is wrong, and how to mend it:")
    for fact in wrong:
        print(f"  {fact.name}: {fact.mend}")
    return 1


def examined() -> Iterator[Fact]:
    """Every fact, from the machine up to the workers."""
    yield from machine()
    home = Home(home_folder())
    running = home.is_running()
    yield Fact(
        "data folder", f"{home.folder} ({'its stack is running' if running else 'no stack runs from it'})"
    )
    try:
        aim()
        known = settings()
    except Exception as failure:  # noqa: BLE001 - told as a fact
        yield Fact("settings", "not complete", spoken(failure) or repr(failure))
        return
    yield Fact("settings", f"complete; the web is {known.public_url}")
    start = (
        "start the stack with «make up»" if not running else "look into the logs folder of the data folder"
    )
    yield answer("Postgres", database, f"The database does not answer: {start}, or correct DATABASE_URL.")
    yield answer("Valkey", broker, f"The broker does not answer: {start}, or correct REDIS_URL.")
    yield answer("store", store, f"The store does not answer: {start}, or correct S3_ENDPOINT and its keys.")
    yield answer("web", web, f"The web does not answer: {start}, or correct PUBLIC_URL.")
    try:
        yield from workers()
    except Exception as failure:  # noqa: BLE001 - the line above says why
        yield Fact("workers", "unknown", f"Cannot be read: {spoken(failure) or failure}")


def settings() -> Any:
    from shared.settings import settings as read

    return read()


def machine() -> Iterator[Fact]:
    """Versions, disk, GPUs."""
    yield Fact(
        "burnish",
        f"{version('burnish')} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    for package in PACKAGES:
        try:
            yield Fact(package, version(package))
        except PackageNotFoundError:
            yield Fact(package, "missing", f"{package} is not installed: run «make install».")
    home = home_folder()
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    scarce = "Less than 5 GiB are free: checkpoints need room. Delete old jobs or move BURNISH_HOME."
    yield Fact("free disk", f"{free / 1024**3:.1f} GiB at {place}", scarce if free < SCARCE_BYTES else "")
    yield Fact("GPUs", gpus() or "none; training runs on the CPU")


def gpus() -> str:
    """Names and memory of NVIDIA's, as the driver gives them."""
    binary = shutil.which("nvidia-smi")
    if not binary:
        return ""
    query = [binary, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    shown = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603 - fixed words
    return "; ".join(shown.stdout.strip().splitlines())


def answer(name: str, ask: Callable[[], Fact], mend: str) -> Fact:
    """What the part answers, or that it does not."""
    try:
        return ask()
    except Exception as failure:  # noqa: BLE001 - whatever it is, the report goes on
        reason = str(getattr(failure, "orig", failure)).strip().splitlines() or [type(failure).__name__]
        return Fact(name, f"no answer: {reason[0][:160]}", mend)


def database() -> Fact:
    """Its version and revision."""
    from sqlalchemy import text

    from shared import migrate
    from shared.db import engine

    with engine().connect() as connection:
        server = connection.execute(text("SHOW server_version")).scalar_one()
    found, wanted = migrate.current(), migrate.head()
    behind = (
        f"It is at revision {found}, this version wants {wanted}: run «burnish migrate»."
        if found != wanted
        else ""
    )
    return Fact("Postgres", f"{server}, revision {found}", behind)


def broker() -> Fact:
    """Its version, and whether it could lose wake-ups by evicting."""
    import redis

    with redis.Redis.from_url(settings().redis_url, socket_timeout=3, socket_connect_timeout=3) as client:
        facts: Any = client.info()
    name, policy = facts.get("server_name", "redis"), facts.get("maxmemory_policy")
    number = facts.get(f"{name}_version", facts.get("redis_version"))
    evicts = "" if policy == "noeviction" else "It may evict messages: set maxmemory-policy to noeviction."
    return Fact("Valkey", f"{name} {number}, {policy}", evicts)


def store() -> Fact:
    """Whether the bucket is there."""
    from shared import storage

    storage.ensure_bucket()
    return Fact("store", f"bucket «{settings().s3_bucket}» at {urlsplit(settings().s3_endpoint).netloc}")


def web() -> Fact:
    """Whether it says that it is well."""
    import httpx

    url = settings().public_url
    said = httpx.get(f"{url}/health", timeout=5, trust_env=not url.startswith("http://127.0.0.1"))
    said.raise_for_status()
    return Fact("web", f"well at {url}")


def disk_of(worker: Any) -> Fact:
    """What that worker has of disk, and whether it still claims."""
    from shared.room import gib

    told = {name: gib(count) for name, count in worker.disk.items()}
    said = "not told"
    if told:
        said = f"{told['free']} free of {told['total']}, floor {told['floor']}, room for a job {told['room']}"
    return Fact("  its disk", said, f"The worker {worker.note}." if worker.note else "")


def workers() -> Iterator[Fact]:
    """The workers that live, their slots, devices and walls; the walls are those around a trainer."""
    from shared import workers as known
    from shared.db import transaction

    with transaction() as db:
        alive = known.alive(db)
    if not alive:
        yield Fact(
            "workers", "none", "No worker is alive, so jobs wait: run «burnish worker», or «make up» for all."
        )
    for row in alive:
        slots = ", ".join(f"{count} {name}" for name, count in row.slots.items())
        devices = ", ".join(device.get("name", "?") for device in row.devices) or "CPU"
        yield Fact(f"worker on {row.host}", f"version {row.version}, slots: {slots}, on {devices}")
        yield disk_of(row)
        walls = ", ".join(
            f"{name}: {'yes' if up is True else 'no' if up is False else up}"
            for name, up in row.sandbox.items()
        )
        yield Fact("  its sandbox", walls or "unknown", " ".join(known.missing_walls(row)))
