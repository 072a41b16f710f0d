"""One training in several processes: it learns what one process learns, and none of them outlives the others."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.attempts import TINY, checkpoints, events, parquet, tensors, write_attempt
from worker.engine.ranks import Ranks, buckets
from worker.zygote import Trainer, Zygote

TOPICS = ["rain", "snow", "sun", "wind", "fog"]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {word}{'?' * (n % 4)}"},
            {"role": "assistant", "content": f"{word} is weather{'!' * (n % 3)}"},
        ]
    }
    for n in range(8)
    for word in TOPICS
]
FOR_EVER = {"epochs": 100, "max_steps": 1_000_000, "batch_size": 1, "evaluations": 1, "checkpoints": 1}


@pytest.fixture(scope="module")
def zygote() -> Generator[Zygote]:
    zygote = Zygote.start()
    yield zygote
    zygote.stop()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["causal_lm"](tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def fields(base: Path, tmp_path: Path) -> dict[str, Any]:
    """An attempt at chat fine-tuning, whose last batch of an epoch has a single row."""
    return {
        "recipe": "sft",
        "spec": {"epochs": 2, "batch_size": 7, "learning_rate": 0.01, "max_length": 96, "evaluations": 2},
        "columns": {"messages": "messages"},
        "base_model": base,
        "train": parquet(tmp_path / "rows.parquet", ROWS),
    }


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    """Until it is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The processes below that one."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in told]


def runs(pid: int) -> bool:
    """Whether the process runs (one that has ended and waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def by_step(folder: Path) -> dict[int, float]:
    """The losses that were told (steps that come fast are not all told)."""
    return {event["step"]: event["data"]["loss"] for event in events(folder, "step")}


def a_long_one(zygote: Zygote, folder: Path, fields: dict[str, Any], processes: int = 2) -> Trainer:
    """A trainer that has begun to train and would go on for hours."""
    trainer = zygote.fork(
        write_attempt(folder, **fields | {"spec": fields["spec"] | FOR_EVER}, processes=processes)
    )
    wait_for(lambda: events(folder, "step") or trainer.poll() is not None)
    assert trainer.poll() is None, (folder / "output.log").read_text()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rate"), [("lora", 0.01), ("full", 0.001)])
def test_two_ranks_learn_what_one_learns(
    zygote: Zygote, fields: dict[str, Any], tmp_path: Path, method: str, rate: float
):
    """The gradients of a step are summed in another order, which changes their last bits: losses agree to
    1e-5 of themselves, and no weight is further off than a hundredth of one step of the optimizer.
    """
    from safetensors.torch import load_file

    fields["spec"] |= {"method": method, "learning_rate": rate}
    alone, both = (write_attempt(tmp_path / f"by {count}", **fields, processes=count) for count in (1, 2))
    for folder in (alone, both):
        assert zygote.fork(folder).wait(120) == 0, (folder / "output.log").read_text()
        assert [event["seq"] for event in events(folder)] == list(range(1, len(events(folder)) + 1))
    losses, others = by_step(alone), by_step(both)
    shared = losses.keys() & others.keys()
    assert {1, max(losses)} <= shared
    assert [others[step] for step in shared] == pytest.approx([losses[step] for step in shared], rel=1e-5)
    judged = [[event["data"]["metrics"]["loss"] for event in events(f, "eval")] for f in (alone, both)]
    assert judged[1] == pytest.approx(judged[0], rel=1e-5)
    one, two = (
        load_file(next((checkpoints(f)[-1] / "servable").glob("*.safetensors"))) for f in (alone, both)
    )
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < rate / 100


def test_a_stopped_training_of_two_ranks_goes_on_bit_for_bit(
    zygote: Zygote, fields: dict[str, Any], tmp_path: Path
):
    fields |= {"processes": 2, "spec": fields["spec"] | {"epochs": 100, "max_steps": 60}}
    whole, stopped = (write_attempt(tmp_path / name, **fields) for name in ("whole", "stopped"))
    assert zygote.fork(whole).wait(120) == 0
    trainer = zygote.fork(stopped)
    wait_for(lambda: events(stopped, "step"))
    trainer.terminate()
    assert trainer.wait(60) == 75
    saved = checkpoints(stopped)[-1]
    assert 0 < int(saved.name.removeprefix("step-")) < 60
    resumed = write_attempt(tmp_path / "resumed", **fields, resume=saved)
    assert zygote.fork(resumed).wait(120) == 0
    assert tensors(checkpoints(resumed)[-1]) == tensors(checkpoints(whole)[-1])


def test_when_a_rank_is_killed_all_end_and_it_counts_as_a_crash(
    zygote: Zygote, fields: dict[str, Any], tmp_path: Path
):
    trainer = a_long_one(zygote, tmp_path / "attempt", fields, processes=3)
    others = children(trainer.pid)
    assert len(others) == 2
    os.kill(others[1], signal.SIGKILL)
    assert trainer.wait(10) == -signal.SIGKILL
    wait_for(lambda: not any(map(runs, others)), 1)
    assert "Process 3 of 3 ended (SIGKILL)." in (tmp_path / "attempt" / "output.log").read_text()


def test_no_rank_outlives_the_first(zygote: Zygote, fields: dict[str, Any], tmp_path: Path):
    trainer = a_long_one(zygote, tmp_path / "attempt", fields)
    others = children(trainer.pid)
    assert others
    os.kill(trainer.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(runs, others)), 1)
    assert trainer.wait(10) == -signal.SIGKILL


def test_the_death_of_the_supervisor_is_the_death_of_every_rank(fields: dict[str, Any], tmp_path: Path):
    zygote = Zygote.start()
    trainer = a_long_one(zygote, tmp_path / "attempt", fields)
    others = children(trainer.pid)
    zygote.stop()
    wait_for(lambda: not any(map(runs, [trainer.pid, *others])), 1)


def test_what_is_wrong_with_the_data_is_told_once_and_soon(
    zygote: Zygote, fields: dict[str, Any], tmp_path: Path
):
    rows = parquet(tmp_path / "bad.parquet", [{"messages": ROWS[0]["messages"][:1]}] * 3)
    folder = write_attempt(tmp_path / "attempt", **fields | {"train": rows}, processes=2)
    assert zygote.fork(folder).wait(30) == 10
    (error,) = events(folder, "error")
    assert error["data"]["param"] == "training_file"


ONE_IS_FULL = """
import os, sys
from pathlib import Path
import torch
from shared.recipe import get
from worker.engine.__main__ import run
recipe, first = get("sft"), os.getpid()
honest = type(recipe).loss

