"""Training speed beside what people would use instead, in one run on one machine: `python -m tests.bench.training`.

Each side of a case (`tests.bench.sides`) trains the same rows in the same steps, in a process of its own; blocks
of sides alternate, so that a machine that slows down slows them all. TRL is of the extra `bench`; LLaMA-Factory
needs an environment of its own, whose python is told by `--llama-factory`. Writes docs/bench/training.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from tests.bench.sides import CASES, SIDES, Case
from worker.walls import FAST

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "bench" / "training.md"
TITLES = {
    "burnish": "Burnish",
    "best": "best settings",
    "defaults": "defaults",
    "llama_factory": "LLaMA-Factory, defaults",
}
SAME_LOSS = 0.02  # of the loss, either way
Figures = dict[str, float]


def main() -> None:
    """Measure and write the tables."""
    told = arguments()
    with tempfile.TemporaryDirectory() as folder:
        bases = told.bases or folder
        for package in {CASES[name].base for name in told.cases}:
            imported(package, Path(bases))
        measured: dict[str, dict[str, list[Figures]]] = {}
        for name in told.cases:
            measured[name] = defaultdict(list)
            for block in range(told.blocks):
                for side in [
                    *SIDES,
                    *(["llama_factory"] if told.llama_factory and name == "sft-lora" else []),
                ]:
                    figures = one(name, side, bases, told)
                    measured[name][side].append(figures)
                    print(f"{name}, block {block + 1}, {side}: {figures}", flush=True)
    write(told, {name: {side: mean(blocks) for side, blocks in by.items()} for name, by in measured.items()})


def arguments() -> argparse.Namespace:
    """What to measure with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bases", help="folder in which imported base models are kept for the next time")
    parser.add_argument("--llama-factory", help="python of an environment with LLaMA-Factory")
    return parser.parse_args()


def imported(package: str, bases: Path) -> Path:
    """The folder of that package's base model, as the platform stores it."""
    from tests.attempts import write_attempt

    if not (bases / package).exists():
        attempt = write_attempt(bases / package, kind="import_base_model", package=package)
        subprocess.run([sys.executable, "-m", "worker.engine", str(attempt)], check=True)
    return bases / package / "artifacts" / "model"


def one(case: str, side: str, bases: str, told: argparse.Namespace) -> Figures:
    """One side's figures, from a process of its own."""
    python = told.llama_factory if side == "llama_factory" else sys.executable
    command = [python, "-m", "tests.bench.sides", case, side, str(bases), str(told.threads)]
    surroundings = os.environ | (FAST if side == "burnish" else {})  # as its trainers have them
    done = subprocess.run(
        command, cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, text=True, check=True, timeout=1200
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def mean(blocks: list[Figures]) -> Figures:
    """The mean of each figure over the blocks."""
    return {key: statistics.mean(block[key] for block in blocks) for key in blocks[0]}


def write(told: argparse.Namespace, measured: dict[str, dict[str, Figures]]) -> None:
    """The tables as docs/bench/training.md."""
    parts = [table(CASES[name], sides) for name, sides in measured.items()]
    REPORT.write_text(
        "# Training speed\n\n"
        "Every side of a table trains the same rows in the same number of steps, with the same optimizer, learning "
        "rate and weights to train, float32 on a CPU, each in a process of its own; "
        f"{told.blocks} {'block' if told.blocks == 1 else 'blocks'} in turn. «Defaults» is TRL's SFTTrainer (for `sft`) or transformers' Trainer as it "
        "comes, «best settings» the same with what its documentation advises for speed: no gradient "
        "checkpointing, rows laid end to end without padding (`sft`), batches grouped by length "
        "(`classification`), texts joined into blocks (`causal_lm`). Burnish takes random rows in every step, as the "
        "defaults do, and has the allocator and thread settings that workers give to their trainers; the others run "
        "as they come. Aimed at are 3.5 times the defaults, 1.8 times the best settings and half of the matrix peak, "
        "at a loss within 2 %. The loss is computed alike for all, row by "
        "row on the training rows. Processor seconds are what other work on the machine disturbs least. "
        "The share of the peak is of the operations in the products that Burnish computes, against one large "
        "float32 product measured in the same process.\n\n"
        "Command: `make bench`, or `python -m tests.bench.training`.\n\n"
        + "\n".join(parts)
        + "\n"
        + machine(told)
    )
    print(REPORT.read_text())


def table(case: Case, sides: dict[str, Figures]) -> str:
    """A case's table, fastest first, and how much faster Burnish is."""
    ours = sides["burnish"]
    rows = "".join(line(TITLES[side], case, sides[side], ours) for side in TITLES if side in sides)
    share = ours["operations"] / ours["cpu_seconds"] / ours["peak"]
    return (
        f"## {case.title}\n\n{case.base}, {case.rows} rows, {ours['steps']:.0f} steps.\n\n"
        "| | examples/s | examples per processor second | Burnish is faster, by the clock and by processor time "
        "| peak memory | loss after |\n|---|--:|--:|--:|--:|--:|\n"
        f"{rows}\n{other_losses(sides)}"
        f"Share of the matrix peak: {share:.0%} of {ours['peak'] / 1e9:.0f} GFLOP per processor second.\n"
    )


def other_losses(sides: dict[str, Figures]) -> str:
    """A sentence about the sides that learned noticeably more or less, so that their speed compares the less."""
    ours = sides["burnish"]["loss"]
    apart = {TITLES[name]: side["loss"] / ours - 1 for name, side in sides.items()}
    told = ", ".join(f"{title} {share:+.0%}" for title, share in apart.items() if abs(share) > SAME_LOSS)
    return f"Not the same loss as Burnish's: {told}. " if told else ""


def line(title: str, case: Case, side: Figures, ours: Figures) -> str:
    """A side's row of the table."""
    by_clock, by_work = side["seconds"] / ours["seconds"], side["cpu_seconds"] / ours["cpu_seconds"]
    ratio = "" if side is ours else f"{by_clock:.2f}×, {by_work:.2f}×"
    return (
        f"| {title} | {case.rows / side['seconds']:.2f} | {case.rows / side['cpu_seconds']:.2f} | {ratio} "
        f"| {side['memory'] / 2**30:.2f} GiB | {side['loss']:.3f} |\n"
    )


def machine(told: argparse.Namespace) -> str:
    """What it ran on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    return (
        f"{platform.machine()}, {told.threads} of {os.cpu_count()} cores, {versions}; load average at the end "
        f"{os.getloadavg()[1]:.1f}.\n"
    )


if __name__ == "__main__":
    main()
