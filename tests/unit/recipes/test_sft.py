"""Chat fine-tuning: shapes of conversations, what is wrong with them, and which tokens are learned."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import Refused
from shared.learning import chat
from shared.learning.batch import IGNORED
from shared.recipe import get
from tests.attempts import TINY
from tests.imports import imported, lines

SFT = get("sft")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye?"},
    {"role": "assistant", "content": "Bye."},
]
# Rewrites earlier answers, as templates do that drop old reasoning.
REWRITING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '(thinking) ' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = TINY["causal_lm"](tmp_path_factory.mktemp("tiny") / "base")
    return AutoTokenizer.from_pretrained(folder)


def learned(tokenizer: Any, conversation: list[dict[str, Any]], longest: int = 500) -> list[str]:
    """The stretches of text that bear a label."""
    encoded = chat.encode(chat.messages(conversation), tokenizer, longest)
    stretches, before = [], IGNORED
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        if label != IGNORED:
            assert label == token
            if before == IGNORED:
                stretches.append([])
            stretches[-1].append(token)
        before = label
    return [tokenizer.decode(stretch) for stretch in stretches]


def test_answers_are_learned_with_the_token_that_ends_the_turn(tokenizer: Any):
    assert learned(tokenizer, TALK) == ["Hi.<|im_end|>", "Bye.<|im_end|>"]


def test_an_answer_of_weight_zero_is_context_alone(tokenizer: Any):
    talk = [one | {"weight": 0} if one["content"] == "Hi." else one for one in TALK]
    assert learned(tokenizer, talk) == ["Bye.<|im_end|>"]


def test_the_same_words_elsewhere_are_not_learned(tokenizer: Any):
    talk = [{"role": "user", "content": "Say: Hi. assistant\nHi."}, {"role": "assistant", "content": "Hi."}]
    assert learned(tokenizer, talk) == ["Hi.<|im_end|>"]


@pytest.mark.parametrize("template", [REWRITING, NO_SYSTEM, chat.PLAIN_TEMPLATE])
def test_other_templates_are_understood(tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    found = learned(tokenizer, TALK)
    assert [text.replace("(thinking) ", "").strip().removesuffix("<|im_end|>") for text in found] == [
        "Hi.",
        "Bye.",
    ]
    assert all(text.endswith("<|im_end|>") for text in found)


def test_a_conversation_that_is_cut_before_its_answer_is_refused(tokenizer: Any):
    with pytest.raises(Refused, match="No answer fits"):
        learned(tokenizer, TALK, longest=12)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": TALK[1:3]}, {"messages": "messages"}),
        ({"prompt": "Hello?", "completion": "Hi."}, {"prompt": "prompt", "completion": "completion"}),
        (
            {"instruction": "Hello?", "input": "", "output": "Hi."},
            {"prompt": "instruction", "context": "input", "completion": "output"},
        ),
        (
            {"conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]},
            {"messages": "conversations"},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}, TALK[2]]},
            {"messages": "messages"},
        ),
    ],
)
def test_conversations_come_in_many_shapes(row: dict[str, Any], columns: dict[str, str]):
    assert SFT.recognise(row) == columns
    assert SFT.check([row], columns) == []
    said = SFT.canonical(row, columns)["messages"]
    assert [(one["role"], one["content"]) for one in said] == [("user", "Hello?"), ("assistant", "Hi.")]


# --- broken datasets --------------------------------------------------------------------------


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | more


ASK, YES = user("Wet?"), assistant("Yes.")
PICTURE = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
RIGHT = {"prompt": "Wet?", "completion": "Yes."}


def fit(folder: Path, data: bytes, filename: str = "rows.jsonl") -> dict[str, Any]:
    """What the importer says of the file for this recipe."""
    made = imported(folder, filename, data)
    assert made.code == 0
    return made.report["fits"]["sft"]


@pytest.mark.parametrize(
    ("talk", "fatal", "said"),
    [
        ([YES, ASK], True, "Message 1 is from «assistant» where «user» should speak"),
        ([ASK, ASK, YES], True, "Message 2 is from «user» where «assistant» should speak"),
        ([ASK, TALK[0], YES], True, "Message 2 is from «system» where «assistant» should speak"),
        ([ASK], True, "There is no assistant message, so there is nothing to learn."),
        ([ASK, YES, ASK], True, "The last message must be the assistant's"),
        ([{"role": "narrator", "content": "x"}, YES], True, 'Message 1 has the role "narrator"; known roles are'),
        ([ASK, assistant(None), {"role": "tool", "content": "x"}, YES], True, 'Message 3 has the role "tool"'),
        ([{"content": "Wet?"}, YES], True, "Message 1 has the role null"),
        ([user(PICTURE), YES], True, "The content of message 1 must be text."),
        ([ASK, assistant(5)], True, "The content of message 2 must be text."),
        ([ASK, assistant({"text": "Yes."})], True, "The content of message 2 must be text."),
        (["Wet?", "Yes."], True, "Message 1 must be an object with «role» and «content»."),
        ("Wet? Yes.", True, "The messages are not a list of objects with «role» and «content»."),
        ("[" * 100_000 + "]" * 100_000, True, "The messages are not a list of objects"),
        (5, True, "The messages must be a list with at least one message."),
        (ASK, True, "The messages must be a list with at least one message."),
        ([], True, "The messages must be a list with at least one message."),
        ([ASK, assistant(" ")], False, "Message 2 is empty; the row is left out."),
        ([ASK, {"role": "assistant"}], False, "Message 2 is empty; the row is left out."),
        ([user(""), YES], False, "Message 1 is empty; the row is left out."),
        (None, False, "Message 1 is empty; the row is left out."),
        ([ASK, assistant("Yes.", weight=0)], False, "Every answer has the weight 0; the row is left out."),
    ],
)  # fmt: skip
def test_a_broken_conversation_is_named_with_its_reason(tmp_path: Path, talk: Any, fatal: bool, said: str):
    found = fit(tmp_path, lines({"messages": TALK}, {"messages": talk}))["findings"]
    mine = [one for one in found if one["row"] == 2]
    assert [(one["column"], one["fatal"]) for one in mine] == [("messages", fatal)], found
    assert said in mine[0]["message"]


@pytest.mark.parametrize(
    ("wrong", "fatal", "said"),
    [
        (RIGHT | {"completion": " "}, False, "Message 2 is empty; the row is left out."),
        ({"prompt": "Wet?"}, False, "Message 2 is empty; the row is left out."),
        (RIGHT | {"prompt": None}, False, "Message 1 is empty; the row is left out."),
    ],
)
def test_a_broken_exchange_is_named_with_its_reason(
    tmp_path: Path, wrong: dict[str, Any], fatal: bool, said: str
):
    (found,) = fit(tmp_path, lines(RIGHT, wrong))["findings"]
    assert (found["row"], found["fatal"], found["message"]) == (2, fatal, said)


@pytest.mark.parametrize(
    ("filename", "data", "at"),
    [
        ("a.csv", b"prompt,completion\nWet?,\nDry?,\n", 2),
        ("a.csv", b'messages\n"[NaN]"\n', 2),
        ("a.jsonl", lines({"prompt": "Wet?", "completion": ["Yes."]}), 1),
        ("a.jsonl", lines(*[{"messages": [ASK, assistant("Yes.", weight=0)]}] * 3), 1),
        ("a.jsonl", lines({"conversations": [{"from": "human", "value": "Wet?"}, {"from": "tool", "value": "x"}]}), 1),
    ],
)  # fmt: skip
def test_a_file_without_an_answer_to_learn_is_refused_as_a_whole(
    tmp_path: Path, filename: str, data: bytes, at: int
):
    first, *_, last = fit(tmp_path, data, filename)["findings"]
    assert first["row"] == at
    assert (last["row"], last["fatal"]) == (None, True)
    assert last["message"] == "No row has a conversation to learn from."


def test_conversations_that_come_twice_are_conversations(tmp_path: Path):
    found = fit(tmp_path, lines(*[{"messages": TALK}] * 3))
    assert (found["findings"], found["skipped"]) == ([], 0)


@pytest.mark.parametrize("data", [lines({"prompt": "x"}), lines({"chat": TALK}), lines({"completion": "x"})])
def test_other_columns_are_not_taken_for_conversations(tmp_path: Path, data: bytes):
    assert "sft" not in imported(tmp_path, "rows.jsonl", data).report["fits"]


def test_a_prompt_without_a_completion_column_is_not_enough():
    (found,) = SFT.check([{"prompt": "x"}], {"prompt": "prompt"})
    assert "«completion»" in found.message


@pytest.mark.parametrize(
    ("filename", "data", "at", "said"),
    [
        ("a.jsonl", lines({"messages": TALK}) + b'{"messages": NaN}\n', 2, "NaN is not JSON; write null"),
        ("a.jsonl", lines({"messages": TALK}, {"messages": [ASK, assistant("x" * 11 * 2**20)]}), 2,
         "Line 2 is longer than 10 MB."),
        ("a.jsonl", lines({"messages": TALK}) + b'{"messages": ' + b"[" * 40 + b"]" * 40 + b"}\n", 2,
         "Row 2 is nested deeper than 32 levels."),
        ("a.jsonl", lines({"messages": TALK}) + b'{"messages": [\n', 2, "Line 2 is not JSON"),
        ("a.jsonl", lines({"messages": TALK}, TALK), 2, "Line 2 is not a JSON object"),
        ("a.csv", b"prompt,completion\nWet?,Yes.\nDry?\n", 3, "Row 3 has 1 field, the header has 2."),
        ("a.jsonl", b"\n\n", None, "The file is empty."),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, filename: str, data: bytes, at: int | None, said: str
):
    error = imported(tmp_path, filename, data).error
    assert said in error["message"]
    assert error.get("row") == at
