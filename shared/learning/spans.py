"""Stretches of a context: a long context becomes overlapping windows, two logits a token become the best stretches.

After Devlin et al. 2018, section 4.3 (https://arxiv.org/abs/1810.04805). Places in a context are counted in
characters; `starts` and `ends` of a window hold those of every token, -1 outside of the context.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

Window = dict[str, Any]  # input_ids, token_type_ids where the model has them, starts, ends, null


class Stretch(NamedTuple):
    """A candidate: the sum of its two logits, and where it stands in the context, in characters."""

    score: float
    start: int
    end: int


class Reading(NamedTuple):
    """What a model makes of one window: the score of «there is nothing», and the best stretches."""

    null: float
    stretches: list[Stretch]


def reading(null: float, found: list[Any]) -> Reading:
    """A reading that was kept as JSON."""
    return Reading(null, [Stretch(*one) for one in found])


def windows(question: str, context: str, tokenizer: Any, longest: int, stride: int) -> list[Window]:
    """Question and context as sequences of at most `longest` tokens that share up to `stride` tokens.

    The question takes at most half of a window, and neighbours share at most half of their context.
    """
    room = longest - tokenizer.num_special_tokens_to_add(pair=True)
    question, used = shortened(question.strip(), tokenizer, max(1, room // 2))
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=longest,
        stride=min(stride, (room - used) // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return [window(encoded, number, tokenizer) for number in range(len(encoded["input_ids"]))]


def shortened(question: str, tokenizer: Any, most: int) -> tuple[str, int]:
    """The question's first `most` tokens as text, and how many tokens that has."""
    how: dict[str, Any] = {"add_special_tokens": False, "truncation": True, "max_length": most}
    offsets = tokenizer(question, return_offsets_mapping=True, **how)["offset_mapping"]
    if offsets:
        question = question[: offsets[-1][1]]
    return question, len(tokenizer(question, **how)["input_ids"])


def window(encoded: Any, number: int, tokenizer: Any) -> Window:
    """One of the sequences; `null` is the place of its [CLS]."""
    ids, offsets = encoded["input_ids"][number], encoded["offset_mapping"][number]
    inside = [part == 1 for part in encoded.sequence_ids(number)]
    found: Window = {"input_ids": ids}
    if "token_type_ids" in encoded:
        found["token_type_ids"] = encoded["token_type_ids"][number]
    found["starts"] = [start if mine else -1 for (start, _), mine in zip(offsets, inside, strict=True)]
    found["ends"] = [end if mine else -1 for (_, end), mine in zip(offsets, inside, strict=True)]
    found["null"] = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
    return found


def target(window: Window, span: tuple[int, int] | None) -> dict[str, int]:
    """The tokens at which the stretch [start, end) begins and ends: [CLS] where the window does not hold all of it."""
    starts, ends, null = window["starts"], window["ends"], window["null"]
    inside = [place for place, start in enumerate(starts) if start >= 0]
    if span is None or not inside or starts[inside[0]] > span[0] or ends[inside[-1]] < span[1]:
        return {"start_position": null, "end_position": null}
    return {
        "start_position": max(place for place in inside if starts[place] <= span[0]),
        "end_position": min(place for place in inside if ends[place] >= span[1]),
    }


def logits(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Start and end logits, [windows, tokens] float32 each; minus infinity on padding."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    output = model(**{name: batch[name] for name in names if name in batch})
    padding = batch["attention_mask"] == 0
    return tuple(
        one.float().masked_fill(padding, -math.inf) for one in (output.start_logits, output.end_logits)
    )


def cross_entropies(starts: Any, ends: Any, batch: dict[str, Any]) -> Any:
    """The mean of start's and end's cross-entropy, [windows]."""
    from torch.nn.functional import cross_entropy

    return (
        cross_entropy(starts, batch["start_position"], reduction="none")
        + cross_entropy(ends, batch["end_position"], reduction="none")
    ) / 2


def read(
    items: list[Window], starts: Any, ends: Any, batch: dict[str, Any], longest: int, most: int
) -> list[Reading]:
    """For each window its `most` best stretches of at most `longest` tokens, by the sum of two logits."""
    import torch
    from torch.nn.functional import pad

    outside = batch["inside"] == 0
    first, last = (one.masked_fill(outside, -math.inf) for one in (starts, ends))
    # [windows, tokens, longest]: a stretch that starts at a token and ends up to `longest` tokens on
    scores = first[:, :, None] + pad(last, (0, longest - 1), value=-math.inf).unfold(1, longest, 1)
    flat = scores.flatten(1)
    best, places = torch.topk(flat, min(most, flat.shape[1]))
    nulls = (starts + ends).gather(1, batch["null"][:, None])[:, 0].tolist()
    told = zip(items, nulls, best.tolist(), places.tolist(), strict=True)
    return [Reading(null, stretches(item, *found, longest)) for item, null, *found in told]


def stretches(window: Window, scores: list[float], places: list[int], longest: int) -> list[Stretch]:
    """Scores and flat places as stretches of the context; ties stand in the order of the text."""
    found = []
    for score, place in zip(scores, places, strict=True):
        if score > -math.inf:
            token, more = divmod(place, longest)
            found.append(Stretch(score, window["starts"][token], window["ends"][token + more]))
    return found


def merged(readings: Iterable[Reading], most: int) -> Reading:
    """The best stretches over all windows of a context; «there is nothing» counts as where it is least likely."""
    readings, best = list(readings), {}
    for reading in readings:
        for one in reading.stretches:
            best[one.start, one.end] = max(one.score, best.get((one.start, one.end), -math.inf))
    every = [Stretch(score, *place) for place, score in best.items()]
    every.sort(key=lambda one: (-one.score, one.start, one.end))
    return Reading(min(reading.null for reading in readings), every[:most])


def shares(scores: list[float]) -> list[float]:
    """Softmax."""
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]
