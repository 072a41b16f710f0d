"""llama.cpp's own reading of a GGUF file, where the extra «llama-cpp» is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from shared.errors import Refused
from shared.learning.agreement import of_logits

NATS = 1e-4  # llama.cpp rounds what it computes with to float16 too: of SmolLM2-135M 0.000003 was measured
LIKELIEST = 1000  # next tokens that are compared one by one, the others by what is left for them
LEAST = 1e-5  # of a probability: what is left for the others is known no better
ABSENT = "llama.cpp is not installed on this worker and has not read the file."


def said(path: Path, probes: list[dict[str, Any]], expected: list[Any]) -> str:
    """A sentence on how llama.cpp finds the tokens that the rounded model found so. Raises Refused where it differs."""
    try:
        llama_cpp = import_module("xllamacpp")
    except ModuleNotFoundError:
        return ABSENT
    model = opened(llama_cpp, path, max(len(one["tokens"]) for one in expected))
    pairs = [both(model, probe, one) for probe, one in zip(probes, expected, strict=True)]
    mine, theirs = zip(*pairs, strict=True)
    found = of_logits(list(mine), list(theirs), nats=NATS, logits=float("inf"))
    if not found.same:
        raise Refused(
            f"llama.cpp reads the gguf export otherwise than the trained model, so it is not offered. {found.said}",
            param="form",
            code="export_disagrees",
        )
    return f"Read by llama.cpp: {found.said[0].lower()}{found.said[1:]}"


def opened(llama_cpp: Any, path: Path, longest: int) -> Any:
    """The file in llama.cpp, with room for one text of `longest` tokens and one more."""
    params = llama_cpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = longest + 1, 1
    params.cpuparams.n_threads = torch.get_num_threads()
    params.warmup, params.verbosity = False, 0
    # it listens in any case, and a trainer may open no other kind of socket
    params.hostnames = [f"@burnish-{os.getpid()}.sock"]
    return llama_cpp.Server(params)


def both(model: Any, probe: dict[str, Any], shown: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """{tokens, logits [written + 1, likeliest + 1]} of the trained model and of llama.cpp, from the end of the text on.

    llama.cpp cuts the text into tokens by itself; of a text that it cuts otherwise the tokens are none.
    """
    tokens, start = shown["tokens"], len(shown["tokens"]) - len(probe["written"])
    prompts = [probe["text"], *(tokens[:end] for end in range(start + 1, len(tokens) + 1))]
    read, words, theirs = zip(*(asked(model, prompt) for prompt in prompts), strict=True)
    trained = shown["logits"][start - 1 :].softmax(-1)
    mine = [row[known] for row, known in zip(trained, words, strict=True)]
    cut = tokens if read[0] == start else []
    return {"tokens": tokens, "logits": logarithms(mine)}, {"tokens": cut, "logits": logarithms(theirs)}


def logarithms(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of the likeliest tokens' probabilities in each row, and of what they leave for all others."""
    likely = torch.stack(list(rows)).double()
    return torch.cat([likely, 1 - likely.sum(-1, keepdim=True)], -1).clamp(min=LEAST).log()


def asked(model: Any, prompt: str | list[int]) -> tuple[int, list[int], torch.Tensor]:
    """(tokens of the prompt, the likeliest next tokens, their probabilities).

    The token that is taken is always «a», which leaves the probabilities as they are: of an end of the text or
    half a character nothing would be told.
    """
    answer = model.handle_completions(
        {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": LIKELIEST,
            "temperature": -1,
            "logit_bias": [["a", 1000]],
        }
    )
    likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found = torch.tensor([one["logprob"] for one in likely]).exp()
    return answer["usage"]["prompt_tokens"], [one["id"] for one in likely], found
