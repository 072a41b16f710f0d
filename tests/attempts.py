"""Attempt folders for tests of the engine: write one, run it here or in a forked trainer, read what it said."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.factories import tiny_causal_lm, tiny_encoder, tiny_seq2seq

TINY = {"causal_lm": tiny_causal_lm, "encoder": tiny_encoder, "seq2seq": tiny_seq2seq}


def parquet(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """The rows as the importer stores them."""
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_attempt(folder: Path, **fields: Any) -> Path:
    """`folder` with an attempt.json; one thread and the CPU unless said otherwise."""
    folder.mkdir(parents=True)
    told = {"kind": "train", "job": "ftjob-test", "seed": 7, "threads": 1, "device": "cpu"} | fields
    (folder / "attempt.json").write_text(json.dumps(told, default=str))
    return folder


def run_here(folder: Path) -> int:
    """Do the attempt in this process; its exit code."""
    from worker.engine.__main__ import run
    from worker.engine.attempt import Stop

    return run(folder, Stop())


def json_lines(text: str) -> list[Any]:
    """The values of JSONL. Texts in it may hold other separators of lines than the newline (U+0085, U+2028)."""
    return [json.loads(line) for line in text.split("\n") if line]


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """What the attempt has said so far, of one type or all."""
    path = folder / "events.jsonl"
    told = json_lines(path.read_text()) if path.exists() else []
    return [event for event in told if kind in (None, event["type"])]


def predictions(folder: Path) -> list[dict[str, Any]]:
    """What an inference attempt has answered, in the order of the requests: {"place", "output" | "error"}."""
    shards = sorted((folder / "artifacts" / "shards").glob("shard-*/answers.jsonl"))
    found = [line for path in shards for line in json_lines(path.read_text())]
    return sorted(found, key=lambda answer: answer["place"])


def checkpoints(folder: Path) -> list[Path]:
    """Its checkpoints in the order of their steps."""
    return sorted((folder / "checkpoints").glob("step-*"))


def tensors(checkpoint: Path) -> dict[str, bytes]:
    """Every tensor of a checkpoint (weights, adapter, optimizer) as bytes, by file and name."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        for name, value in load_file(path).items():
            found[f"{path.name}/{name}"] = value.contiguous().numpy().tobytes()
    return found
