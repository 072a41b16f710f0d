"""Programs in sessions of their own: started, waited for, watched, stopped in order, found again.

A program dies with its supervisor: the kernel sends it a signal when the parent is gone
(PR_SET_PDEATHSIG, set between fork and exec). A file `run/<name>.pid` with the process's start time
tells the next supervisor what an earlier one left behind. Everything here runs in the main thread,
so that the code between fork and exec is safe and the parent of a program never ends early.
"""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITIES_VERSION = 0x20080522
LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None, use_errno=True)
RESTARTS, RESTART_WINDOW = 5, 60.0  # more crashes in that many seconds, and it is left down
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):
    """A program did not come up; the message ends with the tail of its log."""


@dataclass(frozen=True)
class Account:
    """The user that a program runs as. `capability` lets it read what lies below closed folders."""

    uid: int
    gid: int
    capability: int | None = None

    def assume(self) -> None:
        """Become that user, for good. Runs in the child, between fork and exec."""
        LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)
        if self.capability is not None:
            bit = 1 << self.capability
            head = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
            LIBC.capset(head, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0))
            LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, self.capability, 0, 0)


@dataclass(frozen=True)
class Program:
    """What runs, and how one sees that it is ready and asks it to stop.

    Of a higher `tier` is what needs the lower ones: it starts after them and stops before them.
    """

    name: str
    command: list[str]
    tier: int
    ready: Callable[[], bool] = lambda: True
    environment: dict[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10
    death_signal: signal.Signals = signal.SIGKILL  # when the supervisor is gone
    account: Account | None = None


@dataclass
class Child:
    """A started program."""

    program: Program
    process: subprocess.Popen[bytes]
    crashes: list[float] = field(default_factory=list)
    again_at: float | None = None  # when a crashed one is started again
    given_up: bool = False


def account_for(folder: Path, binary: Path) -> Account | None:
    """Whom a server that refuses root runs as; None where we are not root.

    Nobody's permissions are changed: where the folders above are closed to others, the process gets
    the one capability that lets it pass.
    """
    if os.geteuid() != 0:
        return None
    entry = next(e for name in ("postgres", "nobody") if (e := known_user(name)))
    closed = any(not parent.stat().st_mode & 0o001 for path in (folder, binary) for parent in path.parents)
    runnable = binary.stat().st_mode & 0o005 == 0o005
    if LINUX and not runnable:
        return Account(entry.pw_uid, entry.pw_gid, CAP_DAC_OVERRIDE)
    if LINUX and closed:
        usable = permitted() >> CAP_DAC_READ_SEARCH & 1
        return Account(entry.pw_uid, entry.pw_gid, CAP_DAC_READ_SEARCH if usable else CAP_DAC_OVERRIDE)
    return Account(entry.pw_uid, entry.pw_gid)


def known_user(name: str) -> pwd.struct_passwd | None:
    """The entry of that system user, if there is one."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def permitted() -> int:
    """The capabilities of this process, as bits."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm"))


