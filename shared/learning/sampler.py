"""The sampler that a generator's card prints: plain diffusers, and the same answer as ours for the same seed."""

from __future__ import annotations

import json
from typing import Any

from shared.learning import sound
from shared.learning.diffusion import EARLIEST, TIMES
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
        seen = model(x.repeat(2, 1, 1, 1), timestep=time.expand(2), **told).sample
    with_it, without = (x - seen) / max(time / {times}, {earliest})  # from the example that the model sees
    x = scheduler.step(without + guidance * (with_it - without), time, x).prev_sample
levels = ((x[0] + 1) * 127.5).round().clamp(0, 255).byte()
"""

SOUND = """\
decibels = levels.permute(1, 2, 0).flatten(1) / 255 * {decibels} - {quietest}
loudness = (load_file(f"{{folder}}/mel.safetensors")["back"] @ 10 ** (decibels / 20)).clamp(min=0)
how = {{"n_fft": {window}, "hop_length": {hop}, "window": torch.hann_window({window})}}
turned = torch.polar(loudness, torch.rand(loudness.shape, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi)
before = torch.zeros_like(turned)
for _ in range({rounds}):  # phases that fit the loudness
    heard = torch.istft(torch.polar(loudness, turned.angle()), length={length}, **how)
    again = torch.stft(heard, return_complex=True, **how)
    turned, before = again + {momentum} * (again - before), again
heard = torch.istft(torch.polar(loudness, turned.angle()), length={length}, **how)[:{samples}]
with wave.open("answer.wav", "wb") as file:
    file.setparams((1, 2, {rate}, 0, "NONE", ""))
    file.writeframes((heard.clamp(-1, 1) * 32767).round().short().numpy().tobytes())
"""


def sampler(learner: Learner, imports: str, finish: str) -> str:
    """Python that asks a checkpoint for one example; `finish` makes a file of `levels` [channels, side, side]."""
    facts, spec = learner.facts, learner.spec
    example = json.dumps(facts["labels"][0], ensure_ascii=False) if facts["labels"] else '"your caption"'
    head = LABELS if facts["labels"] else CAPTIONS
    sizes = {"channels": facts["channels"], "side": facts["side"], "steps": spec.sampling_steps}
    sizes |= {"times": TIMES, "earliest": EARLIEST}
    return (
        head.format(imports=imports, example=example, guidance=spec.guidance) + STEPS.format(**sizes) + finish
    )


def griffin_lim(layout: sound.Layout, facts: dict[str, Any]) -> str:
    """Python that makes a WAV of `levels`, as `sound.sounded` does."""
    return SOUND.format(
        decibels=sound.LOUDEST - sound.QUIETEST,
        quietest=-sound.QUIETEST,
        window=layout.window,
        hop=layout.hop,
        rounds=sound.ROUNDS,
        momentum=sound.MOMENTUM,
        length=layout.samples,
        samples=facts["samples"],
        rate=facts["rate"],
    )
