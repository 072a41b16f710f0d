"""The sampler that a generator's card prints: plain diffusers, and the same answer as ours for the same seed."""

from __future__ import annotations

import json

from shared.recipe import Learner

LABELS = """\
import json

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
{imports}
folder, asked, seed, guidance = "path/to/this/folder", {example}, 0, {guidance}
labels = json.load(open(f"{{folder}}/burnish.json"))["labels"]
told = {{"class_labels": torch.tensor([labels.index(asked), len(labels)])}}  # the second asks for nothing
model = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
"""
CAPTIONS = """\
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from transformers import AutoTokenizer, BertModel
{imports}
folder, asked, seed, guidance = "path/to/this/folder", {example}, 0, {guidance}
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = tokenizer([f"<s>{{asked}}</s>", "<s></s>"], padding=True, return_tensors="pt")  # the second asks for nothing
encoder = BertModel.from_pretrained(folder, subfolder="text_encoder", add_pooling_layer=False)
words = encoder(texts["input_ids"], attention_mask=texts["attention_mask"]).last_hidden_state.detach()
told = {{"encoder_hidden_states": words, "encoder_attention_mask": texts["attention_mask"]}}
model = PixArtTransformer2DModel.from_pretrained(folder, subfolder="transformer")
"""
STEPS = """\
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
scheduler.set_timesteps(sigmas=[1 - n / {steps} for n in range({steps})])
x = torch.randn((1, {channels}, {side}, {side}), generator=torch.Generator().manual_seed(seed))
for time in scheduler.timesteps:
    with torch.no_grad():
        with_it, without = model(x.repeat(2, 1, 1, 1), timestep=time.expand(2), **told).sample
    x = scheduler.step(without + guidance * (with_it - without), time, x).prev_sample
levels = ((x[0] + 1) * 127.5).round().clamp(0, 255).byte()
"""


def sampler(learner: Learner, imports: str, finish: str) -> str:
    """Python that asks a checkpoint for one example; `finish` makes a file of `levels` [channels, side, side]."""
    facts, spec = learner.facts, learner.spec
    example = json.dumps(facts["labels"][0], ensure_ascii=False) if facts["labels"] else '"your caption"'
    head = LABELS if facts["labels"] else CAPTIONS
    sizes = {"channels": facts["channels"], "side": facts["side"], "steps": spec.sampling_steps}
    return (
        head.format(imports=imports, example=example, guidance=spec.guidance) + STEPS.format(**sizes) + finish
    )