def started_at(pid: int) -> str | None:
    """When that process started, in the kernel's own words; None if it is gone or a zombie."""
    if LINUX:
        try:
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if state == "Z" else rest[18]
    shown = subprocess.run(  # noqa: S603 - a number
        ["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None


def spawn(program: Program, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start it in its own session, dying with us, its output appended to `log`."""
    parent = os.getpid()

    def prepare() -> None:
        if program.account:
            program.account.assume()
        if LINUX:  # after the change of user, which clears it
            LIBC.prctl(PR_SET_PDEATHSIG, int(program.death_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own programs
            program.command,
            cwd=folder,
            env=os.environ | program.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - one thread, see above
        )


@contextmanager
def held_back() -> Generator[None]:
    """Signals wait until the block is through, so that no process starts without being noted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Supervisor:
    """The programs of one data folder. `say` gets a sentence whenever something happens."""

    def __init__(self, home: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.home = home
        self.say = say
        self.children: dict[str, Child] = {}
        self.run = home / "run"
        self.logs = home / "logs"
        for folder in (self.run, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self, programs: Iterable[Program], seconds: float = 60) -> None:
        """Start them all at once and wait until each is ready. Raises Failed."""
        fresh = [self.launch(program) for program in programs]
        deadline = time.monotonic() + seconds
        waiting = list(fresh)
        while waiting:
            for child in waiting:
                self.require_alive(child)
            waiting = [child for child in waiting if not child.program.ready()]
            if waiting and time.monotonic() > deadline:
                names = ", ".join(child.program.name for child in waiting)
                raise Failed(
                    f"Not ready after {seconds:.0f} s: {names}. {self.tail(waiting[0].program.name)}"
                )
            time.sleep(0.03 if waiting else 0)

    def launch(self, program: Program) -> Child:
        """Start one and note it, without waiting."""
        with held_back():
            process = spawn(program, self.home, self.log(program.name))
            pid_file = self.run / f"{program.name}.pid"
            pid_file.write_text(f"{process.pid} {started_at(process.pid)} {int(program.stop_signal)}\n")
            earlier = self.children.get(program.name)
            child = Child(program, process, earlier.crashes if earlier else [])
            self.children[program.name] = child
        return child

    def require_alive(self, child: Child) -> None:
        """Raises Failed if it ended."""
        code = child.process.poll()
        if code is not None:
            name = child.program.name
            raise Failed(f"{name} ended with {ended(code)} while starting. {self.tail(name)}")

    def check(self) -> None:
        """Start again what crashed; says so. What crashes too often is left down and reported."""
        for child in list(self.children.values()):
            code = child.process.poll()
            if code is None or child.given_up:
                continue
            if child.again_at is None:
                self.note_crash(child, code)
            elif time.monotonic() >= child.again_at:
                self.launch(child.program)

    def note_crash(self, child: Child, code: int) -> None:
        now, name = time.monotonic(), child.program.name
        child.crashes = [at for at in child.crashes if now - at < RESTART_WINDOW] + [now]
        if len(child.crashes) > RESTARTS:
            child.given_up = True
            self.say(
                f"{name} crashed {len(child.crashes)} times in a minute and stays down. {self.tail(name)}"
            )
            return
        child.again_at = now + 0.5 * 2 ** (len(child.crashes) - 1)
        self.say(f"{name} ended with {ended(code)}; starting it again. Its log: {self.log(name)}")

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Stop every program, the highest tier first, each within its time, then by force."""
        for tier in sorted({child.program.tier for child in self.children.values()}, reverse=True):
            self.end([c for c in self.children.values() if c.program.tier == tier], hurry)
        for child in self.children.values():
            (self.run / f"{child.program.name}.pid").unlink(missing_ok=True)
        self.children.clear()

    def end(self, children: list[Child], hurry: Callable[[], bool] = lambda: False) -> None:
        """Ask these to stop, wait, and kill what is left of their sessions."""
        asked = time.monotonic()
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(child.program.stop_signal)
        for child in children:
            while child.process.poll() is None and not hurry():
                if time.monotonic() - asked > child.program.stop_seconds:
                    self.say(
                        f"{child.program.name} did not stop in {child.program.stop_seconds:.0f} s; killed."
                    )
                    break
                time.sleep(0.03)
            kill_session(child.process.pid)
            child.process.wait()

    def kill(self, name: str) -> None:
        """`kill -9` of that process alone, for the chaos tests."""
        self.children[name].process.kill()
        self.children[name].process.wait()

    def sweep(self) -> list[str]:
        """End what an earlier supervisor left running here; the names of what was found."""
        found = []
        for file in sorted(self.run.glob("*.pid")):
            pid, born, number = file.read_text().split() if file.stat().st_size else ("0", "", "15")
            if born != "None" and int(pid) and started_at(int(pid)) == born:
                found.append(file.stem)
                end_stranger(int(pid), born, int(number))
            file.unlink()
        return found

    def log(self, name: str) -> Path:
        """Where that program's output goes."""
        return self.logs / f"{name}.log"

    def tail(self, name: str, lines: int = 12) -> str:
        """The last lines of its log, with where to find the rest."""
        log = self.log(name)
        text = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
        return "\n".join([f"The end of {log}:", *(f"    {line}" for line in text)])


def ended(code: int) -> str:
    """An exit code in words."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


def kill_session(pid: int) -> None:
    """Kill what is left of a program's process group, after its leader has ended or will not."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def end_stranger(pid: int, born: str, number: int, seconds: float = 10) -> None:
    """End a process that is not our child: asked first, then by force with its group."""
    deadline = time.monotonic() + seconds
    try:
        os.kill(pid, number)
        while started_at(pid) == born and time.monotonic() < deadline:
            time.sleep(0.05)
    except ProcessLookupError:
        return
    kill_session(pid)
