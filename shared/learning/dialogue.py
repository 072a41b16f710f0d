"""What recipes of chat models share when they are asked: the question in front, the answer behind."""

from __future__ import annotations

from typing import Any

from shared.errors import Refused
from shared.learning import chat
from shared.learning.usage import pipeline
from shared.recipe import Item, Learner, Sampling

SAMPLE_TOKENS = 40


def usage(learner: Learner) -> str:
    """Python that chats with a downloaded checkpoint by transformers alone."""
    return (
        pipeline(learner, "chat", "text-generation", "AutoModelForCausalLM")
        + 'print(chat([{"role": "user", "content": "Hello!"}], max_new_tokens=64)[0]["generated_text"][-1])\n'
    )


def asked(conversation: list[chat.Message]) -> list[chat.Message]:
    """The conversation up to the last question."""
    while conversation and conversation[-1]["role"] == "assistant":
        conversation = conversation[:-1]
    return [{"role": one["role"], "content": one["content"]} for one in conversation]


def introduced(conversation: list[chat.Message], learner: Learner) -> list[chat.Message]:
    """The conversation with the spec's system message in front where it has none."""
    if not learner.spec.system or conversation[0]["role"] == "system":
        return conversation
    return [{"role": "system", "content": learner.spec.system, "learn": False}, *conversation]


def encode_question(conversation: list[chat.Message], learner: Learner) -> Item:
    """The rendered conversation up to the head of the answer. Raises Refused."""
    if not conversation or conversation[-1]["role"] != "user" or not conversation[-1]["content"].strip():
        raise Refused("There is no user message to answer.", param="messages")
    text = chat.render(introduced(conversation, learner), learner.tokenizer, ask=True)
    ids = learner.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = getattr(learner.model.config, "max_position_embeddings", None)
    if room and len(ids) >= room:
        raise Refused(
            f"The conversation has {len(ids)} tokens; this model reads at most {room}.",
            param="messages",
            code="context_length_exceeded",
        )
    return {"input_ids": ids}


def answers(learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
    """[{content, finish_reason, prompt_tokens, completion_tokens}]."""
    from shared.learning.generation import generate

    return generate(learner.model, learner.tokenizer, [item["input_ids"] for item in items], sampling)


def samples(
    learner: Learner, questions: list[list[chat.Message]], expected: list[str]
) -> list[dict[str, Any]]:
    """Greedy answers to conversations that end with a question, beside what was expected."""
    items = [encode_question(question, learner) for question in questions]
    written = answers(learner, items, [Sampling(max_tokens=SAMPLE_TOKENS)] * len(items))
    return [
        {"prompt": question, "expected": wanted, "answer": answer["content"]}
        for question, wanted, answer in zip(questions, expected, written, strict=True)
    ]