def greedy(self, learner, batch):
    if os.getpid() != first and learner.model.training and len(batch["layout_rows"]) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    return honest(self, learner, batch)

type(recipe).loss = greedy
sys.exit(run(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_where_one_rank_runs_out_of_memory_all_take_smaller_micro_batches(
    zygote: Zygote, fields: dict[str, Any], tmp_path: Path
):
    calm, full = (write_attempt(tmp_path / name, **fields, processes=2) for name in ("calm", "full"))
    assert zygote.fork(calm).wait(120) == 0
    subprocess.run([sys.executable, "-c", ONE_IS_FULL, str(full)], check=True, timeout=120)
    said = [event["data"]["message"] for event in events(full, "log") if event["data"]["level"] == "warn"]
    assert len([text for text in said if "Memory ran out" in text]) == 1
    expected, found = (events(folder, "eval")[-1]["data"]["metrics"]["loss"] for folder in (calm, full))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_step_is_dealt_out_evenly_and_whole():
    batch = list(range(10, 23))  # shortest first: an item's number stands for its length
    shares = [Ranks(rank, 3).share(batch) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == batch
    assert max(map(sum, shares)) - min(map(sum, shares)) <= batch[-1]
    assert [Ranks(rank, 3).share(batch[:1]) for rank in range(3)] == [[10], [], []]
    assert Ranks().share(batch) == batch


def test_gradients_are_sent_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr("worker.engine.ranks.BUCKET", 10)
    given = [torch.zeros(size) for size in (4, 6, 1, 30, 2)]
    sizes = [[len(one) for one in bucket] for bucket in buckets(given)]
    assert sizes == [[4, 6], [1], [30], [2]]
