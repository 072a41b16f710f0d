"""One training in several processes: rank 0 forks the others, each computes its share of every step, and
rank 0 alone reports, evaluates and saves.

The ranks stand inside the walls, the session and the process group of rank 0 and die with it; when one of
them dies, rank 0 ends. They talk by torch.distributed: gloo over the loopback, and nccl between GPUs.

Step N is the same batch at any number of ranks. What they add up differs from what one process computes
by the rounding of float32 alone, unless the recipe draws random numbers for a micro-batch: those are
seeded by the step and the micro-batch's first item, and ranks cut other micro-batches.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from worker import walls

MEETING = "ranks"  # a file in the attempt's folder, where the ranks find one another
PATIENCE = timedelta(days=1)  # an evaluation by rank 0 lasts as long as it lasts; the runner ends what hangs
BUCKET = 8 * 1024 * 1024  # numbers that are sent at once
GRACE = 60.0  # seconds for rank 0 to tell itself why all of them end
GO_ON, LEAVE, FINISH = 0, 1, 2  # what rank 0 decides before each step


@dataclass(frozen=True)
class Ranks:
    """One process's place among `size`. Alone, every exchange gives back what it was given."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process reports, evaluates and saves."""
        return self.rank == 0

    def share(self, batch: list[int]) -> list[int]:
        """This rank's items of a step. They come shortest first and are dealt back and forth, so that every
        rank has as much to do.
        """
        return [item for place, item in enumerate(batch) if self.dealt_to(place) == self.rank]

    def dealt_to(self, place: int) -> int:
        """The rank that gets the item at this place of a step."""
        turn, seat = divmod(place, self.size)
        return seat if turn % 2 == 0 else self.size - 1 - seat

    def decided(self, word: int) -> int:
        """What rank 0 says; the others wait for it, however long it takes."""
        if self.size == 1:
            return word
        told = torch.tensor(word)
        dist.broadcast(told, src=0)
        return int(told)

    def summed(self, *numbers: float) -> list[float]:
        """Each number summed over the ranks, the same bits on every rank."""
        if self.size == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(told)
        return told.tolist()

    def add_gradients(self, weights: list[torch.Tensor]) -> None:
        """Every weight's gradient becomes the sum over the ranks; one that no rank has stays None."""
        if self.size == 1:
            return
        had = self.summed(*(float(weight.grad is not None) for weight in weights))
        for weight, count in zip(weights, had, strict=True):
            if count and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        for bucket in buckets([weight.grad for weight in weights if weight.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            sums = flat.split([gradient.numel() for gradient in bucket])
            for gradient, summed in zip(bucket, sums, strict=True):
                gradient.copy_(summed.view_as(gradient))

    @contextmanager
    def one_after_the_other(self) -> Generator[None]:
        """Inside, rank 0 goes first and the others follow when it is through, to find what it has cached."""
        if not self.first:
            self.decided(GO_ON)
        yield
        if self.first:
            self.decided(GO_ON)

    def require_the_same(self, what: str, number: int) -> None:
        """Raises RuntimeError where the ranks' numbers differ, as they would learn different things."""
        if self.size == 1:
            return
        most = torch.tensor([number, -number])
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        if most[0] != -most[1]:
            raise RuntimeError(f"The processes of this training differ in their {what}.")


ALONE = Ranks()


def buckets(gradients: list[Any]) -> Iterator[list[torch.Tensor]]:
    """The tensors in their order, in lists of about `BUCKET` numbers."""
    bucket, held = [], 0
    for gradient in gradients:
        if bucket and held + gradient.numel() > BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.numel()
    if bucket:
        yield bucket


def together(size: int, folder: Path, work: Callable[[Ranks], int], forked: Callable[[], None]) -> int:
    """`work` in `size` processes; the exit code of rank 0, which this process becomes.

    Call it before there is a thread and before CUDA is initialised. `forked` is called in each process
    when there will be no more forks.
    """
    if size == 1:
        forked()
        return work(ALONE)
    (folder / MEETING).unlink(missing_ok=True)
    first, others = os.getpid(), {}
    for rank in range(1, size):
        if (pid := os.fork()) == 0:
            follow(first, folder, Ranks(rank, size), work, forked)
        others[pid] = rank
    forked()
    threading.Thread(target=mind, args=(others, size), name="ranks", daemon=True).start()
    return meeting(folder, Ranks(0, size), work)


def follow(
    first: int, folder: Path, ranks: Ranks, work: Callable[[Ranks], int], forked: Callable[[], None]
) -> None:
    """In a forked process: the work as another rank. Never returns. Whether all stop is for rank 0 to say."""
    code = 1
    try:
        walls.die_with(first)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        forked()
        code = meeting(folder, ranks, work)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the last line of a process
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def meeting(folder: Path, ranks: Ranks, work: Callable[[Ranks], int]) -> int:
    """The work while the ranks can hear one another."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.FileStore(str(folder / MEETING), ranks.size),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=PATIENCE,
    )
    try:
        return work(ranks)
    finally:
        dist.destroy_process_group()


def mind(others: dict[int, int], size: int) -> None:
    """In a thread of rank 0: where another rank dies, all end. One that leaves with a reason gives rank 0
    time to tell the same reason.
    """
    watched = {os.pidfd_open(pid): pid for pid in others}
    while watched:
        for ended in select.select(list(watched), [], [])[0]:
            pid = watched.pop(ended)
            os.close(ended)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == 0:
                continue
            if code > 0:
                time.sleep(GRACE)
            how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            sys.stderr.write(f"Process {others[pid] + 1} of {size} ended ({how}).\n")
            sys.stderr.flush()
            end(list(watched.values()), code)


def end(others: list[int], code: int) -> None:
    """End the other ranks, then this one as the first of them ended."""
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if code > 0:
        os._exit(code)
    os.kill(os.getpid(), signal.SIGKILL)
