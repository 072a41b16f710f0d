"""Conditional diffusion by flow matching: a transformer learns the straight way from noise to an example.

An example x and noise ε are mixed at a time t from 0 (the example) to 1 (noise): (1 - t) x + t ε. The model is
shown the mixture, t and what was asked for, and says which example it sees in it; that tells the velocity ε - x,
whose error is the loss. Sampling walks it back in Euler steps. A model that said the velocity itself would have to
carry the noise of a whole patch, and small ones have no room for that.

- flow matching: Lipman et al. 2022, https://arxiv.org/abs/2210.02747; times after Esser et al. 2024,
  https://arxiv.org/abs/2403.03206; seeing the example: Li and He 2025, https://arxiv.org/abs/2511.13720;
- the transformers: DiT (labels), Peebles and Xie 2022, https://arxiv.org/abs/2212.09748; PixArt-α (captions),
  Chen et al. 2023, https://arxiv.org/abs/2310.00426, with a small BERT trained along as its text encoder;
- classifier-free guidance: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598.

`learner.facts` hold `channels`, `side`, `patch` and either `labels` or captions; `learner.model` is a ModuleDict
of `transformer` and, for captions, `text_encoder`. Examples are uint8 [channels, side, side] until they are
collated; then they go from -1 to 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from shared.recipe import Batch, Item, Learner

TIMES = 1000  # how diffusers counts from 0 to 1
EARLIEST = 0.05  # a velocity nearer to the example would be a difference of nearly equal numbers, blown up
LONGEST_CAPTION = 64  # tokens
TEXT_LAYERS = 1
TOGETHER = 8  # examples in a batch of the sampler, always: a batch's size alone may change the last bit


def build(learner: Learner) -> Any:
    """New weights of the preset's size."""
    from torch import nn

    preset, facts = learner.preset, learner.facts
    shape = {
        "num_attention_heads": preset["heads"],
        "attention_head_dim": preset["width"] // preset["heads"],
        "num_layers": preset["layers"],
        "in_channels": facts["channels"],
        "out_channels": facts["channels"],
        "sample_size": facts["side"],
        "patch_size": facts["patch"],
        "norm_num_groups": 1,
    }
    if learner.tokenizer is None:
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        model = DiTTransformer2DModel(**shape, num_embeds_ada_norm=len(facts["labels"]))
        return ready(nn.ModuleDict({"transformer": model}))
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        **shape, cross_attention_dim=preset["width"], use_additional_conditions=False
    )
    return ready(nn.ModuleDict({"transformer": model, "text_encoder": text_encoder(learner)}))


def text_encoder(learner: Learner) -> Any:
    """A small BERT that reads captions."""
    from transformers import BertConfig, BertModel

    preset = learner.preset
    config = BertConfig(
        vocab_size=len(learner.tokenizer),
        hidden_size=preset["width"],
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=preset["heads"],
        intermediate_size=4 * preset["width"],
        max_position_embeddings=LONGEST_CAPTION,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=learner.tokenizer.pad_token_id,
    )
    return BertModel(config, add_pooling_layer=False)


def load(learner: Learner, folder: Any) -> Any:
    """The weights of an earlier checkpoint."""
    from torch import nn

    if learner.tokenizer is None:
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel as Transformer
    else:
        from diffusers.models.transformers.pixart_transformer_2d import (
            PixArtTransformer2DModel as Transformer,
        )
    parts = {"transformer": Transformer.from_pretrained(folder / "transformer", low_cpu_mem_usage=False)}
    if learner.tokenizer is not None:
        from transformers import BertModel

        parts["text_encoder"] = BertModel.from_pretrained(folder / "text_encoder", add_pooling_layer=False)
    return ready(nn.ModuleDict(parts))


def ready(model: Any) -> Any:
    """The model without diffusers' own dropping of labels, which every layer would do for itself."""
    from diffusers.models.embeddings import LabelEmbedding

    for part in model.modules():
        if isinstance(part, LabelEmbedding):
            part.dropout_prob = 0.0
    return model


