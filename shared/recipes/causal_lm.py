"""Pretraining of a language model: it learns to predict the next token of plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from shared.errors import Refused
from shared.learning import lstm, stream
from shared.learning.usage import pipeline
from shared.learning.writer import Writer
from shared.recipe import Batch, Column, Finding, Item, Judged, Learner, Loss, Metric, Sampling
from shared.spec import LoraSpec, PretrainSpec, knob

CHARACTERS_A_TOKEN = 3.5  # about, for the estimate of steps
SHOWN = Sampling(max_tokens=60, temperature=0.8, seed=1)  # how samples are written
PROMPT = 200  # characters of a sample's prompt at most
SAYINGS = (
    "A bird in the hand is worth two in the bush.",
    "A stitch in time saves nine.",
    "All that glitters is not gold.",
    "Birds of a feather flock together.",
    "Every cloud has a silver lining.",
    "Good things come to those who wait.",
    "Look before you leap, for he who hesitates is lost.",
    "Many hands make light work, and too many cooks spoil the broth.",
    "Still waters run deep.",
    "The early bird catches the worm, but the second mouse gets the cheese.",
    "When the cat is away the mice will play.",
    "You cannot have your cake and eat it.",
)


class CausalLMSpec(PretrainSpec, LoraSpec):
    """Knobs of next-token pretraining."""

    epochs: float = knob(4, gt=0, le=100, title="Epochs", help="Times that the text is read.")
    batch_size: int = knob(8, ge=1, le=1024, title="Batch size", help="Blocks in one optimizer step.")
    max_length: int = knob(
        256, ge=8, le=131_072, title="Block length", help="Tokens that the model sees at once in training."
    )
    method: Literal["lora", "full"] = knob(
        "full",
        title="Weights",
        help="full trains every weight, lora a small adapter on a base model; from scratch it is full.",
    )


class CausalLM(Writer):
    """GPT, Llama or LSTM from scratch, or a base model that reads on."""

    name = "causal_lm"
    title = "Language model pretraining"
    summary = "Let a model read plain text and learn to write on: from scratch, or from a base model."
    paper = "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf"
    family = "Pretraining"
    spec = CausalLMSpec
    columns = (Column("text", "what is read: a document a row, or a text file line by line"),)
    example = [{"text": saying} for saying in SAYINGS]
    metrics = (
        Metric("loss", "Loss", "lower"),
        Metric("perplexity", "Perplexity", "lower"),
        Metric("bits_per_character", "Bits per character", "lower"),
    )
    head = "causal_lm"
    default_base_model = "scratch/gpt-tiny"
    place = 50
    samples_with = ("max_tokens", "temperature", "top_p", "top_k", "beams", "seed", "stop")

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """A text column by its usual names."""
        return stream.recognise(columns)

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{"text": text}. Raises Refused for what is no text."""
        return {"text": stream.text_of(super().canonical(row, columns))}

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """What is no text is fatal; empty rows are left out."""
        return stream.findings(rows, columns)

    def examples(self, rows: int, characters: int, spec: CausalLMSpec) -> int:
        """Blocks of that text."""
        return math.ceil(characters / CHARACTERS_A_TOKEN / spec.max_length)

    def split(
        self, rows: Sequence[dict[str, Any]], fraction: float, seed: int
    ) -> tuple[list[int], list[int]]:
        """Documents at random; of a stream the last rows."""
        return stream.split(rows, fraction, seed)

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: CausalLMSpec) -> Any:
        """The base model's, with a padding token in any case."""
        lstm.register()
        tokenizer = super().load_tokenizer(folder, rows, spec)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = stream.end_token(tokenizer)
        return tokenizer

    def build_model(self, learner: Learner) -> Any:
        """A GPT-2, Llama or LSTM of the preset's size, without dropout."""
        from shared.learning.language_model import build

        return build(learner)

    def encode_all(self, rows: Sequence[dict[str, Any]], learner: Learner) -> Iterator[tuple[int, Item]]:
        """Blocks of `max_length` tokens: `input_ids` with the token before them in front, `chars`."""
        from shared.learning.language_model import room

        return stream.blocks(rows, learner.tokenizer, room(learner, learner.spec.max_length))

    def length(self, item: Item) -> int:
        """Tokens that are predicted."""
        return len(item["input_ids"]) - 1

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """The blocks side by side."""
        from shared.learning.language_model import collate_blocks

        return collate_blocks(items)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """Cross-entropy of every token."""
        from shared.learning.language_model import answer_loss

        return Loss(answer_loss(learner.model, batch), len(batch["targets"]))

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each block: summed loss, tokens, characters."""
        from shared.learning.language_model import answer_sums

        sums = answer_sums(learner.model, batch)
        return [one | {"chars": own} for one, own in zip(sums, batch["chars"].tolist(), strict=True)]

    def scored(self, sums: dict[str, float]) -> dict[str, float]:
        """Loss is a mean over tokens; bits per character does not depend on how text is cut into them."""
        loss = sums["loss"] / max(sums["weight"], 1)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 50)),
            "bits_per_character": sums["loss"] / math.log(2) / max(sums["chars"], 1),
        }

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The first halves of the rows, and how the model writes on."""
        begun = [opening(row["text"]) for row in rows]
        items = [self.encode_input({"text": prompt}, learner) for prompt, _ in begun]
        answers = self.predict(learner, items, [SHOWN] * len(items))
        return [
            {"prompt": prompt, "expected": rest, "answer": answer["text"]}
            for (prompt, rest), answer in zip(begun, answers, strict=True)
        ]

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """The prompt's tokens; an empty prompt begins a document. Raises Refused."""
        prompt = given.get("text", given.get("prompt"))
        if not isinstance(prompt, str):
            raise Refused("The input needs a «text» to go on from.", param="text")
        ids = learner.tokenizer(prompt, verbose=False)["input_ids"] or [stream.end_token(learner.tokenizer)]
        longest = limit(learner)
        if len(ids) >= longest:
            raise Refused(
                f"The prompt has {len(ids)} tokens; this model reads fewer than {longest:,.0f}. Shorten it.",
                param="text",
                code="context_length_exceeded",
            )
        return {"input_ids": ids}

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{text}]: what follows the prompt, up to the longest text that the model can read."""
        from shared.learning.generation import generate

        prompts = [item["input_ids"] for item in items]
        ways = [
            replace(way, max_tokens=int(min(way.max_tokens, limit(learner) - len(prompt))))
            for way, prompt in zip(sampling, prompts, strict=True)
        ]
        answers = generate(learner.model, learner.tokenizer, prompts, ways, strip=False)
        return [{"text": answer["content"]} for answer in answers]

    def usage(self, learner: Learner) -> str:
        """Write on by transformers alone; an LSTM by torch alone."""
        if learner.model.config.model_type == lstm.MODEL_TYPE:
            return lstm.PLAIN
        return (
            pipeline(learner, "write", "text-generation", self.opens_with)
            + 'print(write("Once upon a time", max_new_tokens=64)[0]["generated_text"])\n'
        )


def limit(learner: Learner) -> float:
    """The longest text that the model can read, in tokens; an LSTM reads on and on."""
    return getattr(learner.model.config, "max_position_embeddings", None) or math.inf


def opening(text: str) -> tuple[str, str]:
    """(the beginning of a text up to a word's end, the rest)."""
    middle = min(len(text) // 2, PROMPT)
    cut = max(text.rfind(" ", 0, middle + 1), 0) or middle
    return text[:cut], text[cut:]


recipe = CausalLM()
