"""What recipes whose models write text have in common: their exports are compared token by token."""

from __future__ import annotations

import math
from typing import Any

from shared.recipe import Agreement, Learner, Recipe

PROMPTS = (
    "Hello!",
    "What's the capital of France? I'LL say it's Paris.",
    "Once upon a time, in 1984, there were 12,345.678 days",
    "def add(a, b):\n    return a + b  # 42\n\n\n\t\tprint(add(1, 20))\n",
    "Ünïcode naïveté, 数字 ３４, ☃ and  blanks   \n",
)
TOKENS = 24  # that the trained model writes after each


class Writer(Recipe):
    """Asks a causal language model, or an encoder-decoder, how likely it finds every token that the trained one
    read and wrote.
    """

    def probes(self, learner: Learner) -> list[dict[str, Any]]:
        """[{text, written}]: prompts that the model has room for, and the tokens that it writes after them by itself."""
        room = getattr(learner.model.config, "max_position_embeddings", None) or math.inf
        fitting = [
            text
            for text in prompts(learner.tokenizer)
            if len(learner.tokenizer(text)["input_ids"]) + TOKENS <= room
        ]
        return [{"text": text, "written": written(learner, text)} for text in fitting]

    def shown(self, learner: Learner, probes: list[dict[str, Any]]) -> list[Any]:
        """[{tokens, logits [tokens, words]}]; the export cuts the texts into tokens by itself."""
        return [told(learner, probe["text"], probe["written"]) for probe in probes]

    def agreement(self, trained: list[Any], export: list[Any]) -> Agreement:
        """How alike the two find what comes next at every token."""
        from shared.learning.agreement import of_logits

        return of_logits(trained, export)


def prompts(tokenizer: Any) -> list[str]:
    """Plain texts, and a question as the model's chat template puts it, if it has one."""
    if not tokenizer.chat_template:
        return list(PROMPTS)
    question = [{"role": "user", "content": PROMPTS[1]}]
    return [
        *PROMPTS,
        tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True),
    ]


def written(learner: Learner, text: str) -> list[int]:
    """The tokens that the model finds likeliest after a text, one after the other."""
    import torch
    from transformers import GenerationConfig

    config = learner.model.config
    read = torch.tensor([learner.tokenizer(text)["input_ids"]], device=learner.device)
    start = getattr(config, "decoder_start_token_id", None)
    greedy = GenerationConfig(
        max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, decoder_start_token_id=start
    )
    with torch.no_grad():
        found = learner.model.generate(
            input_ids=read, attention_mask=torch.ones_like(read), generation_config=greedy
        )
    return found[0, 1 if config.is_encoder_decoder else read.shape[1] :].tolist()


def told(learner: Learner, text: str, written: list[int]) -> dict[str, Any]:
    """{tokens, logits [tokens, words] in float32} of the text and of what was written after it."""
    import torch

    config, read = learner.model.config, learner.tokenizer(text)["input_ids"]
    if config.is_encoder_decoder:
        given = {"input_ids": read, "decoder_input_ids": [config.decoder_start_token_id, *written[:-1]]}
    else:
        given = {"input_ids": read + written}
    inputs = {name: torch.tensor([ids], device=learner.device) for name, ids in given.items()}
    with torch.no_grad():
        logits = learner.model(**inputs).logits[0].float().cpu()
    return {"tokens": read + written, "logits": logits}
