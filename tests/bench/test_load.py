"""The queue under load: submissions through the web, an idle worker's answer, heartbeats, live pages."""

import json
import os
import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text
from sqlmodel import SQLModel, col, select

from shared import jobs, sessions, workers
from shared.db import transaction
from shared.tables import Attempt, Event, EventType, Job, Kind, State, Team
from tests.bench import sections
from tests.bench.sections import sized
from tests.factories import CHAT, a_base_model, a_dataset, a_job, a_team, a_user, a_worker, an_attempt
from tests.services import until
from tests.visitor import SESSION_KEY, the_web

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

PAGE = "queue.md"
UPLOADS = sized(60, 3)
AHEAD, SUBMITTERS, SUBMITTING_SECONDS = sized((0, 1_000, 10_000), (10,)), 8, sized(10, 1)
WORKERS, BEATING_SECONDS, BEATERS = sized((100, 1_000, 10_000), (100,)), sized(10, 1), 12
BROWSERS, FOLLOWING_SECONDS, EVENTS_A_SECOND = sized((50, 200, 500), (5,)), sized(15, 1), 4


def test_from_submit_to_claim_on_an_idle_worker(live):
    waits: list[float] = []
    lines = "".join(json.dumps(row) + "\n" for row in CHAT).encode()
    with live.client("bench") as api:
        for number in range(UPLOADS + 1):
            sent = {"file": (f"rows-{number}.jsonl", lines)}
            api.post("/v1/files", data={"purpose": "fine-tune"}, files=sent).raise_for_status()
            until(lambda: waited() is not None, 30, "the import is done")
            waits.append(waited() or 0.0)
    told = [sections.percentile(waits[1:], share) * 1000 for share in (0.5, 0.95)]
    sections.write(
        PAGE,
        "From submit to claim on an idle worker",
        f"{UPLOADS} uploads through the web, one after the other; from the row of the import job to its claim.\n\n"
        f"| p50 ms | p95 ms | worst ms |\n|--:|--:|--:|\n| {told[0]:.0f} | {told[1]:.0f} | {max(waits[1:]) * 1000:.0f} |",
    )


def waited():
    """How long the newest import waited, once nothing waits or runs any more."""
    with transaction() as db:
        going = col(Job.state).in_((State.QUEUED, State.RUNNING))
        if db.exec(select(Job.id).where(going)).first():
            return None
        newest = select(Attempt, Job).join(Job, col(Job.id) == Attempt.job_id).where(Job.kind == Kind.IMPORT)
        attempt, job = db.exec(newest.order_by(col(Attempt.started_at).desc()).limit(1)).one()
        return (attempt.started_at - job.created_at).total_seconds()


def test_submissions_through_the_web(live):
    with transaction() as db:
        team = db.exec(select(Team).where(Team.name == "bench")).first() or a_team(db, "bench")
        for worker in workers.alive(db):
            workers.drain(db, worker.id)
        order = {"model": a_base_model(db).id, "training_file": a_dataset(db, team).file_id}
    rows = [submitted(live, order, ahead) for ahead in AHEAD]
    with transaction() as db:
        for worker in workers.alive(db):
            workers.undrain(db, worker.id)
    sections.write(
        PAGE,
        "Submissions through the web",
        f"{SUBMITTERS} clients at once for {SUBMITTING_SECONDS} s, one web process; every answer tells the job's place in the"
        " queue.\n\n| queued before | submissions a second | p50 ms | p95 ms |\n|--:|--:|--:|--:|\n"
        + "\n".join(rows),
    )


def submitted(live, order, ahead):
    """The table's row for submissions behind so many jobs."""
    with live.client("bench") as api, transaction() as db:
        first = api.post("/v1/fine_tuning/jobs", json=order).raise_for_status().json()["id"]
        copies(db, "jobs", first, {"id": "'ftjob-' || n", "idempotency_key": "NULL"}, 1, ahead)
        db.connection().execute(text("ANALYZE jobs"))
    taken: list[float] = []
    ends = time.monotonic() + SUBMITTING_SECONDS

    def submit(_):
        with live.client("bench") as api:
            while time.monotonic() < ends:
                started = time.perf_counter()
                api.post("/v1/fine_tuning/jobs", json=order).raise_for_status()
                taken.append(time.perf_counter() - started)

    with ThreadPoolExecutor(SUBMITTERS) as pool:
        list(pool.map(submit, range(SUBMITTERS)))
    with transaction() as db:
        db.connection().execute(text("DELETE FROM jobs WHERE state = 'queued'"))
    p50, p95 = (sections.percentile(taken, share) * 1000 for share in (0.5, 0.95))
    return f"| {ahead:,} | {len(taken) / SUBMITTING_SECONDS:.0f} | {p50:.0f} | {p95:.0f} |"


