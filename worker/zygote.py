"""The pre-warmed process that forks trainers: it has imported the training libraries, so that a trainer
starts in milliseconds, and it never trains itself.

    supervisor ──Popen──► zygote ──fork──► trainer (own session, walls up, output to DIR/output.log)

Whoever dies takes what is below along: by the kernel's parent-death signal in zygote and trainer, and,
should that fail, by a pipe whose only writer is the supervisor. The death signal follows the *thread*
that started the zygote, so start it from one that lives as long as the process.

Between supervisor and zygote runs a socket with a JSON object a packet:
{"fork": folder} → {"forked": pid} or {"refused": text}; {"exited": pid, "code": n} whenever one ends. With a fork
go the descriptors of the slots' locks: the trainer holds them too, so that a slot is nobody else's while it lives,
whoever has died above it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker import walls
from worker.walls import sandbox_facts

PACKET = 65_536
MOST_LOCKS = 64  # of one attempt
MOST_OUTPUT = 2 * 1024 * 1024  # bytes of output.log
KILLED = -signal.SIGKILL

__all__ = ["Trainer", "Zygote", "sandbox_facts"]


class Trainer:
    """A forked trainer. Its methods may be called from any thread."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.zygote, self.pid = zygote, pid
        self.ended: int | None = None  # its exit code, once the zygote has told it

    def poll(self) -> int | None:
        """Its exit code, the negative signal that ended it, or None while it runs. With the zygote dead, it was killed."""
        self.zygote.listen(0)
        return KILLED if self.ended is None and self.zygote.gone else self.ended

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"Trainer {self.pid} still runs after {timeout} s.")
            self.zygote.listen(min(left, 0.05))
        return code

    def terminate(self) -> None:
        """Ask it to save and go."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def suffice(self) -> None:
        """Tell it that what it has trained is enough: it evaluates, saves and ends."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """End it and everything that it started, at once."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class Zygote:
    """The supervisor's end."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, lifeline: int) -> None:
        self.process, self.channel, self.lifeline = process, channel, lifeline
        self.lock = threading.Lock()
        # those that run, by pid: the kernel gives a pid again, soon on a busy machine
        self.trainers: dict[int, Trainer] = {}
        self.answers: list[Trainer | OSError] = []
        self.gone = False

    @classmethod
    def start(cls) -> Zygote:
        """Start one. Returns at once; it takes some seconds of imports until the first fork."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end_of_supervisor, lifeline = os.pipe()
        process = subprocess.Popen(  # noqa: S603 - our own module
            [
                sys.executable,
                "-m",
                "worker.zygote",
                str(os.getpid()),
                str(theirs.fileno()),
                str(end_of_supervisor),
            ],
            env=walls.environment(dict(os.environ)),
            pass_fds=(theirs.fileno(), end_of_supervisor),
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        os.close(end_of_supervisor)
        return cls(process, ours, lifeline)

    @property
    def alive(self) -> bool:
        """Whether it can fork; if not, its trainers are dead too."""
        self.listen(0)
        return not self.gone and self.process.poll() is None

    def fork(self, folder: Path, locks: Sequence[int] = (), timeout: float = 120) -> Trainer:
        """A trainer for the attempt in `folder`, which holds on to these descriptors. Raises OSError if the zygote
        is dead or refuses. One that does not answer in time is killed: a late answer would name another's trainer.
        """
        with self.lock:
            try:
                word = json.dumps({"fork": str(folder.resolve())}).encode()
                socket.send_fds(self.channel, [word], list(locks))
            except OSError:
                self.gone = True
            deadline = time.monotonic() + timeout
            while not self.answers and not self.gone and time.monotonic() < deadline:
                self.receive(0.1)
            if not self.answers:
                said = "The zygote is gone." if self.gone else "The zygote does not answer."
                self.process.kill()
                self.gone = True
                raise OSError(said)
            answer = self.answers.pop()
        if isinstance(answer, OSError):
            raise answer
        return answer

    def listen(self, seconds: float) -> None:
        """Take in what the zygote says, waiting at most that long for a first word."""
        if self.lock.acquire(timeout=seconds) if seconds else self.lock.acquire(blocking=False):
            try:
                self.receive(seconds)
            finally:
                self.lock.release()

    def receive(self, seconds: float) -> None:
        """Read every packet that is there. Call with the lock held."""
        while not self.gone and select.select([self.channel], [], [], seconds)[0]:
            seconds = 0
            try:
                packet = self.channel.recv(PACKET)
            except OSError:
                packet = b""
            if not packet:
                self.gone = True
                return
            self.hear(json.loads(packet))

    def hear(self, said: dict[str, Any]) -> None:
        """One packet of the zygote's."""
        if "exited" in said:
            self.trainers.pop(said["exited"]).ended = said["code"]
        elif "forked" in said:
            self.trainers[said["forked"]] = trainer = Trainer(self, said["forked"])
            self.answers.append(trainer)
        else:
            self.answers.append(OSError(said["refused"]))

    def stop(self) -> None:
        """End the zygote and with it every trainer."""
        os.close(self.lifeline)
        self.process.kill()
        self.process.wait()
        self.gone = True
        self.channel.close()


class Nursery:
    """The zygote's end: forks on request, reaps, and writes down what trainers print."""

    def __init__(self, channel: socket.socket, lifeline: int) -> None:
        self.channel, self.lifeline = channel, lifeline
        self.outputs: dict[int, tuple[Any, int]] = {}  # pipe → (file, bytes left to write)
        self.trainers: set[int] = set()
        self.waker = signal_pipe()

    def serve(self) -> None:
        """Until the supervisor is gone."""
        while True:
            ready, _, _ = select.select([self.channel, self.lifeline, self.waker, *self.outputs], [], [])
            for pipe in list(self.outputs):
                if pipe in ready:
                    self.copy(pipe)
            if self.waker in ready:
                os.read(self.waker, PACKET)
                self.reap()
            if self.lifeline in ready:
                return
            if self.channel in ready:
                packet, locks, _, _ = socket.recv_fds(self.channel, PACKET, MOST_LOCKS)
                if not packet:
                    return
                self.answer(Path(json.loads(packet)["fork"]), locks)

    def answer(self, folder: Path, locks: Sequence[int]) -> None:
        """Fork a trainer, which alone keeps the locks, and tell its pid."""
        try:
            self.say({"forked": self.fork(folder, locks)})
        except (OSError, RuntimeError) as wrong:
            self.say({"refused": f"No trainer could be forked: {wrong}"})
        finally:
            for lock in locks:
                os.close(lock)

    def fork(self, folder: Path, locks: Sequence[int]) -> int:
        """The pid of a trainer that has its own session, so that its group can be killed."""
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise RuntimeError(f"The zygote has {threads} threads; a fork would copy their locks.")
        log = (folder / "output.log").open("ab")
        reading, writing = os.pipe()
        ready, settled = os.pipe()
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(ready)
            self.become_trainer(folder, zygote, writing, settled, locks)
        log_left = max(0, MOST_OUTPUT - log.tell())
        self.outputs[reading] = (log, log_left)
        os.close(writing)
        os.close(settled)
        os.read(ready, 1)
        os.close(ready)
        self.trainers.add(pid)
        return pid

    def become_trainer(
        self, folder: Path, zygote: int, output: int, settled: int, locks: Sequence[int]
    ) -> None:
        """In the child: walls, signals, output; then the attempt. Never returns."""
        code = 1
        try:
            os.setsid()
            walls.die_with(zygote)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            from worker.engine.attempt import Stop

            stop = Stop().listen()
            os.dup2(output, 1)
            os.dup2(output, 2)
            self.let_go(keep={0, 1, 2, self.lifeline, settled, *locks})
            os.write(settled, b"1")
            os.close(settled)
            walls.confine(zygote, folder)
            from worker.engine.__main__ import run

            code = run(folder, stop, forked=lambda: walls.settle(self.lifeline, folder))
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - the last line of a process
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            # No atexit handlers: they belong to the zygote that this process is a copy of.
            os._exit(code)

    def let_go(self, keep: set[int]) -> None:
        """Close everything that the zygote had open."""
        for path in list(Path("/proc/self/fd").iterdir()):
            if int(path.name) not in keep:
                with suppress(OSError):
                    os.close(int(path.name))

    def copy(self, pipe: int) -> None:
        """Move what a trainer printed to its log; beyond the limit it is thrown away."""
        file, left = self.outputs[pipe]
        printed = os.read(pipe, PACKET)
        if not printed:
            os.close(pipe)
            file.close()
            del self.outputs[pipe]
            return
        if left > 0:
            with suppress(OSError):
                file.write(printed[:left])
                file.flush()
            self.outputs[pipe] = (file, left - len(printed))

    def reap(self) -> None:
        """Tell of every trainer that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.trainers:
                self.trainers.discard(pid)
                self.say({"exited": pid, "code": os.waitstatus_to_exitcode(status)})
            self.end_orphans()

    def end_orphans(self) -> None:
        """End what a trainer left behind, also in a session of its own: the kernel made it our child.

        What it has started itself becomes our child then, and is found when its parent is reaped.
        """
        for orphan in walls.children() - self.trainers:
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)

    def say(self, word: dict[str, Any]) -> None:
        """A packet to the supervisor; if it is gone, the lifeline tells."""
        with suppress(OSError):
            self.channel.send(json.dumps(word).encode())


def signal_pipe() -> int:
    """The reading end of a pipe that gets a byte whenever a child ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reading


def warm_up() -> None:
    """Import everything that a trainer needs, and leave no thread behind."""
    import gc

    gc.disable()  # imports leave nothing to collect: they take a tenth less so
    import peft  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tokenizers  # noqa: F401
    import torch
    from diffusers.models.transformers import dit_transformer_2d, pixart_transformer_2d  # noqa: F401
    from diffusers.schedulers import scheduling_flow_match_euler_discrete  # noqa: F401
    from PIL import PngImagePlugin  # noqa: F401
    from transformers.models.auto import modeling_auto, tokenization_auto  # noqa: F401
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import worker.engine.__main__
    import worker.engine.export
    import worker.engine.infer
    import worker.engine.loop  # noqa: F401
    from shared.learning import batch, chat, generation, language_model, scores  # noqa: F401
    from shared.recipe import recipes

    recipes()
    if torch.cuda.is_initialized():
        raise RuntimeError("Importing has initialised CUDA, which a fork cannot take along.")
    # Pages that the collector does not touch stay shared with every trainer.
    gc.collect()
    gc.freeze()
    gc.enable()


def main() -> None:
    """`python -m worker.zygote PARENT CHANNEL LIFELINE`: started by `Zygote.start` alone."""
    parent, channel, lifeline = (int(value) for value in sys.argv[1:4])
    walls.die_with(parent)
    walls.adopt_orphans()
    walls.hide()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warm_up()
    Nursery(socket.socket(fileno=channel), lifeline).serve()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
