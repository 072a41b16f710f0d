"""What every recipe over a causal language model does: logits where a loss reads them, and nowhere else."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from shared.learning.batch import IGNORED, pad


def collate(items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """`input_ids` and `attention_mask` [rows, length]; `places` and `targets` [answer tokens].

    A token is predicted from the one before it, so the last answer token and all behind it are not
    read. `places` counts through rows × length: found here, before the batch goes to a GPU, which
    would have to stop for the answer.
    """
    import torch

    shifted = []
    for item in items:
        labels = item["labels"]
        last = max(place for place, label in enumerate(labels) if label != IGNORED)
        shifted.append({"input_ids": item["input_ids"][:last], "labels": labels[1 : last + 1]})
    batch = pad(shifted, tokenizer)
    labels = batch.pop("labels").flatten()
    batch["places"] = torch.nonzero(labels != IGNORED).flatten()
    batch["targets"] = labels[batch["places"]]
    return batch


@contextmanager
def only(model: Any, places: Any) -> Generator[None]:
    """Inside, `model(...)` computes logits at `places` of rows × length alone: [places, words].

    The hidden states are picked just before the output layer, so whatever the architecture does to
    its logits afterwards still happens.
    """

    def picked(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].flatten(0, 1)[places],)

    hook = model.get_output_embeddings().register_forward_pre_hook(picked)
    try:
        yield
    finally:
        hook.remove()


def answer_logits(model: Any, batch: dict[str, Any]) -> Any:
    """Logits at the answers' tokens, [answer tokens, words], float32."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with only(model, batch["places"]):
        return model(**inputs, use_cache=False).logits.float()


def answer_loss(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """(summed cross-entropy of the answers' tokens, how many of them are the likeliest; both tensors)."""
    from torch.nn.functional import cross_entropy

    logits = answer_logits(model, batch)
    right = (logits.detach().argmax(-1) == batch["targets"]).sum()
    return cross_entropy(logits, batch["targets"], reduction="sum"), right
