"""Direct preference optimization: a chat model learns to prefer one answer to another (Rafailov et al. 2023)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.errors import Refused
from shared.learning import chat, dialogue
from shared.learning.cells import words
from shared.learning.writer import Writer
from shared.recipe import Batch, Column, Finding, Item, Judged, Learner, Loss, Metric, Sampling
from shared.spec import ChatSpec, knob

SIDES = ("chosen", "rejected")
KNOWN_SHAPES = (
    ("prompt", "chosen", "rejected"),
    ("input", "preferred_output", "non_preferred_output"),
    ("question", "chosen", "rejected"),
    ("instruction", "chosen", "rejected"),
    (None, "chosen", "rejected"),
)


class DPOSpec(ChatSpec):
    """Knobs of preference optimization."""

    epochs: float = knob(1, gt=0, le=100, title="Epochs", help="Times that every row is seen.")
    learning_rate: float = knob(
        1e-4,
        gt=0,
        le=1,
        title="Learning rate",
        help="Peak of the learning-rate schedule; about a hundred times lower for full weights.",
    )
    beta: float = knob(
        0.1,
        gt=0,
        le=2,
        title="Beta",
        help="How closely the model stays to where it started: the larger, the closer.",
    )


class DPO(Writer):
    """The reference is the model itself as it was before: its adapter off, or a frozen copy."""

    name = "dpo"
    title = "Preference optimization"
    summary = "Teach a chat model by pairs of answers, which of the two is the better one."
    paper = "https://arxiv.org/abs/2305.18290"
    endpoint = "/v1/chat/completions"
    spec = DPOSpec
    columns = (
        Column("prompt", "what is asked: text, or a list of {role, content}", required=False),
        Column("chosen", "the better answer: text, or messages that go on from the prompt", output=True),
        Column("rejected", "the worse answer, likewise", output=True),
    )
    example = [
        {"prompt": "What is the capital of France?", "chosen": "Paris.", "rejected": "No idea."},
        {"prompt": "Is water wet?", "chosen": "Yes, it is.", "rejected": "Who cares?"},
    ] * 6
    metrics = (
        Metric("accuracy", "Preference accuracy", "higher"),
        Metric("margin", "Margin", "higher"),
        Metric("loss", "Loss", "lower"),
    )
    head = "causal_lm"
    default_base_model = "smollm2-135m-instruct"
    place = 15
    needs_reference = True
    samples_with = ("max_tokens", "temperature", "top_p", "top_k", "beams", "seed", "stop")

    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """Prompt, chosen and rejected; OpenAI's preference form; two whole conversations."""
        names = set(columns)
        for shape in KNOWN_SHAPES:
            found = {mine: theirs for mine, theirs in zip(("prompt", *SIDES), shape, strict=True) if theirs}
            if names.issuperset(found.values()):
                return found
        return None

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """{"prompt": messages, "chosen": messages, "rejected": messages}; a row to predict has the prompt alone.

        Both answers begin with the assistant. Raises Refused.
        """
        mine = super().canonical(row, columns)
        told = "prompt" in mine
        prompt = talk(mine.get("prompt"), "prompt", "user") if told else []
        sides = {side: talk(mine[side], side, "assistant") for side in SIDES if side in mine}
        if not told and len(sides) == len(SIDES):
            prompt = in_common(*sides.values())
        answers = {side: behind(prompt, said, side) for side, said in sides.items()}
        return {"prompt": prompt} | answers

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Conversations in which the wrong side speaks are fatal; pairs that tell nothing are left out."""
        usable, number = 0, 0
        for number, row in enumerate(rows, 1):
            try:
                mine = self.canonical(row, columns)
            except Refused as wrong:
                yield Finding(wrong.message, number, columns.get(wrong.param or ""))
                continue
            if useless := tells_nothing(mine):
                yield Finding(f"{useless}; the row is left out.", number, columns["chosen"], fatal=False)
            else:
                usable += 1
        if not usable:
            yield Finding("No row has two answers to compare." if number else "There are no rows.")

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """The conversation up to the last question."""
        return {"messages": dialogue.asked(row["prompt"])}

    def texts(self, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
        """What is said in the conversations."""
        for row in rows:
            yield from (one["content"] for part in row.values() for one in part)

    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: DPOSpec) -> Any:
        """The base model's, with a chat template in any case."""
        return chat.prepare(super().load_tokenizer(folder, rows, spec))

    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """`chosen_ids` and `rejected_ids` of both conversations, and their labels: -100 outside of the answers."""
        from shared.learning.language_model import room

        if useless := tells_nothing(row):
            raise Refused(f"{useless}.")
        item, longest = {}, room(learner, learner.spec.max_length)
        for side in SIDES:
            conversation = dialogue.introduced(row["prompt"] + row[side], learner)
            encoded = chat.encode(conversation, learner.tokenizer, longest)
            item |= {f"{side}_ids": encoded["input_ids"], f"{side}_labels": encoded["labels"]}
        if item["chosen_ids"] == item["rejected_ids"]:
            raise Refused(f"The two answers are the same within the longest row of {longest} tokens.")
        return [item]

    def length(self, item: Item) -> int:
        """Tokens of both conversations."""
        return len(item["input_ids"]) if "input_ids" in item else sum(len(item[f"{s}_ids"]) for s in SIDES)

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """Both answers of each item behind their prompt, packed, and where their tokens are; `pairs` [pairs]."""
        import torch

        from shared.learning.language_model import collate

        sides = [
            {"input_ids": item[f"{side}_ids"], "labels": item[f"{side}_labels"]}
            for item in items
            for side in SIDES
        ]
        return collate(sides, learner, family=len(SIDES)) | {"pairs": torch.arange(len(items))}

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """-log σ(margin), summed over pairs."""
        from torch.nn.functional import logsigmoid

        margins = preferences(learner, batch)
        return Loss(-logsigmoid(margins).sum(), len(margins))

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """Of each pair: its margin, its loss, and whether the chosen answer is preferred; a tie is half."""
        from torch.nn.functional import logsigmoid

        margins = preferences(learner, batch)
        told = zip(margins.tolist(), (-logsigmoid(margins)).tolist(), strict=True)
        return [
            {"accuracy": (margin > 0) + (margin == 0) / 2, "margin": margin, "loss": loss, "weight": 1}
            for margin, loss in told
        ]

    def scored(self, sums: dict[str, float]) -> dict[str, float]:
        """Means over the pairs."""
        return {metric.name: sums[metric.name] / max(sums["weight"], 1) for metric in self.metrics}

    def row_score(self, judged: Judged, facts: dict[str, Any]) -> float:
        """The larger the margin, the better the row went."""
        return judged["margin"]

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Greedy answers to the prompts, beside the chosen ones."""
        questions = [self.input(row)["messages"] for row in rows]
        return dialogue.samples(learner, questions, [row["chosen"][0]["content"] for row in rows])

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """The rendered conversation up to the head of the answer. Raises Refused."""
        asked = given.get("messages") if given.get("messages") is not None else given.get("prompt")
        conversation = talk(asked, "messages", "user") if asked is not None else []
        return dialogue.encode_question(dialogue.asked(conversation), learner)

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """[{content, finish_reason, prompt_tokens, completion_tokens}]."""
        return dialogue.answers(learner, items, sampling)

    def usage(self, learner: Learner) -> str:
        """Chat with the checkpoint by transformers alone."""
        return dialogue.usage(learner)


def preferences(learner: Learner, batch: Batch) -> Any:
    """β (log π(chosen)/π₀(chosen) - log π(rejected)/π₀(rejected)), [pairs]: how much more than the reference π₀
    the policy π prefers the chosen answer.
    """
    import torch

    from shared.learning.language_model import answer_likelihoods

    count = len(SIDES) * len(batch["pairs"])
    with torch.no_grad(), learner.reference() as reference:
        before = answer_likelihoods(reference, batch, count)
    gained = (answer_likelihoods(learner.model, batch, count) - before).view(-1, len(SIDES))
    return learner.spec.beta * (gained[:, 0] - gained[:, 1])


def talk(cell: Any, column: str, role: str) -> list[chat.Message]:
    """A cell as messages: text is said by `role`; a list, an object of messages or a message, or such as JSON
    text, is a conversation. Raises Refused.
    """
    cell = structured(cell)
    if isinstance(cell, dict):
        cell = cell.get("messages", [cell])
    try:
        if not isinstance(cell, list):
            return [{"role": role, "content": words(cell, column), "learn": True}]
        return [one | {"learn": True} for one in chat.messages(cell)]
    except Refused as wrong:
        raise Refused(f"«{column}»: {wrong.message}", param=column) from None


def structured(cell: Any) -> Any:
    """The list of messages or the object that a text is the JSON of; any other cell as it is."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            read = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        inner = read if isinstance(read, list) else [read]
        if inner and all(
            isinstance(one, dict) and one.keys() & {"role", "from", "messages"} for one in inner
        ):
            return read
    return cell


