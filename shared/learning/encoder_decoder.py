"""Encoder-decoder models: they read a source once and write a target, token by token.

Raffel et al. 2020 (T5), https://arxiv.org/abs/1910.10683; Lewis et al. 2019 (BART),
https://arxiv.org/abs/1910.13461. The loss is that of `language_model`, which reads what `collate` makes.
"""

from __future__ import annotations

from typing import Any

from shared.learning.batch import pad
from shared.recipe import Learner, Sampling

PARTS = {"cpu": 32, "cuda": 128}  # sources that are written for together


def load(folder: Any) -> Any:
    """An encoder-decoder in float32, whose configuration names the token that starts a target."""
    from transformers import AutoModelForSeq2SeqLM

    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="float32")
    starts = (getattr(one, "decoder_start_token_id", None) for one in (model.config, model.generation_config))
    known = next((start for start in starts if start is not None), model.config.pad_token_id)
    model.config.decoder_start_token_id = known
    return model


def build(preset: dict[str, Any], tokenizer: Any) -> Any:
    """A T5 (version 1.1: gated GELU) of the preset's size with new weights, for that tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration

    config: Any = T5Config(
        vocab_size=len(tokenizer),
        d_model=preset["width"],
        d_kv=preset["width"] // preset["heads"],
        d_ff=4 * preset["width"],
        num_layers=preset["layers"],
        num_decoder_layers=preset["layers"],
        num_heads=preset["heads"],
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    return T5ForConditionalGeneration(config)


def collate(items: list[dict[str, Any]], learner: Learner) -> dict[str, Any]:
    """`input_ids` and `labels` as padded tensors, and where the targets stand.

    The decoder reads each target shifted by one behind the start token. `places` [target tokens] counts
    through rows × longest target, `targets` are the tokens there, `owners` the numbers of their rows:
    nothing is computed from what the decoder makes of padding.
    """
    import torch

    start = learner.model.config.decoder_start_token_id
    read = [
        {"input_ids": item["input_ids"], "decoder_input_ids": [start, *item["labels"][:-1]]} for item in items
    ]
    batch = pad(read, learner.tokenizer)
    longest = batch["decoder_input_ids"].shape[1]
    spans = [(number, len(item["labels"])) for number, item in enumerate(items)]
    places = [number * longest + place for number, length in spans for place in range(length)]
    owners = [number for number, length in spans for _ in range(length)]
    targets = [token for item in items for token in item["labels"]]
    found = {"places": places, "targets": targets, "owners": owners}
    return batch | {name: torch.tensor(values) for name, values in found.items()}


def write(model: Any, tokenizer: Any, sources: list[list[int]], ways: list[Sampling]) -> list[str]:
    """A text for each source, each in its own way: greedily, sampled by its own seed, or by beam search.

    What is written for a source does not depend on the company it is computed in.
    """
    texts: dict[int, str] = {}
    for part in parts(sources, ways, next(model.parameters()).device.type):
        rows = generated(model, tokenizer, [sources[n] for n in part], [ways[n] for n in part])
        texts |= dict(zip(part, rows, strict=True))
    return [texts[number] for number in range(len(sources))]


def parts(sources: list[list[int]], ways: list[Sampling], device: str) -> list[list[int]]:
    """Numbers of the sources that go together: those of like length, and of the same kind of search."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for number in sorted(range(len(sources)), key=lambda n: (ways[n].max_tokens, len(sources[n]))):
        way = ways[number]
        kinds.setdefault((way.beams, way.max_tokens if way.beams > 1 else 0), []).append(number)
    size = PARTS[device]
    return [numbers[at : at + size] for numbers in kinds.values() for at in range(0, len(numbers), size)]


def generated(model: Any, tokenizer: Any, sources: list[list[int]], ways: list[Sampling]) -> list[str]:
    """The texts of sources that are written for together. All ways have the same number of beams."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    from shared.learning.drawing import Picker, Stopper
    from shared.learning.generation import answer, end_tokens

    given = pad([{"input_ids": source} for source in sources], tokenizer)
    ends, room = end_tokens(model, tokenizer), getattr(model.config, "max_position_embeddings", None)
    config = GenerationConfig(
        max_new_tokens=min([max(way.max_tokens for way in ways), *([room - 1] if room else [])]),
        num_beams=ways[0].beams,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
    alone: dict[str, Any] = {}
    if ways[0].beams == 1:  # beam search keeps several rows for each source and chooses among them itself
        alone["logits_processor"] = LogitsProcessorList([Picker(ways, prompt=1)])
        alone["stopping_criteria"] = StoppingCriteriaList([Stopper(ways, 1, tokenizer, ends)])
    device = next(model.parameters()).device
    with torch.no_grad():
        written = model.generate(
            **{name: value.to(device) for name, value in given.items()}, generation_config=config, **alone
        )
    rows = zip(written[:, 1:].tolist(), ways, sources, strict=True)
    return [answer(row, way, len(source), ends, tokenizer)["content"] for row, way, source in rows]