@pytest.mark.usefixtures("clean")
def test_heartbeats_of_many_workers():
    with transaction() as db:
        team = a_team(db)
        first = a_worker(db)
        job = a_job(db, team, Kind.EXPORT, state=State.RUNNING)
        attempt = an_attempt(db, job, first, slots=["light"])
        job.attempt_id = attempt.id
    rows, known = [], 0
    for count in WORKERS:
        with transaction() as db:
            more = known + 1, count
            copies(db, "workers", first.id, {"id": "'worker-' || n"}, *more)
            copies(db, "jobs", job.id, {"id": "'export-' || n", "attempt_id": "'attempt-' || n"}, *more)
            copies(
                db, "attempts", attempt.id,
                {"id": "'attempt-' || n", "job_id": "'export-' || n", "worker_id": "'worker-' || n", "lease_id": "'lease-' || n"},
                *more,
            )  # fmt: skip
        with transaction() as db:
            db.connection().execute(text("ANALYZE workers, attempts, jobs"))
        rows += [beaten(what, count) for what in (BEAT, RENEW)]
        known = count
    sections.write(
        PAGE,
        "Heartbeats",
        f"Workers, each with a running attempt, in one Postgres; {BEATERS} clients beat for them as fast as they can for"
        f" {BEATING_SECONDS} s; clients and Postgres share {os.cpu_count()} cores. A beat every 10 s is what is needed by default."
        "\n\n| | workers | needed a second | a second | p50 ms | p99 ms |\n|---|--:|--:|--:|--:|--:|\n"
        + "\n".join(rows),
    )


BEAT = ("a worker's sign of life", lambda db, n: workers.beat(db, f"worker-{n}"))
RENEW = ("renewal of a lease", lambda db, n: jobs.renew(db, f"lease-{n}"))


def copies(db, table, row_id, changed, first, last):
    """Rows like that one, numbered from `first` to `last`."""
    names = list(SQLModel.metadata.tables[table].columns.keys())
    chosen = ", ".join(changed.get(name, name) for name in names)
    many = f"INSERT INTO {table} ({', '.join(names)}) SELECT {chosen} FROM {table}, generate_series({first}, {last}) n WHERE id = :id"
    db.connection().execute(text(many), {"id": row_id})


