"""Text from a causal language model: many prompts together, each with its own way of sampling."""

from collections.abc import Sequence
from typing import Any

from shared.recipe import Sampling

STAYING = 0.75  # of the rows that are written together: once no more go on, they go on without the others


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
    """The tokens that follow each prompt, with what comes after an end. All ways have as many beams.

    Rows that are done leave the others, whose cache goes on without them.
    """
    import torch

    from shared.learning.batch import padded
    from shared.learning.cache import roomy

    device = next(model.parameters()).device
    ids = padded(prompts, tokenizer.pad_token_id, left=True).to(device)
    mask = padded([[1] * len(prompt) for prompt in prompts], 0, left=True).to(device)
    start, cache = ids.shape[1], roomy(model) if ways[0].beams == 1 else None
    limit = start + max(most(*asked, room) for asked in zip(prompts, ways, strict=True))
    rows: dict[int, list[int]] = {}
    going = list(range(len(prompts)))
    while going:
        how = [ways[number] for number in going]
        ids, done = written_on(model, tokenizer, (ids, mask, cache), how, start, limit)
        rows |= {going[row]: ids[row, start:].tolist() for row in done.nonzero()[:, 0].tolist()}
        left = (~done).nonzero()[:, 0].to(device)
        if cache is not None:
            cache.batch_select_indices(left)
        ids, mask = ids[left], torch.nn.functional.pad(mask[left], (0, ids.shape[1] - mask.shape[1]), value=1)
        going = [going[row] for row in left.tolist()]
    return [rows[number] for number in range(len(prompts))]


def written_on(
    model: Any,
    tokenizer: Any,
    so_far: tuple[Any, Any, Any],
    ways: list[Sampling],
    start: int,
    limit: int,
) -> tuple[Any, Any]:
    """(tokens [rows, at most `limit`], which rows are done): all of them, or where there is a cache to go on with
    enough for the rest to be faster without them. `so_far`: tokens, mask and cache; prompts end at `start`.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    from shared.learning.drawing import Picker, Stopper

    ids, mask, cache = so_far
    ends, alone, done = (
        end_tokens(model, tokenizer),
        dict[str, Any](),
        torch.ones(len(ways), dtype=torch.bool),
    )
    if ways[0].beams == 1:  # beam search keeps several rows for each prompt and chooses among them itself
        fewest = int(len(ways) * STAYING) if cache is not None else 0
        stopper = Stopper(ways, start, tokenizer, ends, fewest)
        alone["logits_processor"] = LogitsProcessorList([Picker(ways, start)])
        alone["stopping_criteria"] = StoppingCriteriaList([stopper])
        alone |= {"past_key_values": cache} if cache is not None else {}
    # The model's own sampling settings would otherwise bend ours.
    config = GenerationConfig(
        max_new_tokens=limit - ids.shape[1],
        num_beams=ways[0].beams,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **alone)
    if cache is not None and found.shape[1] < limit:
        done = stopper.done
    return found, done


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
