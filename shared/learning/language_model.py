"""What every recipe over a causal language model does: logits where a loss reads them, and nowhere else."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from shared.errors import Refused
from shared.learning import lstm, packing
from shared.learning.batch import IGNORED, pad, padded
from shared.presets import ARCHITECTURES
from shared.recipe import Learner

PADDED = ("input_ids", "attention_mask", "decoder_input_ids")  # what a model reads of a padded batch


def load(folder: Any) -> Any:
    """A causal language model in float32, ready for packed batches where its architecture allows them."""
    from transformers import AutoModelForCausalLM

    lstm.register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="sdpa")
    return packing.prepare(model)


def build(learner: Learner) -> Any:
    """A GPT-2, Llama or LSTM of the preset's size, without dropout, its weights drawn anew. Raises Refused."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(configuration(learner))


def configuration(learner: Learner) -> Any:
    """What transformers builds the preset from. Raises Refused for an architecture of another kind."""
    from transformers import GPT2Config, LlamaConfig

    preset, tokenizer = learner.preset, learner.tokenizer
    kind, width = preset["architecture"], preset["width"]
    told: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_size": width,
        "num_hidden_layers": preset["layers"],
    }
    if kind == "lstm":
        return lstm.register()[0](**told)
    told["num_attention_heads"] = preset["heads"]
    told["max_position_embeddings"] = max(ARCHITECTURES[kind][2], learner.spec.max_length)
    if kind == "gpt":
        return GPT2Config(**told, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0))
    if kind == "llama":
        inner = -(-8 * width // 96) * 32  # 8/3 of the width, in whole 32s
        return LlamaConfig(**told, intermediate_size=inner, tie_word_embeddings=True)
    raise Refused(f"«{kind}» is no language model. Choose gpt, llama or lstm.", param="model")


def collate(items: list[dict[str, Any]], learner: Learner, family: int = 1) -> dict[str, Any]:
    """A packed batch, or a padded one where the model cannot be packed; see `answer_loss`. Of every `family`
    items in a row the common beginning is packed once.

    A token is predicted from the one before it, so the last answer token and all behind it are not
    read. `places` [answer tokens] counts through the rows laid end to end (or padded), `targets` are
    the tokens that follow. They are found here, before the batch goes to a GPU, which would have to
    stop for the answer. `owners` [answer tokens] are the numbers of their rows.
    """
    import torch

    sequences, places, targets, owners = [], [], [], []
    for number, item in enumerate(items):
        answers = [place for place, label in enumerate(item["labels"]) if label != IGNORED and place > 0]
        sequences.append(item["input_ids"][: answers[-1]])
        places.append([place - 1 for place in answers])
        targets += [item["labels"][place] for place in answers]
        owners += [number] * len(answers)
    if packs(learner):
        batch, starts = packing.pack(sequences, [own[0] for own in places], family)
    else:
        batch = pad([{"input_ids": sequence} for sequence in sequences], learner.tokenizer)
        starts = [number * batch["input_ids"].shape[1] for number in range(len(items))]
    flat = [start + place for start, own in zip(starts, places, strict=True) for place in own]
    found = {"places": torch.tensor(flat), "targets": torch.tensor(targets), "owners": torch.tensor(owners)}
    return batch | found


def collate_blocks(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Blocks side by side, each token of which is predicted from those before it; see `answer_loss`.

    `input_ids` [blocks, longest]; what fills up a shorter block stands behind its end, where a causal
    model does not see it, so there is no mask; `places` are left out where every place is read;
    `chars` [blocks] are the characters of the predicted tokens, where the items tell them.
    """
    import torch

    blocks = [item["input_ids"] for item in items]
    longest = max(map(len, blocks)) - 1
    batch = {
        "input_ids": padded([block[:-1] for block in blocks], 0),
        "targets": torch.tensor([token for block in blocks for token in block[1:]]),
        "owners": torch.tensor([number for number, block in enumerate(blocks) for _ in block[1:]]),
    }
    if "chars" in items[0]:
        batch["chars"] = torch.tensor([item["chars"] for item in items])
    if len(batch["targets"]) < len(blocks) * longest:
        read = [n * longest + at for n, block in enumerate(blocks) for at in range(len(block) - 1)]
        batch["places"] = torch.tensor(read)
    return batch


def packs(learner: Learner) -> bool:
    """Whether the model reads packed batches right; tried out once."""
    if learner.packs is None:
        learner.packs = packing.works(learner.model)
    return learner.packs


def room(learner: Learner, wanted: int) -> int:
    """`wanted` tokens, or as many as the base model that training starts from reads, where those are fewer."""
    limits = [wanted, learner.tokenizer.model_max_length]
    if learner.source is not None:
        limits.append(positions(str(learner.source)))
    return min(limit for limit in limits if limit)


@lru_cache(maxsize=8)
def positions(folder: str) -> int | None:
    """How many tokens the model in that folder reads; None where there is no limit."""
    from transformers import AutoConfig

    lstm.register()
    return getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None)


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
    if "places" not in batch:
        return model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1).float()
    with only(model, batch["places"]):
        if "layout_back" in batch:
            return packing.call(model, batch).logits.float()
        inputs = {name: batch[name] for name in PADDED if name in batch}
        return model(**inputs, use_cache=False).logits.float()


def answer_loss(model: Any, batch: dict[str, Any]) -> Any:
    """The summed cross-entropy of the answers' tokens."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(answer_logits(model, batch), batch["targets"], reduction="sum")


def answer_likelihoods(model: Any, batch: dict[str, Any], rows: int) -> Any:
    """The log-likelihood of each row's answers, [rows]: summed over their tokens."""
    from torch.nn.functional import cross_entropy

    each = cross_entropy(answer_logits(model, batch), batch["targets"], reduction="none")
    return -each.new_zeros(rows).index_add(0, batch["owners"], each)


def answer_sums(model: Any, batch: dict[str, Any]) -> list[dict[str, float]]:
    """[{loss, weight, right}] of each row: its summed cross-entropy, its answer tokens, how many of those are
    the likeliest.
    """
    from torch.nn.functional import cross_entropy

    logits, targets = answer_logits(model, batch), batch["targets"]
    return sums_by_owner(
        batch["owners"],
        loss=cross_entropy(logits, targets, reduction="none"),
        right=(logits.argmax(-1) == targets).float(),
    )


def sums_by_owner(owners: Any, **values: Any) -> list[dict[str, float]]:
    """[{name: sum, weight: count}] of values [tokens] for each owner, numbered from 0 without gaps."""
    import torch

    count = int(owners.max()) + 1
    values |= {"weight": torch.ones(len(owners), device=owners.device)}
    sums = {
        name: torch.zeros(count, device=owners.device).index_add(0, owners, value).tolist()
        for name, value in values.items()
    }
    return [{name: of[number] for name, of in sums.items()} for number in range(count)]