def beaten(what, count):
    """The table's row for so many workers."""
    title, beat = what
    taken: list[float] = []
    ends = time.monotonic() + BEATING_SECONDS

    def work(number):
        n = 1 + number * (count // BEATERS)
        while time.monotonic() < ends:
            started = time.perf_counter()
            with transaction() as db:
                assert beat(db, n)
            taken.append(time.perf_counter() - started)
            n = 1 + n % count

    with ThreadPoolExecutor(BEATERS) as pool:
        list(pool.map(work, range(BEATERS)))
    p50, p99 = (sections.percentile(taken, share) * 1000 for share in (0.5, 0.99))
    rate = len(taken) / BEATING_SECONDS
    return f"| {title} | {count:,} | {count / 10:,.0f} | {rate:,.0f} | {p50:.1f} | {p99:.1f} |"


# --- live pages -------------------------------------------------------------------------------------


def test_many_browsers_follow_one_job(live):
    rows = [followed(live, browsers) for browsers in BROWSERS]
    sections.write(
        PAGE,
        "Browsers that follow one job",
        f"Streams of one job on one web process, {EVENTS_A_SECOND} events a second for {FOLLOWING_SECONDS} s, each heard"
        " by all; from the event's commit to its arrival. The browsers are sockets in the benchmark's own process, on the same"
        f" {os.cpu_count()} cores.\n\n"
        "| browsers | events heard | p50 s | p95 s | worst s | memory before MiB | with the browsers MiB | CPU of the web |\n"
        "|--:|--:|--:|--:|--:|--:|--:|--:|\n" + "\n".join(rows),
    )


def followed(live, browsers):
    """The table's row for so many browsers."""
    with transaction() as db:
        team = a_team(db, f"browsers {time.time()}")
        job = a_job(db, team, Kind.EXPORT, state=State.RUNNING, stage="packaging")
        job.attempt_id = an_attempt(
            db, job, slots=["light"], lease_expires_at=job.created_at.replace(year=2100)
        ).id
        secret = sessions.begin(db, a_user(db, team).id)
    cookie = cookie_of(secret)
    web = worker_of(live.pid("web"))
    before = memory(web)
    crowd = Crowd(live.url, f"/jobs/{job.id}/events?after=0", cookie)
    crowd.open(browsers)
    until(lambda: crowd.streams >= browsers, 90, "every browser follows")
    with_browsers = memory(web)
    busy = cpu(web)
    started = time.monotonic()
    for seq in range(1, FOLLOWING_SECONDS * EVENTS_A_SECOND + 1):
        with transaction() as db:
            data = {"level": "info", "message": f"line {seq}", "sent": time.time()}
            db.add(
                Event(
                    job_id=job.id, lease_id="bench", seq=seq, team_id=team.id, type=EventType.LOG, data=data
                )
            )
        time.sleep(max(0, started + seq / EVENTS_A_SECOND - time.monotonic()))
    share = (cpu(web) - busy) / (time.monotonic() - started)
    wanted = browsers * FOLLOWING_SECONDS * EVENTS_A_SECOND
    until(lambda: len(crowd.lags) >= wanted, 30, "every browser has heard everything")
    crowd.close()
    p50, p95 = (sections.percentile(crowd.lags, part) for part in (0.5, 0.95))
    mib = 1 / 1024
    return (
        f"| {browsers} | {len(crowd.lags):,} | {p50:.2f} | {p95:.2f} | {max(crowd.lags):.2f} | {before * mib:.0f}"
        f" | {with_browsers * mib:.0f} | {100 * share:.0f} % |"
    )


def cookie_of(secret):
    """The cookie that a browser with that session sends."""
    app = the_web()
    client = app.test_client()
    with client.session_transaction() as cookie:
        cookie[SESSION_KEY] = secret
    name = app.config["SESSION_COOKIE_NAME"]
    found = client.get_cookie(name)
    assert found is not None
    return f"{name}={found.value}"


def worker_of(gunicorn):
    """The process that answers: gunicorn's only child."""
    return int(Path(f"/proc/{gunicorn}/task/{gunicorn}/children").read_text().split()[0])


def memory(pid):
    """KiB resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def cpu(pid):
    """Seconds of CPU time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Browser:
    """One of them."""

    line: socket.socket
    seen: int  # the last event
    rest: bytes = b""  # of a line that is not whole yet
    began: bool = False


class Crowd:
    """Browsers that follow a stream, as sockets in one thread; `lags` are seconds from commit to arrival."""

    def __init__(self, url, path, cookie):
        self.address, self.path, self.cookie = urlsplit(url), path, cookie
        self.lags: list[float] = []
        self.streams = 0
        self.over = threading.Event()
        self.selector = selectors.DefaultSelector()
        self.thread = threading.Thread(target=self.listen, daemon=True)

    def open(self, count):
        """Connect them, a few at a time."""
        self.thread.start()
        for _ in range(count):
            self.connect(0)
            time.sleep(0.01)

    def connect(self, seen):
        """One more browser, which has seen the events up to that one."""
        host = f"{self.address.hostname}:{self.address.port}"
        line = socket.create_connection((self.address.hostname, self.address.port), timeout=30)
        asked = f"GET {self.path} HTTP/1.1\r\nHost: {host}\r\nCookie: {self.cookie}\r\nLast-Event-ID: {seen}\r\n\r\n"
        line.sendall(asked.encode())
        line.setblocking(False)
        self.selector.register(line, selectors.EVENT_READ, Browser(line, seen))

    def listen(self):
        """Read whatever comes; a stream that has ended is opened again, as browsers do."""
        while not self.over.is_set():
            for key, _ in self.selector.select(0.2):
                browser: Browser = key.data
                read = browser.line.recv(65536)
                if read:
                    self.hear(browser, read, time.time())
                else:
                    self.selector.unregister(browser.line)
                    browser.line.close()
                    self.connect(browser.seen)

    def hear(self, browser, read, moment):
        """The lines that are whole."""
        *lines, browser.rest = (browser.rest + read).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and not browser.began:
                browser.began = True
                self.streams += 1
            if line.startswith(b"id:"):
                browser.seen = int(line[3:])
            if line.startswith(b"data:") and b'"sent"' in line:
                self.lags.append(moment - json.loads(line[5:])["data"]["sent"])

    def close(self):
        """They all leave."""
        self.over.set()
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.data.line.close()
