"""Supervised fine-tuning of a chat model: it learns the assistant's answers, and nothing but the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.errors import Refused
from shared.learning import chat, dialogue
from shared.learning.cells import words
from shared.learning.writer import Writer
from shared.recipe import Batch, Column, Finding, Item, Judged, Learner, Loss, Metric, Sampling
from shared.spec import ChatSpec, knob

KNOWN_SHAPES = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"messages": "conversation"},
    {"prompt": "prompt", "completion": "completion"},
    {"prompt": "instruction", "context": "input", "completion": "output"},
    {"prompt": "instruction", "completion": "output"},
    {"prompt": "instruction", "context": "context", "completion": "response"},
    {"prompt": "instruction", "completion": "response"},
    {"prompt": "prompt", "completion": "response"},
    {"prompt": "question", "completion": "answer"},
)


class SFTSpec(ChatSpec):
    """Knobs of chat and instruction tuning."""

    learning_rate: float = knob(
        3e-4,
        gt=0,
        le=1,
        title="Learning rate",
        help="Peak of the learning-rate schedule; about ten times lower for full weights.",
    )


class SFT(Writer):
    """Loss on answers only; LoRA by default."""

    name = "sft"
    title = "Chat fine-tuning"
    summary = (
        "Teach a chat model by example conversations: it learns to answer as the assistant does in them."
    )
    paper = "https://arxiv.org/abs/2106.09685"
    api_type = "supervised"
    endpoint = "/v1/chat/completions"
    spec = SFTSpec
    columns = (
        Column(
            "messages",
            "conversations: a list of {role, content}, the assistant's answer last",
            kind="messages",
            required=False,
        ),
        Column("prompt", "what the user asks, where there are no conversations", required=False),
        Column("context", "text put below the prompt, such as Alpaca's input", required=False),
        Column("completion", "the answer to the prompt", output=True, required=False),
    )
    example = [
        {
            "messages": [
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": "Paris."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Is water wet?"},
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "And fire?"},
                {"role": "assistant", "content": "No."},
            ]
        },
    ] * 6
    metrics = (
        Metric("loss", "Loss", "lower"),
        Metric("perplexity", "Perplexity", "lower"),
        Metric("token_accuracy", "Token accuracy", "higher"),
    )
    head = "causal_lm"
    default_base_model = "smollm2-135m-instruct"
    place = 10
    samples_with = ("max_tokens", "temperature", "top_p", "top_k", "beams", "seed", "stop")

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """Conversations (OpenAI, ShareGPT), prompt and completion, Alpaca, Dolly, question and answer."""
        names = set(columns)
        return next((dict(shape) for shape in KNOWN_SHAPES if names.issuperset(shape.values())), None)

    def lacks(self, columns: dict[str, str]) -> str | None:
        """Conversations, or both a prompt and its completion."""
        if "messages" in columns or {"prompt", "completion"} <= columns.keys():
            return None
        return (
            "Chat fine-tuning needs a column of conversations («messages»), or one for «prompt» "
            "and one for «completion»."
        )

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{"messages": [{role, content, learn}]} whatever the shape was. Raises Refused."""
        mine = super().canonical(row, columns)
        if mine.get("messages") is not None:
            return {"messages": chat.messages(mine["messages"])}
        return {"messages": exchange(mine)}

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Conversations in which the wrong side speaks are fatal; ones without words to learn are left out."""
        column, usable, number = columns.get("messages") or columns.get("prompt"), 0, 0
        for number, row in enumerate(rows, 1):
            try:
                conversation = self.canonical(row, columns)["messages"]
                chat.ordered(conversation)
            except Refused as wrong:
                yield Finding(wrong.message, number, column)
                continue
            if why := useless(conversation):
                yield Finding(f"{why}; the row is left out.", number, column, fatal=False)
            else:
                usable += 1
        if not usable:
            yield Finding("No row has a conversation to learn from." if number else "There are no rows.")

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """The conversation up to the last question."""
        return {"messages": dialogue.asked(row["messages"])}

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: SFTSpec) -> Any:
        """The base model's, with a chat template in any case."""
        return chat.prepare(super().load_tokenizer(folder, rows, spec))

    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """`input_ids` and `labels`, which are -100 outside of the answers."""
        from shared.learning.language_model import room

        conversation = row["messages"]
        chat.ordered(conversation)
        if why := useless(conversation):
            raise Refused(f"{why}.")
        conversation = dialogue.introduced(conversation, learner)
        return [chat.encode(conversation, learner.tokenizer, room(learner, learner.spec.max_length))]

    def length(self, item: Item) -> int:
        """Tokens of the conversation."""
        return len(item["input_ids"])

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """The rows packed, and where the answers' tokens are."""
        from shared.learning.language_model import collate

        return collate(items, learner)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """Cross-entropy of the answers' tokens."""
        from shared.learning.language_model import answer_loss

        return Loss(answer_loss(learner.model, batch), len(batch["targets"]))

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each row: summed loss, answer tokens, how many of them are the likeliest."""
        from shared.learning.language_model import answer_sums

        return answer_sums(learner.model, batch)

    def scored(self, sums: dict[str, float]) -> dict[str, float]:
        """Loss and accuracy are means over the answers' tokens."""
        loss = sums["loss"] / max(sums["weight"], 1)
        accuracy = sums["right"] / max(sums["weight"], 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 50)), "token_accuracy": accuracy}

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Greedy answers to the last questions of the rows."""
        questions = [self.input(row)["messages"] for row in rows]
        return dialogue.samples(learner, questions, [row["messages"][-1]["content"] for row in rows])

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """The rendered conversation up to the head of the answer. Raises Refused."""
        if given.get("messages") is not None:
            return dialogue.encode_question(dialogue.asked(chat.messages(given["messages"])), learner)
        return dialogue.encode_question(exchange(given)[:1], learner)

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{content, finish_reason, prompt_tokens, completion_tokens}]."""
        return dialogue.answers(learner, items, sampling)

    def usage(self, learner: Learner) -> str:
        """Chat with the checkpoint by transformers alone."""
        return dialogue.usage(learner)


def useless(conversation: list[chat.Message]) -> str | None:
    """Why nothing can be learned of a conversation, if so."""
    if silent := chat.blank(conversation):
        return f"Message {silent} is empty"
    if not any(one["learn"] for one in conversation if one["role"] == "assistant"):
        return "Every answer has the weight 0"
    return None


def exchange(row: dict[str, Any]) -> list[chat.Message]:
    """A prompt (with its context) and its completion as two messages; a missing completion is empty."""
    prompt, context = words(row.get("prompt"), "prompt"), words(row.get("context"), "context")
    if context.strip():
        prompt = f"{prompt}\n\n{context}"
    return [
        {"role": "user", "content": prompt, "learn": True},
        {"role": "assistant", "content": words(row.get("completion"), "completion"), "learn": True},
    ]


recipe = SFT()
