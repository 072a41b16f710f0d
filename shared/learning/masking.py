"""Hiding tokens of a text and having them filled in, as BERT's pretraining does (https://arxiv.org/abs/1810.04805)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from shared.learning.stream import Token

MASKED, SWAPPED = 0.8, 0.1  # of the hidden tokens: behind the mask, another token; the rest stay as they are
SENTENCE_END = (
    ".",
    "!",
    "?",
    "。",
    "\n",
    "Ċ",
    "<0x0A>",
)  # how tokenizers write it; Ċ is a newline among bytes
READ = ("input_ids", "attention_mask", "token_type_ids")


def framed(parts: Iterator[list[Token]], tokenizer: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place of the row in which it begins, {"input_ids"}) of each part, between [CLS] and [SEP]."""
    for part in parts:
        ids = [token.number for token in part]
        yield part[0].place, {"input_ids": [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]}


def pairs(parts: Iterator[list[Token]], tokenizer: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with each part as two halves, parted at a sentence's end; about every second one gets the
    second half of another part: `apart` is then 1.
    """
    ends = sentence_ends(tokenizer)
    known = [halves(part, ends) for part in parts if len(part) > 1]
    dice = random.Random(0)
    for number, (first, own) in enumerate(known):
        apart = len(known) > 1 and dice.random() < 0.5
        strange = known[(number + dice.randrange(1, max(2, len(known)))) % len(known)][1]
        second = (strange if apart else own)[: min(len(own), len(strange))]  # the length tells nothing
        begin = [tokenizer.cls_token_id, *(token.number for token in first), tokenizer.sep_token_id]
        end = [*(token.number for token in second), tokenizer.sep_token_id]
        kinds = [0] * len(begin) + [1] * len(end)
        yield first[0].place, {"input_ids": begin + end, "token_type_ids": kinds, "apart": int(apart)}


def halves(part: list[Token], ends: set[int]) -> tuple[list[Token], list[Token]]:
    """The part up to the sentence's end that is nearest to its middle, and the rest; without one, up to the middle."""
    middle = len(part) // 2
    cuts = [cut for cut in range(1, len(part)) if part[cut - 1].number in ends]
    cut = min(cuts, key=lambda cut: abs(cut - middle), default=middle)
    return part[:cut], part[cut:]


def sentence_ends(tokenizer: Any) -> set[int]:
    """The tokens that end a sentence or a line."""
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return {number for number, word in enumerate(words) if word is not None and word.endswith(SENTENCE_END)}


def hide(ids: Any, tokenizer: Any, fraction: float, draws: Any) -> dict[str, Any]:
    """`input_ids` [rows, length] with tokens hidden, their `places` in rows × length, `targets` and `owners`.

    Every token but special ones is hidden with that probability, at least one in each row. Of the hidden
    ones 80 % become the mask, 10 % any token, 10 % stay, as the `draws` [3, rows, length] in 0 … 1 say.
    """
    import torch

    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    draw = draws[0].masked_fill(special, 2.0)
    chosen = draw < fraction
    rows = torch.arange(len(ids))
    chosen[rows, draw.argmin(1)] = True
    how, words = draws[1], (draws[2] * len(tokenizer)).long()
    shown = torch.where(
        how < MASKED, tokenizer.mask_token_id, torch.where(how < MASKED + SWAPPED, words, ids)
    )
    places = chosen.flatten().nonzero().flatten()
    return {
        "input_ids": torch.where(chosen, shown, ids),
        "places": places,
        "targets": ids.flatten()[places],
        "owners": places // ids.shape[1],
    }


def drawn(items: list[dict[str, Any]], longest: int) -> Any:
    """Random numbers [3, rows, longest] in 0 … 1, each row's own; nothing behind a row's end."""
    import torch

    from shared.learning.batch import dice

    draws = torch.zeros(3, len(items), longest)
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        draws[:, row, :length] = torch.rand(3, length, generator=dice(item))
    return draws


def logits(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """(logits [hidden tokens, words], logits of «belongs together» and «apart» [rows, 2] or None), float32; words at no other place."""
    from shared.learning.language_model import only

    with only(model, batch["places"]):
        output = model(**{name: batch[name] for name in READ if name in batch})
    if "prediction_logits" in output:
        return output.prediction_logits.float(), output.seq_relationship_logits.float()
    return output.logits.float(), None
