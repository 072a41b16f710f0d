"""A soak: work all the time, and a fault every few seconds, drawn from a seed."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import redis

from shared.settings import settings
from tests.chaos.cluster import BEATS, PROGRAMS, SERVERS, WEBS, WORKERS
from tests.chaos.invariants import Broken, Figures
from tests.chaos.processes import trainers_of, zygote_of
from tests.chaos.proxy import Answer, Cut, Delay, Fault, Refuse, Reset, Slow, Swallow
from tests.chaos.workload import MEDIUM, SHORT, row
from tests.chaos.world import World

PAUSE = (5.0, 20.0)  # seconds between two faults
AT_ONCE = 6  # jobs that are not ended yet
FREEZE = (1.0, 8.0)
OUTAGE = (1.0, 10.0)
OVERLAP = (
    15.0  # seconds: a frozen or cut off worker's trainer goes on until the worker is back and is refused
)


@dataclass
class Nemesis:
    """Draws faults from a seed and tells which they were."""

    world: World
    chance: random.Random
    told: list[str] = field(default_factory=list)

    def strike(self) -> None:
        """One fault, over when this returns (a killed program has been started again)."""
        what, deed = self.chance.choice(DEEDS)
        with suppress(ProcessLookupError):
            name = deed(self)
            self.told.append(f"{what}: {name}".strip(": "))
            self.world.hurt()

    def some(self, names: tuple[str, ...]) -> str:
        return self.chance.choice(names)


def kill_a_trainer(nemesis: Nemesis) -> str:
    found = sorted(
        (pid, worker) for worker in WORKERS for pid in trainers_of(nemesis.world.cluster.pid(worker))
    )
    if not found:
        raise ProcessLookupError("nothing trains just now")
    trainer, worker = nemesis.chance.choice(found)
    os.kill(trainer, signal.SIGKILL)
    return f"of {worker}"


def kill_a_zygote(nemesis: Nemesis) -> str:
    worker = nemesis.some(WORKERS)
    os.kill(zygote_of(nemesis.world.cluster.pid(worker)), signal.SIGKILL)
    return worker


def kill_a_program(nemesis: Nemesis) -> str:
    name = nemesis.some((*WEBS, *WORKERS, *WORKERS, *BEATS))
    nemesis.world.cluster.kill(name)
    time.sleep(nemesis.chance.uniform(0, 3))
    nemesis.world.cluster.begin(name)
    return name


def kill_a_server(nemesis: Nemesis) -> str:
    name = nemesis.some(SERVERS)
    nemesis.world.cluster.kill(name)
    time.sleep(nemesis.chance.uniform(*OUTAGE))
    nemesis.world.cluster.begin(name)
    return name


def drain_a_worker(nemesis: Nemesis) -> str:
    name = nemesis.some(WORKERS)
    nemesis.world.cluster.end(name)
    nemesis.world.cluster.begin(name)
    return name


def freeze_something(nemesis: Nemesis) -> str:
    name = nemesis.some((*PROGRAMS, *SERVERS))
    nemesis.world.cluster.freeze(name, alone=name in WORKERS)
    try:
        time.sleep(nemesis.chance.uniform(*FREEZE))
    finally:
        nemesis.world.cluster.thaw(name)
    return name


def spoil_a_link(nemesis: Nemesis) -> str:
    chance = nemesis.chance
    server, programs = nemesis.some(SERVERS), tuple(chance.sample(PROGRAMS, chance.randint(1, 6)))
    kinds: list[Callable[[], Fault]] = [
        Refuse, Reset, Swallow, lambda: Swallow("down"), lambda: Delay(chance.uniform(0.02, 0.3)),
        lambda: Slow(chance.uniform(50_000, 500_000)),
    ]  # fmt: skip
    if server == "seaweedfs":
        kinds += [
            lambda: Answer(500, rate=0.4, chance=chance),
            lambda: Answer(503, rate=0.8, chance=chance),
            lambda: Cut(after=chance.randint(1, 2000), method=b"", within=b""),
        ]
    fault = chance.choice(kinds)()
    with nemesis.world.cluster.faulty(fault, server, programs, chance.uniform(*OUTAGE)):
        pass
    return f"{type(fault).__name__} between {server} and {', '.join(sorted(programs))}"


def forget_every_message(nemesis: Nemesis) -> str:
    with redis.Redis.from_url(settings().redis_url, socket_timeout=5) as broker:
        broker.flushdb()
    return ""


DEEDS: list[tuple[str, Callable[[Nemesis], str]]] = [
    ("kill a trainer", kill_a_trainer),
    ("kill a trainer", kill_a_trainer),
    ("kill a zygote", kill_a_zygote),
    ("kill a program", kill_a_program),
    ("kill a program", kill_a_program),
    ("kill a server", kill_a_server),
    ("drain a worker", drain_a_worker),
    ("freeze", freeze_something),
    ("spoil links", spoil_a_link),
    ("spoil links", spoil_a_link),
    ("spoil links", spoil_a_link),
    ("forget every message", forget_every_message),
]


@dataclass
class Soaked:
    """What a soak came to."""

    seed: int
    minutes: float
    figures: Figures
    faults: Counter[str]
    problems: str = ""  # what was broken, with the faults and the audit; empty where everything held


def soak(world: World, seed: int, minutes: float, say: Callable[[str], None] = print) -> Soaked:
    """Keeps jobs coming and strikes until the time is over, then heals and checks every invariant."""
    world.fresh()
    world.overlap, world.intervals = OVERLAP, 20  # uploads wait for whatever is wrong with the store
    nemesis, work = Nemesis(world, random.Random(seed)), random.Random(seed)
    began, problems = time.monotonic(), ""
    while time.monotonic() - began < minutes * 60:
        keep_busy(world, work, nemesis.chance.uniform(*PAUSE))
        nemesis.strike()
        say(f"{time.monotonic() - began:5.0f} s  {nemesis.told[-1] if nemesis.told else ''}")
    try:
        found = world.settle(240)
    except Broken as broken:
        told = "\n".join(nemesis.told)
        problems, found = f"Soak with seed {seed} failed.\n{broken}\nFaults:\n{told}", broken.figures
    kinds = Counter(told.split(":")[0] for told in nemesis.told)
    return Soaked(seed, minutes, found, kinds, problems)


def keep_busy(world: World, chance: random.Random, seconds: float) -> None:
    """For so long there are jobs that run and one or two that wait."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        going = sum(row(job).finished_at is None for job in world.jobs[-3 * AT_ONCE :])
        for _ in range(AT_ONCE - going):
            world.submit(chance.choice((SHORT, MEDIUM, MEDIUM)))
        time.sleep(0.5)