def save(learner: Learner, weights: dict[str, Any], folder: Any) -> None:
    """Folders that plain diffusers and transformers load: transformer, scheduler, and text_encoder for captions."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from safetensors.torch import save_file

    for name, part in learner.model.items():
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
        if name == "transformer":
            part.save_config(folder / name)
            file = folder / name / "diffusion_pytorch_model.safetensors"
            save_file(own, file, metadata={"format": "pt"})
        else:
            part.save_pretrained(folder / name, state_dict=own)
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES).save_pretrained(folder / "scheduler")


def collate(items: list[Item], learner: Learner) -> Batch:
    """pixels and noise [rows, channels, side, side], times [rows], and what is asked for.

    What is drawn for an item is its own, whatever its company: any cut into micro-batches is the same step,
    and an evaluation draws the same each time.
    """
    import numpy as np
    import torch

    from shared.learning.batch import dice

    own = [dice(item) for item in items]
    times = torch.cat([torch.randn(1, generator=die) for die in own]).sigmoid()
    share = learner.spec.unconditional if learner.model.training else 0.0
    dropped = [bool(torch.rand((), generator=die) < share) for die in own]
    pixels = torch.from_numpy(np.stack([item["pixels"] for item in items])) / 127.5 - 1
    noise = torch.stack([torch.randn(pixels.shape[1:], generator=die) for die in own])
    asked = conditions(items, learner, dropped)
    return {"pixels": pixels, "noise": noise, "times": times} | asked


def generator(seed: int) -> Any:
    """Random numbers that are the same on every device."""
    import torch

    return torch.Generator().manual_seed(seed % 2**63)


def conditions(items: list[Item], learner: Learner, dropped: list[bool]) -> Batch:
    """labels [rows], or input_ids and attention_mask [rows, tokens]; nothing is asked for where dropped."""
    import torch

    from shared.learning.batch import pad

    if learner.tokenizer is None:
        nothing = len(learner.facts["labels"])
        known = [nothing if drop else item["label"] for item, drop in zip(items, dropped, strict=True)]
        return {"labels": torch.tensor(known)}
    empty = [learner.tokenizer.bos_token_id, learner.tokenizer.eos_token_id]
    read = [empty if drop else item["input_ids"] for item, drop in zip(items, dropped, strict=True)]
    return pad([{"input_ids": ids} for ids in read], learner.tokenizer)


def told(learner: Learner, batch: Batch) -> dict[str, Any]:
    """What is asked for as the transformer takes it."""
    if learner.tokenizer is None:
        return {"class_labels": batch["labels"]}
    mask = batch["attention_mask"]
    words = learner.model["text_encoder"](batch["input_ids"], attention_mask=mask).last_hidden_state
    return {"encoder_hidden_states": words, "encoder_attention_mask": mask}


def errors(learner: Learner, batch: Batch) -> Any:
    """The mean squared error of the velocity, [rows]."""
    pixels, noise, times = batch["pixels"], batch["noise"], batch["times"]
    mixed = pixels.lerp(noise, times[:, None, None, None])
    found = velocity(learner, mixed, times, told(learner, batch))
    return (found - (noise - pixels)).square().mean((1, 2, 3))


def velocity(learner: Learner, mixed: Any, times: Any, asked: dict[str, Any]) -> Any:
    """Where mixtures [rows, channels, side, side] go at their times [rows]: away from the example that the model sees."""
    seen = learner.model["transformer"](mixed, timestep=TIMES * times, **asked).sample.float()
    return (mixed - seen) / times.clamp(min=EARLIEST)[:, None, None, None]


def sample(learner: Learner, items: list[Item], guidance: list[float]) -> list[Any]:
    """For each item an example [channels, side, side] from about -1 to 1, drawn by the item's own `seed`.

    An item's example is the same in any company: batches are of one size and their captions of one length.
    """
    made: list[Any] = [None] * len(items)
    for places in alike(items, guidance):
        full = places + places[-1:] * (TOGETHER - len(places))
        found = walked(learner, [items[place] for place in full], [guidance[place] for place in full])
        for place, one in zip(places, found, strict=False):
            made[place] = one
    return made


def alike(items: list[Item], guidance: list[float]) -> Iterator[list[int]]:
    """Places of items that the sampler may take together."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        groups[len(item.get("input_ids", ())), guidance[place] == 1].append(place)
    for places in groups.values():
        for start in range(0, len(places), TOGETHER):
            yield places[start : start + TOGETHER]


def walked(learner: Learner, items: list[Item], guidance: list[float]) -> Any:
    """From noise to examples in `spec.sampling_steps` Euler steps; with a guidance of 1 there is none."""
    import torch

    facts, steps, guided = learner.facts, learner.spec.sampling_steps, guidance[0] != 1
    shape = facts["channels"], facts["side"], facts["side"]
    now = torch.stack([torch.randn(shape, generator=generator(item["seed"])) for item in items])
    asked = conditions(items * (1 + guided), learner, [False] * len(items) + [True] * len(items) * guided)
    asked = told(learner, {name: value.to(learner.device) for name, value in asked.items()})
    now, weights = now.to(learner.device), torch.tensor(guidance, device=learner.device)[:, None, None, None]
    times = torch.tensor([1 - step / steps for step in range(steps + 1)], device=learner.device)
    for time, later in pairwise(times):
        at = time.expand(len(items) * (1 + guided))
        found = velocity(learner, now.repeat(1 + guided, 1, 1, 1), at, asked)
        if guided:
            with_it, without = found.chunk(2)
            found = without + weights * (with_it - without)
        now = now + (later - time) * found
    return now.cpu()
