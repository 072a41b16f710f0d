"""Text from a causal language model: many prompts together, each with its own way of sampling."""

from collections.abc import Sequence
from typing import Any

from shared.recipe import Sampling

WIDE = 1024  # of the likeliest tokens; nearly always enough to draw from by top p


def generate(
    model: Any, tokenizer: Any, prompts: list[list[int]], ways: list[Sampling], *, strip: bool = True
) -> list[dict[str, Any]]:
    """[{content, finish_reason: stop | length, prompt_tokens, completion_tokens}], one for each prompt.

    `strip` takes the blanks around the content off. A prompt's answer depends on its own seed and not on the
    company it is computed in; it ends where the model can read no further.
    """
    room = getattr(model.config, "max_position_embeddings", None)
    answers: dict[int, dict[str, Any]] = {}
    for part in together(prompts, ways, room):
        asked, how = [prompts[number] for number in part], [ways[number] for number in part]
        rows = written(model, tokenizer, asked, how, room)
        ends = end_tokens(model, tokenizer)
        for number, row, prompt, way in zip(part, rows, asked, how, strict=True):
            answers[number] = answer(row, way, len(prompt), ends, tokenizer, strip=strip, before=prompt[-1:])
    return [answers[number] for number in range(len(prompts))]


def together(prompts: list[list[int]], ways: list[Sampling], room: int | None) -> list[list[int]]:
    """Numbers of the prompts that are answered at once: with the same number of beams (then also up to the same
    length), and so that all can write as much as they may within `room` tokens.
    """
    kinds: dict[tuple[int, int], list[int]] = {}
    for number, way in enumerate(ways):
        kinds.setdefault((way.beams, way.max_tokens if way.beams > 1 else 0), []).append(number)
    parts = []
    for numbers in kinds.values():
        part: list[int] = []
        for number in sorted(numbers, key=lambda number: len(prompts[number])):
            more = [*part, number]
            limit = max(most(prompts[one], ways[one], room) for one in more)
            if part and room and len(prompts[number]) + limit > room:
                parts.append(part)
                part = []
            part.append(number)
        parts.append(part)
    return parts


def most(prompt: list[int], way: Sampling, room: int | None) -> int:
    """Tokens that may be written for a prompt."""
    return min(way.max_tokens, room - len(prompt)) if room else way.max_tokens