def in_common(chosen: list[chat.Message], rejected: list[chat.Message]) -> list[chat.Message]:
    """What two whole conversations begin with, up to the answers in which they differ. Raises Refused."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    while same and chosen[same - 1]["role"] == "assistant":
        same -= 1
    if not same:
        raise Refused(
            "Without a prompt, «chosen» and «rejected» must be whole conversations that begin alike with what"
            " is asked.",
            param="chosen",
        )
    return chosen[:same]


def behind(prompt: list[chat.Message], said: list[chat.Message], side: str) -> list[chat.Message]:
    """The answer without the prompt, if it was repeated in front of it. Raises Refused where it is no answer."""
    start = [one["content"].strip() for one in said[: len(prompt)]]
    answer = said[len(prompt) :] if start == [one["content"].strip() for one in prompt] else said
    if not answer or answer[0]["role"] != "assistant":
        raise Refused(f"«{side}» must go on from the prompt with the assistant's answer.", param=side)
    try:
        chat.ordered([*prompt, *answer])
    except Refused as wrong:
        raise Refused(f"Prompt and «{side}»: {wrong.message}", param=side) from None
    return answer


def tells_nothing(row: dict[str, Any]) -> str | None:
    """Why there is nothing to learn from a row, if that is so."""
    for side in SIDES:
        if silent := chat.blank(row["prompt"] + row[side]):
            return f"Message {silent} of prompt and «{side}» is empty"
    if row["chosen"] == row["rejected"]:
        return "«chosen» and «rejected» are the same"
    return None


recipe = DPO()
