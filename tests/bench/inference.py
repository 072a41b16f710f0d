"""Speed of inference beside plain transformers, in one run on one machine: `python -m tests.bench.inference`.

Both sides answer the same requests with the same weights in one process, block by block in turn. The plain side
is what most people write: batches of the same size in the order of the file, padded to the longest, one call of
`model.generate` (or of the model) for each. Writes docs/bench/inference.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers

from shared.recipe import Learner, Recipe, get
from tests.attempts import checkpoints, parquet, run_here, write_attempt
from tests.proofs.smollm2 import exchanges, smollm2
from tests.proofs.texts import beginning
from worker.engine import infer, weights
from worker.engine.attempt import Attempt

REPORT = Path(__file__).parents[2] / "docs" / "bench" / "inference.md"
TOGETHER = infer.AT_ONCE["cpu"]
WAYS: dict[str, dict[str, Any]] = {
    "likeliest tokens": {"max_tokens": 64},
    "drawn at 0.8, top p 0.95": {"max_tokens": 64, "temperature": 0.8, "top_p": 0.95},
}
Requests = list[dict[str, Any]]


@dataclass
class Case:
    """What is asked of one model. `plain` answers some requests at once by transformers alone, and returns texts."""

    title: str
    recipe: Recipe
    learner: Learner
    requests: Requests
    plain: Callable[[Learner, Requests], list[str]]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"plain": [], "ours": []})
    said: dict[str, list[str]] = field(default_factory=dict)

    def measure(self, blocks: int) -> None:
        """Both sides in turn, after a few requests that do not count."""
        with torch.no_grad():
            self.plain(self.learner, self.requests[:4])
        for _ in range(blocks):
            for name, answer in (("plain", self.in_file_order), ("ours", self.by_the_engine)):
                started = time.process_time()
                self.said[name] = answer()
                self.seconds[name].append((time.process_time() - started) / torch.get_num_threads())

    def in_file_order(self) -> list[str]:
        """Batch by batch as the file has them."""
        parts = [self.requests[at : at + TOGETHER] for at in range(0, len(self.requests), TOGETHER)]
        with torch.no_grad():
            return [text for part in parts for text in self.plain(self.learner, part)]

    def by_the_engine(self) -> list[str]:
        """As an inference job does."""
        with torch.no_grad():
            asked, wrong = infer.encoded(self.recipe, self.learner, list(enumerate(self.requests)), 0)
            assert not wrong
            answers = [
                one
                for batch in infer.batches(asked, "cpu")
                for one in infer.answered(self.recipe, self.learner, batch)
            ]
        return [text_of(one["output"]) for one in sorted(answers, key=lambda one: one["place"])]

    def line(self) -> str:
        """A row of the table: rows per second by the fastest block of each side."""
        theirs, ours = (len(self.requests) / min(self.seconds[name]) for name in ("plain", "ours"))
        pairs = zip(self.said["plain"], self.said["ours"], strict=True)
        same = sum(a.strip() == b.strip() for a, b in pairs) / len(self.requests)
        equal = f"{same:.0%}" if not self.requests[0]["sampling"].get("temperature") else "drawn"
        return f"| {self.title} | {len(self.requests)} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} | {equal} |"


def text_of(output: dict[str, Any]) -> str:
    """What an answer says."""
    return next(output[name] for name in ("content", "text", "label") if name in output)


# --- what is asked ----------------------------------------------------------------------------------


def chats(base: Path, count: int) -> Iterator[Case]:
    """Questions to SmolLM2, some with what was said before them, so that they differ in length."""
    every, dice = exchanges(), random.Random(0)
    talks = []
    for _ in range(count):
        said = [
            {"role": role, "content": text}
            for exchange in dice.sample(every, dice.choice((0, 0, 1, 3)))
            for role, text in (("user", exchange.question), ("assistant", exchange.answer))
        ]
        talks.append([*said, {"role": "user", "content": dice.choice(every).question}])
    learner = opened("sft", base_model=base)
    for how, way in WAYS.items():
        requests = [{"input": {"messages": talk}, "sampling": way} for talk in talks]
        title = f"SmolLM2-135M, chat, {how}"
        yield Case(title, get("sft"), learner, requests, lambda one, part: generated(one, part, chat_text))


def writing(folder: Path, count: int) -> Iterator[Case]:
    """Beginnings of lines to a tiny Llama from scratch."""
    lines = beginning(200_000)
    rows = [{"text": line} for line in lines]
    spec = {"max_steps": 60, "batch_size": 16, "max_length": 128, "evaluations": 1, "checkpoints": 1}
    scratch = {"preset": {"architecture": "llama", "size": "tiny"}}
    servable = trained(folder, "causal_lm", rows, spec, **scratch)
    dice = random.Random(0)
    asked = [line[: dice.randint(5, len(line))].strip() for line in dice.sample(lines, count)]
    learner, recipe = opened("causal_lm", base_model=servable), get("causal_lm")
    for how, way in WAYS.items():
        requests = [{"input": {"text": text}, "sampling": way} for text in asked]
        title = f"llama-tiny from scratch, text, {how}"
        yield Case(title, recipe, learner, requests, lambda one, part: generated(one, part, plain_text))


def labels(folder: Path, count: int) -> Iterator[Case]:
    """Verses to a tiny BERT that tells two kinds of them apart."""
    lines = beginning(400_000)
    rows = [{"text": line, "label": "long" if len(line) > 120 else "short"} for line in lines]
    spec = {"max_steps": 20, "batch_size": 8, "evaluations": 1, "checkpoints": 1, "method": "full"}
    servable = trained(folder, "classification", rows[:400], spec, base_model=minilm(folder))
    requests = [{"input": {"text": line}, "sampling": {}} for line in random.Random(0).sample(lines, count)]
    learner = opened("classification", base_model=servable)
    yield Case("MiniLM, classification", get("classification"), learner, requests, classified)


def rewriting(folder: Path, count: int) -> Iterator[Case]:
    """Words to a tiny T5 that reverses them."""
    words = sorted({word for line in beginning(200_000) for word in line.split() if word.isalpha()})
    rows = [{"source": word, "target": word[::-1]} for word in words]
    spec = {"max_steps": 150, "batch_size": 16, "evaluations": 1, "checkpoints": 1, "answers": 8}
    scratch = {"preset": {"architecture": "t5", "size": "tiny"}}
    servable = trained(folder, "seq2seq", rows[:2000], spec, **scratch)
    asked = random.Random(0).choices(words, k=count)
    requests = [{"input": {"source": word}, "sampling": {"max_tokens": 64}} for word in asked]
    learner = opened("seq2seq", base_model=servable)
    title = "t5-tiny from scratch, text to text, likeliest tokens"
    yield Case(title, get("seq2seq"), learner, requests, lambda one, part: generated(one, part, source_text))


def minilm(folder: Path) -> str:
    """MiniLM from its package."""
    from tests.proofs import minilm as package

    return str(package.minilm(folder))


def trained(folder: Path, recipe: str, rows: Requests, spec: dict[str, Any], **start: Any) -> Path:
    """A checkpoint that has learned a little."""
    from shared import presets

    if "preset" in start:
        name = f"scratch/{start['preset']['architecture']}-{start['preset']['size']}"
        start["preset"] = presets.preset(name)
    columns = get(recipe).recognise(rows[0])
    given = {"recipe": recipe, "spec": spec, "columns": columns, "threads": torch.get_num_threads()} | start
    attempt = write_attempt(folder / recipe, train=parquet(folder / f"{recipe}.parquet", rows), **given)
    assert run_here(attempt) == 0
    return checkpoints(attempt)[-1] / "servable"


def opened(recipe: str, **fields: Any) -> Learner:
    """A model as an inference job opens it."""
    folder = Path(tempfile.mkdtemp()) / "attempt"
    fields |= {"kind": "infer", "recipe": recipe, "threads": torch.get_num_threads()}
    return weights.reopened(Attempt.read(write_attempt(folder, **fields)), get(recipe))


# --- plain transformers -----------------------------------------------------------------------------


def chat_text(request: dict[str, Any], tokenizer: Any) -> str:
    """The conversation as the model reads it."""
    messages = request["input"]["messages"]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def plain_text(request: dict[str, Any], tokenizer: Any) -> str:
    """The text as it is."""
    return request["input"]["text"]


def source_text(request: dict[str, Any], tokenizer: Any) -> str:
    """The source as it is."""
    return request["input"]["source"]


def generated(learner: Learner, part: Requests, text: Callable[[dict[str, Any], Any], str]) -> list[str]:
    """One call of `model.generate`."""
    tokenizer, model, way = learner.tokenizer, learner.model, part[0]["sampling"]
    tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
    texts = [text(request, tokenizer) for request in part]
    special = {"add_special_tokens": False} if "messages" in part[0]["input"] else {}
    batch = tokenizer(texts, padding=True, return_tensors="pt", **special)
    batch.pop("token_type_ids", None)
    drawn = {name: way[name] for name in ("temperature", "top_p") if name in way}
    torch.manual_seed(0)
    known = {
        "max_new_tokens": way["max_tokens"],
        "do_sample": bool(drawn),
        "pad_token_id": tokenizer.pad_token_id,
    }
    rows = model.generate(**batch, **known, **drawn)
    start = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
    return tokenizer.batch_decode(rows[:, start:], skip_special_tokens=True)


def classified(learner: Learner, part: Requests) -> list[str]:
    """One call of the model."""
    texts = [request["input"]["text"] for request in part]
    batch = learner.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    chosen = learner.model(**batch).logits.argmax(-1).tolist()
    return [learner.facts["labels"][number] for number in chosen]


# --- the page ---------------------------------------------------------------------------------------


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base-model", type=Path, help="folder of SmolLM2-135M-Instruct; else its package is imported"
    )
    parser.add_argument("--chats", type=int, default=64)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cases", nargs="*", choices=["labels", "rewriting", "writing", "chats"])
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makers: dict[str, Callable[[], Iterator[Case]]] = {
            "labels": lambda: labels(folder, 2 * told.rows),
            "rewriting": lambda: rewriting(folder, 8 * told.rows),
            "writing": lambda: writing(folder, told.rows),
            "chats": lambda: chats(told.base_model or smollm2(folder), told.chats),
        }
        for case in chain.from_iterable(makers[one]() for one in told.cases or makers):
            case.measure(told.blocks)
            write(case.line(), told)


def write(line: str, told: argparse.Namespace) -> None:
    """docs/bench/inference.md, with this line new in its table."""
    before = REPORT.read_text().split("\n") if REPORT.exists() else []
    table = {one.split("|")[1]: one for one in before if one.startswith("| ") and not one.startswith("| |")}
    table = "\n".join((table | {line.split("|")[1]: line}).values())
    REPORT.write_text(
        "# Inference speed\n\n"
        f"The same requests, weights and batch size ({TOGETHER}) on both sides, float32 on a CPU, in one process, block by block in"
        f" turn; the faster of {told.blocks} blocks counts. «Plain» is `model.generate` (or the model itself) over batches in the order of"
        " the file, padded to the longest. Rows per second of processor time, tokenising included. «Equal» is the share of answers that are the same on"
        " both sides; the others differ by float32's rounding under another padding. Written by `make bench`.\n\n"
        "| | rows | plain, rows/s | Burnish, rows/s | ratio | equal |\n|---|--:|--:|--:|--:|--:|\n"
        f"{table}\n\n"
        f"{platform.machine()}, {told.threads} of {os.cpu_count()} cores, torch {torch.__version__}, transformers"
        f" {transformers.__version__}; load average at the end {os.getloadavg()[0]:.1f}.\n"
    )
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
