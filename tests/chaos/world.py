"""A running cluster with work in it and everybody who watches; one scenario after another happens to it."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.chaos import audit
from tests.chaos.cluster import WEBS, WORKERS, Cluster
from tests.chaos.invariants import INVARIANTS, Broken, Figures, Seen, figures
from tests.chaos.processes import Sampler
from tests.chaos.workload import LONG, MEDIUM, SHORT, Submitted, Workload
from tests.receiver import Receiver

PROBE_SECONDS = 0.25
PAGE_SECONDS = 1.5  # that an answer of the web takes, whatever is away
TICK = 0.02
SETTLE_SECONDS = 150.0


@dataclass(frozen=True)
class Probe:
    """What the web answered at some moment. Status 0: nothing."""

    at: float
    web: str
    status: int
    seconds: float
    honest: bool  # no trace of a fault of ours in the body
    path: str = ""


class Prober:
    """Asks each web for its health and for the list of jobs, all the time."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.told: list[Probe] = []
        self.over = threading.Event()
        self.lateness: list[tuple[float, float]] = []
        self.threads = [threading.Thread(target=self.run, args=(web,), daemon=True) for web in WEBS]
        self.threads.append(threading.Thread(target=self.clock, daemon=True))
        for thread in self.threads:
            thread.start()

    def run(self, web: str) -> None:
        paths = ["/health", "/v1/fine_tuning/jobs?limit=1"]
        headers = {"Authorization": f"Bearer {self.work.teams[0].token}"}
        with httpx.Client(base_url=self.work.cluster.url(web), headers=headers, trust_env=False) as client:
            while not self.over.wait(PROBE_SECONDS):
                paths.reverse()
                self.told.append(asked(client, web, paths[0]))

    def since(self, moment: float) -> list[Probe]:
        """What was answered from then on."""
        return [probe for probe in self.told if probe.at >= moment]

    def clock(self) -> None:
        """How late this process wakes, which has as much of this busy machine as the web has."""
        while not self.over.is_set():
            began = time.monotonic()
            time.sleep(TICK)
            self.lateness.append((began, time.monotonic() - began - TICK))

    def late(self, probe: Probe) -> float:
        """The seconds of it that the machine had for nobody here."""
        ends = probe.at + probe.seconds
        return sum(late for at, late in self.lateness if probe.at <= at <= ends and late > TICK)

    def require_soon(self, began: float) -> None:
        """Every answer since then is a page or a 503 and took PAGE_SECONDS at most, the machine's lateness aside."""
        told = self.since(began)
        assert all(probe.status in (200, 503) for probe in told), {probe.status for probe in told}
        slow = max(told, key=lambda probe: probe.seconds - self.late(probe))
        said = f"the slowest of {len(told)} answers, {slow.path}: {slow.seconds:.2f} s ({self.late(slow):.2f} s late)"
        print(said, flush=True)
        assert slow.seconds - self.late(slow) < PAGE_SECONDS, said

    def close(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(20)


def asked(client: httpx.Client, web: str, path: str) -> Probe:
    """One question and its answer."""
    began = time.monotonic()
    try:
        answer = client.get(path, timeout=15)
    except httpx.TransportError:
        return Probe(began, web, 0, time.monotonic() - began, honest=True, path=path)
    honest = "Traceback" not in answer.text and "psycopg" not in answer.text
    return Probe(began, web, answer.status_code, time.monotonic() - began, honest, path)


@dataclass
class World:
    """What a scenario gets: a cluster that is whole, and work to do."""

    cluster: Cluster
    work: Workload
    sampler: Sampler
    prober: Prober
    faults: int = 0
    jobs: list[Submitted] = field(default_factory=list)
    overlap: float = 0.0
    intervals: int = 2
    began: float = 0.0
    failures_expected: bool = False
    damages: bool = False

    def submit(self, epochs: int = MEDIUM, **more: Any) -> Submitted:
        """A job of this scenario."""
        job = self.work.submit(epochs, **more)
        self.jobs.append(job)
        return job

    def hurt(self, count: int = 1) -> None:
        """So many faults were injected."""
        self.faults += count

    def fresh(self) -> None:
        """Nothing has happened yet."""
        self.faults, self.jobs, self.overlap, self.intervals = 0, [], 0.0, 2
        self.failures_expected = self.damages = False
        self.began = time.monotonic()
        self.prober.told.clear()
        self.prober.lateness.clear()

    def settle(self, seconds: float = SETTLE_SECONDS) -> Figures:
        """Heals everything, waits for the jobs, and checks every invariant. Raises Broken."""
        self.cluster.heal()
        with suppress(AssertionError):  # the first invariant says which did not end
            self.work.await_end(self.jobs, seconds)
        seen = Seen(self.work, self.jobs, dict(self.sampler.together), self.overlap, self.intervals)
        seen.failures_expected, seen.damages = self.failures_expected, self.damages
        seen.lines = audit.of(seen.ids)
        broken = [
            f"{name}: {problem}"
            for name, check in INVARIANTS.items()
            if not (name == "I1" and self.failures_expected)
            for problem in check(seen)
        ]
        dishonest = [p for p in self.prober.since(self.began) if not p.honest or p.status == 500]
        broken += [f"the web answered {p.status} with a fault of ours" for p in dishonest[:3]]
        found = figures(seen, self.faults)
        if broken:
            raise Broken("\n".join([*broken, "", audit.story(seen.ids)]), found)
        return found


@contextmanager
def world(folder: Path, lengths: tuple[int, ...] = (SHORT, MEDIUM, LONG)) -> Generator[World]:
    """A cluster with work, watched; the undisturbed weights of these lengths are known."""
    receiver = Receiver()
    cluster = Cluster(folder, receiver)
    watchers: list[Sampler | Prober] = []
    try:
        receiver.thread.start()
        cluster.start()
        audit.watch()
        work = Workload(cluster)
        work.prepare(folder / "tiny")
        sampler = Sampler(lambda: {cluster.pid(w) for w in WORKERS if cluster.alive(w)})
        watchers.append(sampler)
        work.learn_weights(*lengths)
        prober = Prober(work)
        watchers.append(prober)
        yield World(cluster, work, sampler, prober)
    finally:
        for watcher in watchers:
            watcher.close()
        cluster.stop()
        receiver.server.shutdown()
