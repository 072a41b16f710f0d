"""Rows laid end to end, so that no padding is computed, and a beginning that all of them share (a system
message) computed once. Attention still sees rows apart: the result is that of padded rows.

It works for the architectures of transformers that call their attention by name; `works` tries it out
on the model at hand, and what does not give the same numbers is padded.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any, NamedTuple

NAME = "burnish_packed"
CLOSE = {"cpu": 1e-3, "cuda": 5e-2}  # largest difference of logits, relative to the largest logit


class Layout(NamedTuple):
    """Where rows stand in the packed sequence: [shared beginning, rest of row 1, rest of row 2, …].

    `rows` [rows, longest rest] are places in the packed sequence, `back` [packed - shared] places in
    rows × longest rest, `mask` [longest rest, shared + longest rest] who sees whom in any row.
    """

    shared: int
    rows: Any
    back: Any
    mask: Any


# The layout of the call that is being computed; None: an ordinary call.
current: Layout | None = None


def pack(sequences: list[list[int]], shared: int) -> dict[str, Any]:
    """`input_ids` and `position_ids` [1, packed], and the layout's tensors; `shared` tokens are common."""
    import torch

    ids, positions = sequences[0][:shared], list(range(shared))
    longest = max(map(len, sequences)) - shared
    rows, back = torch.zeros(len(sequences), longest, dtype=torch.long), []
    for number, sequence in enumerate(sequences):
        rest = len(sequence) - shared
        rows[number, :rest] = torch.arange(len(ids), len(ids) + rest)
        back += range(number * longest, number * longest + rest)
        ids = ids + sequence[shared:]
        positions += range(shared, len(sequence))
    mask = torch.ones(longest, shared + longest, dtype=torch.bool).tril(shared)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "layout_rows": rows,
        "layout_back": torch.tensor(back),
        "layout_mask": mask,
    }


def in_common(sequences: list[list[int]], most: int) -> int:
    """How many first tokens all sequences share, at most `most`."""
    columns = zip(*sequences, strict=False)
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return min(same, most)


def call(model: Any, batch: dict[str, Any]) -> Any:
    """The model's output for what `pack` made."""
    global current  # noqa: PLW0603 - attention is called by name and can be told in no other way
    back = batch["layout_back"]
    shared = batch["input_ids"].shape[1] - len(back)
    current = Layout(shared, batch["layout_rows"], back, batch["layout_mask"])
    try:
        return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    finally:
        current = None


def prepare(model: Any) -> Any:
    """The model with its attention called by our name, where the architecture allows it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, ImportError, AttributeError):
        model.set_attn_implementation("sdpa")
    return model


def works(model: Any) -> bool:
    """Whether packed rows give this model's own numbers. Draws no random number."""
    import torch

    if getattr(model.config, "_attn_implementation", None) != NAME:
        return False
    words = min(model.config.vocab_size, 64)
    rows = [[n * 7 % words for n in (1, 2, 3, *range(start, start + 3 + start))] for start in (4, 5, 9)]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            packed = pack(rows, shared=3)
            logits = call(model, {name: value.to(device) for name, value in packed.items()}).logits[0].float()
            alone = [
                model(torch.tensor([row], device=device), use_cache=False).logits[0].float() for row in rows
            ]
    except (RuntimeError, ValueError, TypeError):
        return False
    finally:
        model.train(training)
    expected = torch.cat([alone[0][:3]] + [one[3:] for one in alone])
    gap = float((logits - expected).abs().max() / expected.abs().max())
    return gap < CLOSE[device.type]


def mask(*given: Any, **named: Any) -> Any:
    """The mask of an ordinary call; a packed one brings its own."""
    from transformers.masking_utils import sdpa_mask

    return None if current is not None else sdpa_mask(*given, **named)


def attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **named: Any
) -> tuple[Any, None]:
    """Attention by torch's fused kernel: as always, or row by row of the packed sequence.

    query [1, heads, packed, size], key and value [1, key heads, packed, size].
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if current is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    return packed_attention(current, query, key, value, named), None


def packed_attention(layout: Layout, query: Any, key: Any, value: Any, named: dict[str, Any]) -> Any:
    """[1, packed, heads, size]: the shared beginning attends to itself, each row to it and to itself."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if named.get("softcap") is not None:
        raise ValueError("This attention caps its scores, which the fused kernel cannot do.")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    how: dict[str, Any] = {"scale": named.get("scaling"), "dropout_p": named.get("dropout", 0.0)}
    seen = windowed(layout.mask, layout.shared, named.get("sliding_window"))
    rows = [part[0][:, layout.rows].transpose(0, 1) for part in (query, key, value)]
    count = len(layout.rows)
    begin = [part[:, :, : layout.shared] for part in (query, key, value)]
    keys, values = (
        torch.cat([first.expand(count, -1, -1, -1), rest], 2)
        for first, rest in zip(begin[1:], rows[1:], strict=True)
    )
    answers = scaled_dot_product_attention(rows[0], keys, values, attn_mask=seen, **how)
    flat = answers.transpose(1, 2).flatten(0, 1)[layout.back]
    if layout.shared:
        triangle = layout.mask.new_ones(layout.shared, layout.shared).tril()
        first_seen = windowed(triangle, 0, named.get("sliding_window"))
        first = scaled_dot_product_attention(*begin, attn_mask=first_seen, **how)
        flat = torch.cat([first[0].transpose(0, 1), flat])
    return flat[None]


def windowed(seen: Any, shared: int, window: int | None) -> Any:
    """The mask with a sliding window, where the architecture has one: only the last `window` tokens count."""
    if window is None or seen.shape[1] <= window:
        return seen
    return seen & seen.new_ones(seen.shape).triu(shared - window + 1)
