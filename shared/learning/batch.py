"""Items become tensors: ragged lists are padded to the longest of their batch."""

from typing import Any

IGNORED = -100  # a label that no loss reads


def pad(items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Items as tensors by name: lists padded on the right, numbers stacked; text is left out.

    Keys that end in `labels` are filled with -100, in `input_ids` with the tokenizer's padding token,
    anything else with 0. Each `…input_ids` gets its `…attention_mask` beside it.
    """
    import torch

    batch = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if name in ("row", "seed") or isinstance(first, str | dict) or first is None:
            continue
        if not isinstance(first, list):
            batch[name] = torch.as_tensor(values)
        elif not first or isinstance(first[0], int | float):
            batch[name] = padded(values, fill(name, tokenizer))
            if name.endswith("input_ids"):
                mask = name.removesuffix("input_ids") + "attention_mask"
                batch[mask] = padded([[1] * len(value) for value in values], 0)
    return batch


def dice(item: dict[str, Any]) -> Any:
    """Random numbers of an item's own: the same on any device, whatever else is in its batch."""
    import torch

    return torch.Generator().manual_seed(item["seed"])


def fill(name: str, tokenizer: Any) -> int:
    """What stands behind the end of a shorter list of that name."""
    if name.endswith("labels"):
        return IGNORED
    if name.endswith("input_ids"):
        known = tokenizer.pad_token_id
        return 0 if known is None else known
    return 0


def padded(values: list[list[Any]], filler: int, *, left: bool = False) -> Any:
    """[rows, longest] with `filler` behind (or before) each row's end."""
    import torch

    longest = max(map(len, values))
    gaps = [[filler] * (longest - len(value)) for value in values]
    return torch.tensor(
        [gap + value if left else value + gap for value, gap in zip(values, gaps, strict=True)]
    )
