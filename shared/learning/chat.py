"""Conversations: one shape for the many that datasets come in, the chat template, and which tokens of a
rendered conversation are the assistant's.

A message is {"role": system | user | assistant, "content": text, "learn": bool}.
"""

import json
from typing import Any

from shared.errors import Refused
from shared.learning.batch import IGNORED

Message = dict[str, Any]
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
LONGEST_TEMPLATE = 65_536

# For base models without a chat template of their own.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def messages(cell: Any) -> list[Message]:
    """A cell (list of messages, OpenAI's or ShareGPT's, or the same as JSON text) in one shape.

    Raises Refused if it is no conversation; `ordered` then checks who speaks when.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise Refused("The messages are not a list of objects with «role» and «content».") from None
    if not isinstance(cell, list) or not cell:
        raise Refused("The messages must be a list with at least one message.")
    return [message(one, number) for number, one in enumerate(cell, 1)]


def message(given: Any, number: int) -> Message:
    """One message; its role may be called `from`, its content `value`."""
    if not isinstance(given, dict):
        raise Refused(f"Message {number} must be an object with «role» and «content».")
    role = given.get("role") or given.get("from")
    if not isinstance(role, str) or role.lower() not in ROLES:
        known = "system, developer, user, assistant"
        raise Refused(f"Message {number} has the role {json.dumps(role)}; known roles are {known}.")
    content = given.get("content") if given.get("content") is not None else given.get("value")
    return {
        "role": ROLES[role.lower()],
        "content": plain(content, number),
        "learn": weight(given.get("weight"), number) > 0,
    }


def weight(given: Any, number: int) -> float:
    """How much a message counts: 1 where nothing is said. Raises Refused for what is no number."""
    try:
        return 1.0 if given is None else float(given)
    except (ValueError, TypeError, OverflowError):
        raise Refused(f"The weight of message {number} must be a number, such as 0 or 1.") from None


def plain(content: Any, number: int) -> str:
    """The text of a message's content: a string, or a list of text parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(isinstance(part, str) for part in parts):
            content = "".join(parts)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise Refused(f"The content of message {number} must be text.")
    return content


def ordered(conversation: list[Message]) -> None:
    """Raises Refused unless: maybe system first, then user and assistant in turn, an answer at the end."""
    turns = conversation[1:] if conversation[0]["role"] == "system" else conversation
    offset = len(conversation) - len(turns) + 1
    if not any(turn["role"] == "assistant" for turn in turns):
        raise Refused("There is no assistant message, so there is nothing to learn.")
    for number, turn in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if turn["role"] != expected:
            raise Refused(
                f"Message {number + offset} is from «{turn['role']}» where «{expected}» should speak: after an "
                "optional system message, user and assistant take turns, the user first."
            )
    if turns[-1]["role"] != "assistant":
        raise Refused("The last message must be the assistant's: it is the answer to learn.")


def blank(conversation: list[Message]) -> int | None:
    """The number (from 1) of the first message without text, if any."""
    for number, one in enumerate(conversation, 1):
        if not one["content"].strip():
            return number
    return None


def prepare(tokenizer: Any) -> Any:
    """The tokenizer with a chat template and a padding token, whatever it came with. Raises Refused."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if len(str(tokenizer.chat_template)) > LONGEST_TEMPLATE:
        raise Refused("The base model's chat template is longer than 64 KiB.", param="model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def render(conversation: list[Message], tokenizer: Any, *, ask: bool = False) -> str:
    """The conversation as the chat template writes it; `ask` adds the head of an answer.

    Templates without a system role get its text in front of the first user message.
    """
    from jinja2 import TemplateError

    turns = [{"role": one["role"], "content": one["content"]} for one in conversation]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    except TemplateError as wrong:
        if turns[0]["role"] != "system" or len(turns) < 2:
            raise Refused(f"The base model's chat template refuses this conversation: {wrong}") from None
        folded = turns[0]["content"] + "\n\n" + turns[1]["content"]
        return render([{"role": "user", "content": folded}, *turns[2:]], tokenizer, ask=ask)


def encode(conversation: list[Message], tokenizer: Any, longest: int) -> dict[str, list[int]]:
    """`input_ids`, and `labels` that are -100 outside of the answers to learn. Raises Refused.

    A conversation that is too long is cut at the end; one whose answers are all cut off is refused.
    """
    text = render(conversation, tokenizer)
    spans = answers(conversation, tokenizer, text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    special = set(tokenizer.all_special_ids)
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        inside = [place for place, (left, _) in enumerate(offsets) if start <= left < end]
        for place in until_turn_ends(inside, ids, special, tokenizer):
            labels[place] = ids[place]
    ids, labels = ids[:longest], labels[:longest]
    if all(label == IGNORED for label in labels[1:]):
        raise Refused(f"No answer fits in the longest row of {longest} tokens.", param="max_length")
    return {"input_ids": ids, "labels": labels}


def until_turn_ends(inside: list[int], ids: list[int], special: set[int], tokenizer: Any) -> list[int]:
    """The places of an answer up to the token that ends the turn, without the template's white space."""
    last = next((n for n in range(len(inside) - 1, -1, -1) if ids[inside[n]] in special), None)
    if last is None:
        return inside
    tail = tokenizer.decode([ids[place] for place in inside[last + 1 :]])
    return inside if tail.strip() else inside[: last + 1]


def answers(conversation: list[Message], tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Where in `text` the answers to learn stand, as (first character, one past the last).

    An answer is what the template adds between the prefix that asks for it and the prefix that holds
    it. Templates that write earlier turns otherwise later on (they drop old reasoning, say) fail that
    comparison; there the answer's own words are looked up.
    """
    spans, cursor = [], 0
    for place, one in enumerate(conversation):
        if one["role"] != "assistant":
            continue
        before = render(conversation[:place], tokenizer, ask=True)
        through = render(conversation[: place + 1], tokenizer)
        start = len(before) if text.startswith(before) and len(before) >= cursor else None
        end = len(through) if text.startswith(through) else None
        if start is None or end is None:
            words = one["content"].strip()
            found = text.find(words, cursor if start is None else start)
            if found < 0:
                raise Refused("The base model's chat template leaves out the words of an answer.")
            start = found if start is None else start
            end = turn_end(text, found + len(words), tokenizer) if end is None else end
        cursor = end
        if one["learn"]:
            spans.append((start, end))
    return spans


def turn_end(text: str, after: int, tokenizer: Any) -> int:
    """Where the special token that closes the turn ends, if one follows at once; else `after`."""
    rest = text[after:]
    gap = len(rest) - len(rest.lstrip())
    for token in tokenizer.all_special_tokens:
        if rest[gap:].startswith(token):
            return after + gap + len(token)
    return after
