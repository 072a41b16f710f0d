"""Text from a causal language model: a batch of prompts, each with its own way of sampling."""

from typing import Any

from shared.recipe import Sampling


def generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], ways: list[Sampling], *, strip: bool = True
) -> list[dict[str, Any]]:
    """[{content, finish_reason: stop | length, prompt_tokens, completion_tokens}], one for each prompt.

    `strip` takes the blanks around the content off. A prompt's answer depends on its own seed and not on the
    company it is computed in.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    from shared.learning.batch import padded

    device = next(model.parameters()).device
    ids = padded(prompts, tokenizer.pad_token_id, left=True).to(device)
    mask = padded([[1] * len(prompt) for prompt in prompts], 0, left=True).to(device)
    ends = sorted(end_tokens(model, tokenizer))
    picker = Picker(ways, ids.shape[1])
    stopper = Stopper(ways, ids.shape[1], tokenizer)
    with torch.no_grad():
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            # The model's own sampling settings would otherwise bend ours.
            generation_config=GenerationConfig(
                max_new_tokens=max(way.max_tokens for way in ways),
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            ),
            logits_processor=LogitsProcessorList([picker]),
            stopping_criteria=StoppingCriteriaList([stopper]),
        )
    rows = written[:, ids.shape[1] :].tolist()
    return [
        answer(row, way, len(prompt), set(ends), tokenizer, strip=strip)
        for row, way, prompt in zip(rows, ways, prompts, strict=True)
    ]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a turn: the tokenizer's, and the model's generation settings'."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    known = configured if isinstance(configured, list) else [configured]
    return {end for end in [*known, tokenizer.eos_token_id] if end is not None}


def answer(
    row: list[int], way: Sampling, asked: int, ends: set[int], tokenizer: Any, *, strip: bool = True
) -> dict[str, Any]:
    """What was written up to the end token, the stop text or the limit."""
    row = row[: way.max_tokens]
    length = next((place for place, token in enumerate(row) if token in ends), None)
    text = tokenizer.decode(row[:length], skip_special_tokens=True)
    cut = min((at for at in (text.find(stop) for stop in way.stop if stop) if at >= 0), default=None)
    stopped = length is not None or cut is not None
    return {
        "content": text[:cut].strip() if strip else text[:cut],
        "finish_reason": "stop" if stopped else "length",
        "prompt_tokens": asked,
        "completion_tokens": len(row) if length is None else length + 1,
    }


class Picker:
    """A logits processor that picks each row's next token itself and leaves greedy search no choice."""

    def __init__(self, ways: list[Sampling], prompt: int) -> None:
        self.ways = ways
        self.prompt = prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores`, [rows, words], with all but the picked token at minus infinity in sampled rows."""
        step = input_ids.shape[1] - self.prompt
        for row, way in enumerate(self.ways):
            if way.temperature > 0:
                picked = pick(scores[row], way, step)
                scores[row] = -float("inf")
                scores[row, picked] = 0.0
        return scores


def pick(scores: Any, way: Sampling, step: int) -> int:
    """One token by temperature, top-k and top-p; drawn by the seed and the step alone."""
    import torch

    values, tokens = torch.sort(scores.float().cpu() / way.temperature, descending=True)
    shares = torch.softmax(values, -1)
    keep = torch.ones_like(shares, dtype=torch.bool)
    if way.top_k:
        keep[way.top_k :] = False
    # A token stays as long as those before it have not reached top_p.
    keep &= torch.cumsum(shares, -1) - shares < way.top_p
    keep[0] = True
    dice = torch.Generator().manual_seed((way.seed or 0) * 1_000_003 + step)
    return int(tokens[torch.multinomial(torch.where(keep, shares, 0.0), 1, generator=dice)])


class Stopper:
    """A stopping criterion: a row is done at its own limit or after one of its stop texts."""

    def __init__(self, ways: list[Sampling], prompt: int, tokenizer: Any) -> None:
        self.ways = ways
        self.prompt = prompt
        self.tokenizer = tokenizer

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - transformers calls it so
        """Which rows are done, boolean, [rows]."""
        import torch

        written = input_ids.shape[1] - self.prompt
        done = [
            written >= way.max_tokens or self.said(row, way)
            for row, way in zip(input_ids, self.ways, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)

    def said(self, row: Any, way: Sampling) -> bool:
        """Whether one of the row's stop texts has been written."""
        if not way.stop:
            return False
        text = self.tokenizer.decode(row[self.prompt :])
        return any(stop in text for stop in way.stop if stop)