def written(
    model: Any, tokenizer: Any, prompts: list[list[int]], ways: list[Sampling], room: int | None
) -> list[list[int]]:
    """The tokens that follow each prompt, with what comes after an end. All ways have as many beams."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    from shared.learning.batch import padded

    device = next(model.parameters()).device
    ids = padded(prompts, tokenizer.pad_token_id, left=True).to(device)
    mask = padded([[1] * len(prompt) for prompt in prompts], 0, left=True).to(device)
    alone: dict[str, Any] = {}
    if ways[0].beams == 1:  # beam search keeps several rows for each prompt and chooses among them itself
        alone["logits_processor"] = LogitsProcessorList([Picker(ways, ids.shape[1])])
        alone["stopping_criteria"] = StoppingCriteriaList([Stopper(ways, ids.shape[1], tokenizer)])
    # The model's own sampling settings would otherwise bend ours.
    config = GenerationConfig(
        max_new_tokens=max(most(*asked, room) for asked in zip(prompts, ways, strict=True)),
        num_beams=ways[0].beams,
        do_sample=False,
        eos_token_id=sorted(end_tokens(model, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **alone)
    return found[:, ids.shape[1] :].tolist()


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a turn: the tokenizer's, and the model's generation settings'."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    known = configured if isinstance(configured, list) else [configured]
    return {end for end in [*known, tokenizer.eos_token_id] if end is not None}


def answer(
    row: list[int],
    way: Sampling,
    asked: int,
    ends: set[int],
    tokenizer: Any,
    *,
    strip: bool = True,
    before: Sequence[int] = (),
) -> dict[str, Any]:
    """What was written up to the end token, the stop text or the limit; `before` is what it follows."""
    row = row[: way.max_tokens]
    length = next((place for place, token in enumerate(row) if token in ends), None)
    text = continued(before, row[:length], tokenizer)
    cut = min((at for at in (text.find(stop) for stop in way.stop if stop) if at >= 0), default=None)
    stopped = length is not None or cut is not None
    return {
        "content": text[:cut].strip() if strip else text[:cut],
        "finish_reason": "stop" if stopped else "length",
        "prompt_tokens": asked,
        "completion_tokens": len(row) if length is None else length + 1,
    }


def continued(before: Sequence[int], row: list[int], tokenizer: Any) -> str:
    """The text of the tokens where they follow others: some tokenizers drop a blank in front of a text alone."""
    first = tokenizer.decode([*before], skip_special_tokens=True)
    whole = tokenizer.decode([*before, *row], skip_special_tokens=True)
    if whole.startswith(first):
        return whole[len(first) :]
    return tokenizer.decode(row, skip_special_tokens=True)  # it ends a character that was begun before it


class Picker:
    """A logits processor that draws the next token of sampled rows itself and leaves greedy search no choice.

    A row's draws depend on its seed and the number of the token alone.
    """

    def __init__(self, ways: list[Sampling], prompt: int) -> None:
        self.prompt = prompt
        sampled = [row for row, way in enumerate(ways) if way.temperature > 0]
        whole = [row for row in sampled if not ways[row].top_k and ways[row].top_p == 1]
        cut = [row for row in sampled if row not in whole]
        self.groups = [Drawn(rows, [ways[row] for row in rows]) for rows in (whole, cut) if rows]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """`scores`, [rows, words], with all but the drawn token at minus infinity in sampled rows."""
        step = input_ids.shape[1] - self.prompt
        for group in self.groups:
            drawn = group.draw(scores[group.rows].float(), step)
            scores[group.rows] = -float("inf")
            scores[group.rows, drawn] = 0.0
        return scores


class Drawn:
    """Rows that are drawn alike: from all tokens, or from the likeliest by top k, then top p."""

    def __init__(self, rows: list[int], ways: list[Sampling]) -> None:
        import torch

        self.rows = rows
        self.temperature = torch.tensor([[way.temperature] for way in ways])
        self.top_k = max(way.top_k for way in ways)
        self.keep = torch.tensor([[way.top_k or 2**31] for way in ways])
        self.top_p = torch.tensor([[way.top_p] for way in ways])
        self.cut = bool(self.top_k) or bool((self.top_p < 1).any())
        longest = max(way.max_tokens for way in ways)
        self.luck = torch.stack([luck(way, longest) for way in ways])

    def draw(self, scores: Any, step: int) -> Any:
        """A token for each row of `scores`, [rows, words]."""
        import torch

        shares = torch.softmax(scores / self.temperature.to(scores.device), -1)
        step = min(step, self.luck.shape[1] - 1)  # rows that are done are drawn for as long as others go on
        chance = self.luck[:, step : step + 1].to(scores.device)
        if not self.cut:
            return quantile(shares, chance)
        shares, tokens = self.likeliest(shares)
        return tokens.gather(1, quantile(shares, chance)[:, None])[:, 0]

    def likeliest(self, shares: Any) -> tuple[Any, Any]:
        """(shares, tokens), the likeliest first, 0 for those that top k or top p leave out."""
        import torch

        keep, top_p = self.keep.to(shares.device), self.top_p.to(shares.device)
        some = min(shares.shape[1], max(WIDE, self.top_k))
        values, tokens = torch.topk(shares, some)
        if some < shares.shape[1] and bool(((values.sum(-1, keepdim=True) < top_p) & (keep > some)).any()):
            values, tokens = torch.sort(shares, descending=True)
        values = values.masked_fill(torch.arange(values.shape[1], device=values.device) >= keep, 0.0)
        # top p is a share of what top k has left; of all where it has left all, also of those not listed here
        total = torch.where(keep < 2**31, values.sum(-1, keepdim=True), 1.0)
        # a token stays as long as those before it have not reached top p
        return values.masked_fill(values.cumsum(-1) - values >= top_p * total, 0.0), tokens


def luck(way: Sampling, tokens: int) -> Any:
    """Random numbers from 0 to 1, [tokens], by the seed alone; more of them begin with the same."""
    import torch

    dice = torch.Generator().manual_seed((way.seed or 0) % 2**63)
    return torch.rand(tokens, generator=dice, dtype=torch.float64)


def quantile(shares: Any, chance: Any) -> Any:
    """The place in each row of `shares` at which their sum passes that part of the whole, [rows]."""
    import torch

    sums = shares.double().cumsum(-1)
    return torch.searchsorted(sums, chance * sums[:, -1:], right=True).clamp(max=shares.shape[1] - 1)[:, 0]


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
        """Whether one of the row's stop texts has just been written: a token is at least a byte of it."""
        if not way.stop:
            return False
        longest = max(len(stop.encode()) for stop in way.stop)
        text = self.tokenizer.decode(row[self.prompt :][-longest - 4 :])
        return any(stop in text for stop in way.stop)
