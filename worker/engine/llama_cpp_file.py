"""llama.cpp's own reading of a GGUF file, where the extra «llama-cpp» is installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from shared.errors import Refused
from shared.learning.agreement import of_logits

NATS = 0.01  # llama.cpp rounds what it computes with to float16 too, not the weights alone
ABSENT = "llama.cpp is not installed on this worker and has not read the file."


def said(path: Path, probes: list[dict[str, Any]], expected: list[Any]) -> str:
    """A sentence on how llama.cpp finds the tokens that the rounded model found so. Raises Refused where it differs."""
    try:
        llama_cpp = import_module("llama_cpp")
    except ModuleNotFoundError:
        return ABSENT
    model = llama_cpp.Llama(
        str(path), n_ctx=max(len(one["tokens"]) for one in expected), logits_all=True, verbose=False
    )
    found = of_logits(expected, [told(model, probe) for probe in probes], nats=NATS, logits=float("inf"))
    if not found.same:
        raise Refused(
            f"llama.cpp reads the gguf export otherwise than the trained model, so it is not offered. {found.said}",
            param="form",
            code="export_disagrees",
        )
    return f"Read by llama.cpp: {found.said[0].lower()}{found.said[1:]}"


def told(model: Any, probe: dict[str, Any]) -> dict[str, Any]:
    """{tokens, logits [tokens, words]} of a text and what was written after it."""
    tokens = [*model.tokenize(probe["text"].encode(), special=True), *probe["written"]]
    model.reset()
    model.eval(tokens)
    return {"tokens": tokens, "logits": torch.tensor(model.scores[: len(tokens)])}
