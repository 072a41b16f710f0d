"""What the recipes make of rows as people bring them, and which tokens a chat model learns."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import Refused
from shared.learning import chat
from shared.learning.batch import IGNORED
from shared.recipe import get
from tests.attempts import TINY

SFT, CLASSIFICATION = get("sft"), get("classification")
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


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (TALK[2:], "from «assistant» where «user»"),
        (TALK[:2], "no assistant message"),
        (TALK[:4], "last message must be the assistant's"),
        ([TALK[1], TALK[0], TALK[2]], "from «system» where «assistant»"),
        ([{"role": "narrator", "content": "x"}], 'the role "narrator"'),
        ("not a list", "not a list of objects"),
        ([], "at least one message"),
    ],
)
def test_a_conversation_out_of_order_is_fatal_and_names_its_row(talk: Any, said: str):
    good = {"messages": TALK}
    (found,) = SFT.check([good, {"messages": talk}], {"messages": "messages"})
    assert (found.row, found.fatal) == (2, True)
    assert said in found.message


def test_a_message_without_words_leaves_its_row_out():
    rows = [{"messages": TALK}, {"messages": [TALK[1], {"role": "assistant", "content": " "}]}]
    (found,) = SFT.check(rows, {"messages": "messages"})
    assert (found.row, found.fatal) == (2, False)


def test_a_prompt_without_a_completion_column_is_not_enough():
    (found,) = SFT.check([{"prompt": "x"}], {"prompt": "prompt"})
    assert "«completion»" in found.message


def test_labels_keep_the_words_of_the_dataset():
    rows = [{"text": "a", "label": value} for value in (10, 9.0, "2", True)]
    columns = {"text": "text", "label": "label"}
    canonical = [CLASSIFICATION.canonical(row, columns) for row in rows]
    facts = CLASSIFICATION.facts(canonical[:3], CLASSIFICATION.spec(), {})
    assert facts["labels"] == ["2", "9", "10"]
    assert canonical[3]["label"] == "true"


def test_only_lists_are_several_labels():
    rows = [{"text": "a", "label": "x, y"}, {"text": "b", "label": "z"}]
    facts = CLASSIFICATION.facts(rows, CLASSIFICATION.spec(), {})
    assert (facts["labels"], facts["multi_label"]) == (["x, y", "z"], False)
    rows = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}]
    facts = CLASSIFICATION.facts(rows, CLASSIFICATION.spec(), {})
    assert (facts["labels"], facts["multi_label"]) == (["x", "y"], True)


@pytest.mark.parametrize(
    ("labels", "said", "fatal"),
    [
        (["x", "x", "x"], "at least two labels", True),
        (["x", ["y"], "x"], "rows 1 and 2", True),
        ([None, "", None], "No row has both", True),
        (["x", "x", "y", "y", None], "no label", False),
        (["x", "x", "y"], "«y» has a single row", False),
    ],
)
def test_labels_that_cannot_be_learned_are_found(labels: list[Any], said: str, fatal: bool):
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]
    found = CLASSIFICATION.check(rows, {"text": "text", "label": "label"})
    assert any(said in one.message and one.fatal == fatal for one in found)


def test_the_held_out_rows_have_every_label_and_are_the_same_each_time():
    rows = [{"text": str(n), "label": "rare" if n % 10 == 0 else "common"} for n in range(100)]
    learning, held = CLASSIFICATION.split(rows, 0.2, seed=3)
    assert CLASSIFICATION.split(rows, 0.2, seed=3) == (learning, held)
    assert sorted(learning + held) == list(range(100))
    assert [rows[n]["label"] for n in held].count("rare") == 2
    assert len(held) == 20
    assert CLASSIFICATION.split(rows, 0.2, seed=4)[1] != held


def test_findings_stop_at_a_hundred_but_the_verdict_on_all_rows_stays():
    rows = [{"text": "", "label": "x"}] * 500 + [{"text": "a", "label": "x"}]
    found = CLASSIFICATION.check(rows, {"text": "text", "label": "label"})
    assert len(found) < 110
    assert any("at least two labels" in one.message for one in found)


def test_a_card_shows_no_markup_of_its_user(tmp_path: Path):
    from shared.learning.card import card

    text = card({"name": "<script> | `x`", "recipe": "sft", "title": "Chat", "metrics": {"Loss": 1.5}})
    assert "<script>" not in text
    assert "| Loss | 1.5 |" in text
