"""Rows laid end to end, so that no padding is computed, and a beginning that all of them share (a system
message) computed once, as is one that a family of rows shares (the question before two answers). Attention
still sees rows apart: the result is that of padded rows.

It works for the architectures of transformers that call their attention by name; `works` tries it out
on the model at hand, and what does not give the same numbers is padded.
"""

from __future__ import annotations

from itertools import pairwise, takewhile
from typing import Any, NamedTuple

NAME = "burnish_packed"
CLOSE = {"cpu": 1e-3, "cuda": 5e-2}  # largest difference of logits, relative to the largest logit


class Layout(NamedTuple):
    """Where families of rows stand in the packed sequence: [shared beginning, rest of family 1, rest of
    family 2, …], and the rest of a family: [its own beginning, rest of its first row, of its second, …].

    `rows` [families, longest rest] are places behind the shared beginning, `back` [packed - shared] places in
    families × longest rest, `mask` [longest rest, shared + longest rest] or the same for each family who sees
    whom in any of them, `positions` [packed] how far each token is from its row's beginning.
    """

    shared: int
    rows: Any
    back: Any
    mask: Any
    positions: Any


# The layout of the call that is being computed; None: an ordinary call.
current: Layout | None = None


def pack(sequences: list[list[int]], most: list[int], family: int = 1) -> tuple[dict[str, Any], list[int]]:
    """(`input_ids` and `position_ids` [1, packed] and the layout's tensors, where each sequence starts).

    Token n of a sequence stands at its start + n, for every n from the sequence's `most` on: of the tokens
    before, as many as are common to all sequences, or to `family` sequences in a row, are there only once.
    """
    import torch

    shared = in_common(sequences, min(most))
    ids, positions, starts, spans = sequences[0][:shared], list(range(shared)), [], []
    for at in range(0, len(sequences), family):
        members = sequences[at : at + family]
        fork = max(shared, in_common(members, min(most[at : at + family]))) if family > 1 else shared
        ends = [len(ids)]
        ids = ids + members[0][shared:fork]
        positions += range(shared, fork)
        for member in members:
            ends.append(len(ids))
            starts.append(len(ids) - fork)
            ids += member[fork:]
            positions += range(fork, len(member))
        spans.append([end - ends[0] for end in [*ends[1:], len(ids)]])
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])} | laid_out(
        spans, shared, family
    ), starts


def laid_out(spans: list[list[int]], shared: int, family: int) -> dict[str, Any]:
    """The layout's tensors; `spans` say where the rows of each family start in its rest, and where the last ends."""
    import torch

    longest = max(span[-1] for span in spans)
    rows, back, start = torch.zeros(len(spans), longest, dtype=torch.long), [], 0
    for number, span in enumerate(spans):
        rows[number, : span[-1]] = torch.arange(start, start + span[-1])
        back += range(number * longest, number * longest + span[-1])
        start += span[-1]
    mask = torch.ones(longest, shared + longest, dtype=torch.bool).tril(shared)
    if family > 1:
        mask = mask.repeat(len(spans), 1, 1, 1)  # families, heads, from, to
        for number, span in enumerate(spans):
            for begin, end in pairwise(span[1:]):
                mask[number, 0, begin:end, shared + span[0] : shared + begin] = False
    return {"layout_rows": rows, "layout_back": torch.tensor(back), "layout_mask": mask}


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
    current = Layout(shared, batch["layout_rows"], back, batch["layout_mask"], batch["position_ids"][0])
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
    rows = [[n * 7 % words for n in (1, 2, 3, *middle, *range(end, 2 * end))]
            for middle, end in (((4, 6), 5), ((4, 6), 9), ((8,), 4), ((8,), 7))]  # fmt: skip
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            packed, starts = pack(rows, [len(row) - 3 for row in rows], family=2)
            logits = call(model, {name: value.to(device) for name, value in packed.items()}).logits[0].float()
            expected = [
                model(torch.tensor([row], device=device), use_cache=False).logits[0, -3:].float()
                for row in rows
            ]
    except (RuntimeError, ValueError, TypeError):
        return False
    finally:
        model.train(training)
    found = [logits[start + len(row) - 3 : start + len(row)] for start, row in zip(starts, rows, strict=True)]
    gap = max(float((one - two).abs().max()) for one, two in zip(found, expected, strict=True))
    return gap / float(torch.cat(expected).abs().max()) < CLOSE[device.type]


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
    how: dict[str, Any] = {"scale": named.get("scaling"), "dropout_p": named.get("dropout", 0.0)}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and key.device.type == "cpu":
        how["enable_gqa"] = True
    elif groups > 1:  # with a mask the kernels of a GPU want a key for each query
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    window = named.get("sliding_window")
    parts = [layout.shared, len(layout.back)]
    shared, own = layout.positions.split(parts)
    own = own[layout.rows][:, None]
    seen = windowed(layout.mask, own, torch.cat([shared.expand(len(own), 1, -1), own], 2), window)
    begin, rest = zip(*(part.split(parts, 2) for part in (query, key, value)), strict=True)
    asking, keys, values = (picked(part[0].transpose(0, 1), layout.rows).transpose(1, 2) for part in rest)
    if layout.shared:
        keys = torch.cat([begin[1].expand(len(own), -1, -1, -1), keys], 2)
        values = torch.cat([begin[2].expand(len(own), -1, -1, -1), values], 2)
    answers = scaled_dot_product_attention(asking, keys, values, attn_mask=seen, **how)
    flat = picked(answers.transpose(1, 2).flatten(0, 1), layout.back)
    if layout.shared:
        triangle = layout.mask.new_ones(layout.shared, layout.shared).tril()
        first_seen = windowed(triangle, shared, shared, window)
        first = scaled_dot_product_attention(*begin, attn_mask=first_seen, **how)
        flat = torch.cat([first[0].transpose(0, 1), flat])
    return flat[None]


def picked(values: Any, places: Any) -> Any:
    """[…places, heads, size] of values [tokens, heads, size]. As an embedding, whose gradient costs a tenth of that
    of an index: that one cannot know that what is picked twice fills up and has none.
    """
    from torch.nn.functional import embedding

    return embedding(places, values.flatten(1)).unflatten(-1, values.shape[1:])


def windowed(seen: Any, asking: Any, asked: Any, window: int | None) -> Any:
    """The mask with a sliding window, where the architecture has one: a token sees the last `window` alone.

    `asking` […, from] and `asked` […, to] are the positions of those that see and are seen.
    """
    if window is None or seen.shape[-1] <= window:
        return seen
    return seen & (asking[..., None] - asked[..., None, :] < window)
