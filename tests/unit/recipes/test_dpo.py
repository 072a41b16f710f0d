"""Preference optimization: shapes of pairs, what is wrong with them, the loss, the reference, the checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Refused
from shared.learning import language_model
from shared.learning.batch import IGNORED
from shared.recipe import Learner, get
from shared.recipes.dpo import DPOSpec, preferences
from tests.attempts import (
    TINY,
    checkpoints,
    events,
    parquet,
    predictions,
    run_here,
    tensors,
    write_attempt,
)
from tests.imports import imported, lines

# of peft, which has not followed transformers yet
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

DPO = get("dpo")
COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
BARE = {"chosen": "chosen", "rejected": "rejected"}
OPENAI = {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ASK, YES, NO = user("Wet?"), assistant("Yes."), assistant("No.")
TALK = [{"role": "system", "content": "Be brief."}, user("Hello?"), assistant("Hi."), ASK]
ROWS = [
    {"prompt": f"Is {n} more than {m}?", "chosen": "Yes." if n > m else "No.", "rejected": "I do not know."}
    for n in range(4)
    for m in range(3)
]


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns", "prompt"),
    [
        ({"prompt": "Wet?", "chosen": "Yes.", "rejected": "No."}, COLUMNS, [ASK]),
        ({"prompt": [ASK], "chosen": [YES], "rejected": [NO]}, COLUMNS, [ASK]),
        ({"prompt": TALK, "chosen": YES, "rejected": NO}, COLUMNS, TALK),
        ({"prompt": "Wet?", "chosen": [ASK, YES], "rejected": [ASK, NO]}, COLUMNS, [ASK]),
        ({"prompt": json.dumps(TALK), "chosen": "Yes.", "rejected": json.dumps([NO])}, COLUMNS, TALK),
        ({"chosen": [*TALK, YES], "rejected": [*TALK, NO]}, BARE, TALK),
        (
            {"input": {"messages": TALK}, "preferred_output": [YES], "non_preferred_output": [NO]},
            OPENAI,
            TALK,
        ),
    ],
)
def test_pairs_come_in_many_shapes(row: dict[str, Any], columns: dict[str, str], prompt: list[dict]):
    assert DPO.recognise(row) == columns
    assert DPO.check([row], columns) == []
    found = DPO.canonical(row, columns)
    said = {name: [(one["role"], one["content"]) for one in part] for name, part in found.items()}
    assert said == {
        "prompt": [(one["role"], one["content"]) for one in prompt],
        "chosen": [("assistant", "Yes.")],
        "rejected": [("assistant", "No.")],
    }
    assert [one["content"] for one in DPO.input(found)["messages"]] == [one["content"] for one in prompt]


def test_two_conversations_part_before_their_answers():
    more = [*TALK[:2], assistant("Hi."), user("Bye?"), assistant("Bye.")]
    found = DPO.canonical({"chosen": more, "rejected": TALK[:3]}, BARE)
    assert [one["content"] for one in found["prompt"]] == ["Be brief.", "Hello?"]
    assert [len(found[side]) for side in ("chosen", "rejected")] == [3, 1]


def test_a_row_to_predict_is_its_prompt():
    row = DPO.canonical({"prompt": "Wet?"}, {"prompt": "prompt"})
    assert DPO.input(row) == {"messages": [ASK]}


@pytest.mark.parametrize("text", ["[1, 2]", "[" * 100_000])
def test_text_that_looks_like_json_stays_text(text: str):
    (found,) = DPO.canonical({"prompt": text, "chosen": "a", "rejected": "b"}, COLUMNS)["prompt"]
    assert found["content"] == text


def row(prompt: Any = "Wet?", chosen: Any = "Yes.", rejected: Any = "No.") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


GOOD = row("Dry?")
TALKED = row([user("Dry?")], [YES], [NO])
WHOLE = {"chosen": [ASK, YES], "rejected": [ASK, NO]}


@pytest.mark.parametrize(
    ("rows", "fatal", "said"),
    [
        ([GOOD, row(rejected="Yes.")], False, "«chosen» and «rejected» are the same; the row is left out."),
        ([GOOD, row(chosen=" ")], False, "Message 2 of prompt and «chosen» is empty"),
        ([GOOD, row(rejected=None)], False, "Message 2 of prompt and «rejected» is empty"),
        ([GOOD, row(prompt="")], False, "Message 1 of prompt and «chosen» is empty"),
        ([TALKED, row([ASK], [user("Yes.")], [NO])], True, "«chosen» must go on from the prompt with the assistant's"),
        ([TALKED, row([ASK], [YES], [])], True, "«rejected»: The messages must be a list with at least one message."),
        ([TALKED, row([ASK, YES], [YES], [NO])], True, "Prompt and «chosen»: Message 3 is from «assistant» where «user»"),
        ([TALKED, row([ASK], [YES, ASK], [NO])], True, "«chosen»: The last message must be the assistant's"),
        ([TALKED, row([{"role": "narrator", "content": "x"}], [YES], [NO])], True, '«prompt»: Message 1 has the role "narrator"'),
        ([WHOLE, {"chosen": [ASK, YES], "rejected": [user("Dry?"), NO]}], True, "must be whole conversations that begin alike"),
        ([WHOLE, {"chosen": [ASK, YES], "rejected": [ASK]}], True, "«rejected» must go on from the prompt"),
        ([row(chosen={"text": "Yes."}), row(chosen={"text": "Yes."})], True, "«chosen»: Message 1 has the role null"),
    ],
)  # fmt: skip
def test_a_broken_pair_is_named_with_its_reason(
    tmp_path: Path, rows: list[dict[str, Any]], fatal: bool, said: str
):
    made = imported(tmp_path, "rows.jsonl", lines(*rows))
    assert made.code == 0
    told = made.report["fits"]["dpo"]["findings"]
    found = [finding for finding in told if finding["row"] == 2]
    assert [finding["fatal"] for finding in found] == [fatal], told
    assert said in found[0]["message"]
    assert found[0]["column"] in ("prompt", "chosen", "rejected")


@pytest.mark.parametrize(
    ("filename", "data", "said"),
    [
        ("a.jsonl", lines(*[row(rejected="Yes.")] * 3), "No row has two answers to compare."),
        ("a.csv", b"prompt,chosen,rejected\nWet?,,\n", "No row has two answers to compare."),
    ],
)
def test_a_file_without_a_usable_pair_is_refused_as_a_whole(
    tmp_path: Path, filename: str, data: bytes, said: str
):
    told = imported(tmp_path, filename, data).report["fits"]["dpo"]["findings"]
    assert (told[-1]["row"], told[-1]["fatal"], told[-1]["message"]) == (None, True, said)


@pytest.mark.parametrize(
    ("filename", "data", "said"),
    [
        ("a.csv", b"prompt,chosen,rejected\nWet?,Yes.\n", "row 2"),
        ("a.jsonl", lines(GOOD) + b'{"prompt": "Wet?", "chosen": NaN}\n', "Line 2"),
        ("a.jsonl", lines(row(chosen="x" * 11 * 2**20)), "line 1"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, filename: str, data: bytes, said: str):
    assert said.lower() in imported(tmp_path, filename, data).error["message"].lower()


# --- loss -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["causal_lm"](tmp_path_factory.mktemp("tiny") / "base")


def adapted(base: Path, **knobs: Any) -> Learner:
    """The tiny model with a fresh adapter, in training."""
    import torch
    from peft import get_peft_model

    made = Learner(DPOSpec(max_length=96, **knobs), {}, source=base)
    made.tokenizer = DPO.load_tokenizer(base, [], made.spec)
    torch.manual_seed(0)
    made.model = get_peft_model(language_model.load(base), DPO.lora(made)).train()
    return made


@pytest.fixture
def learner(base: Path) -> Learner:
    """The same as it answers."""
    made = adapted(base, beta=0.3)
    made.model.eval()
    return made


def moved(learner: Learner) -> Learner:
    """The same with an adapter that does something."""
    import torch

    torch.manual_seed(1)
    for name, weight in learner.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return learner


def items_of(learner: Learner) -> list[dict[str, Any]]:
    rows = [DPO.canonical(row, COLUMNS) for row in ROWS]
    return [item for row in rows for item in DPO.encode(row, learner)]


def likelihood(model: Any, ids: list[int], labels: list[int]) -> float:
    """log π of the answer, token by token."""
    import torch

    shares = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return sum(
        float(shares[place - 1, label]) for place, label in enumerate(labels) if label != IGNORED and place
    )


@pytest.mark.parametrize("packs", [True, False])
def test_the_loss_is_the_papers_formula(learner: Learner, packs: bool):
    import torch

    learner = moved(learner)
    learner.packs = packs
    items = items_of(learner)
    batch = DPO.collate(items, learner)
    assert ("layout_rows" in batch) == packs
    with torch.no_grad():
        loss = DPO.loss(learner, batch)
        expected = []
        for item in items:
            gains = []
            for side in ("chosen", "rejected"):
                pair = item[f"{side}_ids"], item[f"{side}_labels"]
                now = likelihood(learner.model, *pair)
                with learner.model.disable_adapter():
                    gains.append(now - likelihood(learner.model, *pair))
            margin = 0.3 * (gains[0] - gains[1])
            expected.append(math.log1p(math.exp(-margin)))
    assert loss.weight == len(ROWS)
    assert float(loss.total) == pytest.approx(sum(expected), rel=1e-4)
    assert abs(float(loss.total) / len(ROWS) - math.log(2)) > 0.01


def test_an_untrained_adapter_ties_every_pair(learner: Learner):
    import torch

    items = items_of(learner)
    with torch.no_grad():
        judged = DPO.judged(learner, DPO.collate(items, learner))
    assert [one["margin"] for one in judged] == [0.0] * len(ROWS)
    assert DPO.measure(judged, {}).metrics == {
        "accuracy": 0.5,
        "margin": 0,
        "loss": pytest.approx(math.log(2)),
    }


def test_metrics_are_means_over_pairs_and_a_tie_is_half():
    margins = [2.0, -1.0, 0.0, 3.0]
    found = [{"accuracy": (m > 0) + (m == 0) / 2, "margin": m, "loss": 1.0, "weight": 1} for m in margins]
    assert DPO.measure(found, {}).metrics == {"accuracy": 0.625, "margin": 1.0, "loss": 1.0}
    assert [DPO.row_score(one, {}) for one in found] == margins


def test_only_the_adapter_gets_gradients_and_the_reference_has_no_dropout(base: Path):
    import torch

    made = adapted(base, lora_dropout=0.5)
    batch = DPO.collate(items_of(moved(made)), made)
    with made.reference() as reference, torch.no_grad():
        first, second = (language_model.answer_likelihoods(reference, batch, 2 * len(ROWS)) for _ in range(2))
    assert torch.equal(first, second)
    assert made.model.training
    assert not torch.equal(preferences(made, batch), preferences(made, batch)), "the policy drops out"
    DPO.loss(made, batch).total.backward()
    with_gradient = {name for name, weight in made.model.named_parameters() if weight.grad is not None}
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)


def test_answers_that_are_cut_to_the_same_are_left_out(learner: Learner):
    long = DPO.canonical(row(chosen="x" * 200 + "a", rejected="x" * 200 + "b"), COLUMNS)
    with pytest.raises(Refused, match="the same within the longest row of 96 tokens"):
        DPO.encode(long, learner)


@pytest.mark.parametrize("given", [{}, {"messages": []}, {"messages": [YES]}, {"prompt": " "}])
def test_a_prediction_needs_a_question(learner: Learner, given: dict[str, Any]):
    with pytest.raises(Refused):
        DPO.encode_input(given, learner)


# --- training ---------------------------------------------------------------------------------

QUICK = {"epochs": 8, "batch_size": 4, "valid_fraction": 0.25, "max_length": 96, "learning_rate": 0.003}


def trained(folder: Path, base: Path, **changed: Any) -> Path:
    rows = parquet(folder.with_suffix(".parquet"), ROWS)
    more = {name: changed.pop(name) for name in ("adapter", "resume") if name in changed}
    told = {"recipe": "dpo", "spec": QUICK | changed, "columns": COLUMNS, "base_model": base, "train": rows}
    attempt = write_attempt(folder, **told, **more)
    assert run_here(attempt) == 0, events(attempt, "error")
    return attempt


def scores(attempt: Path) -> list[dict[str, float]]:
    return [event["data"]["metrics"] for event in events(attempt, "eval")]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_starts_from_a_tie_and_learns_the_preference(method: str, base: Path, tmp_path: Path):
    first, *_, last = scores(trained(tmp_path / method, base, method=method))
    assert (first["accuracy"], first["margin"]) == (0.5, 0)
    assert last["accuracy"] == 1
    assert last["margin"] > 0.1


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_it_is_compared_with_is_where_training_started(method: str, base: Path, tmp_path: Path):
    """Also after a resume, and where training started from an adapter."""
    earlier = checkpoints(trained(tmp_path / "earlier", base))[-1] / "servable"
    whole = trained(tmp_path / "whole", base, method=method, adapter=earlier)
    assert scores(whole)[0]["accuracy"] == 0.5
    assert scores(whole)[0]["margin"] == pytest.approx(0, abs=1e-4)
    resumed = trained(
        tmp_path / "resumed", base, method=method, adapter=earlier, resume=checkpoints(whole)[0]
    )
    assert scores(resumed)[-1] == scores(whole)[-1]
    assert tensors(checkpoints(resumed)[-1]) == tensors(checkpoints(whole)[-1])


def test_plain_peft_answers_as_the_platform_does(base: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    servable = checkpoints(trained(tmp_path / "trained", base))[-1] / "servable"
    requests = tmp_path / "requests.jsonl"
    asked = {"row": 0, "input": {"messages": [user("Is 3 more than 1?")]}, "sampling": {"max_tokens": 12}}
    requests.write_text(json.dumps(asked))
    told = {"kind": "infer", "recipe": "dpo", "requests": requests, "base_model": base, "adapter": servable}
    answers = write_attempt(tmp_path / "answers", **told)
    assert run_here(answers) == 0
    ours = predictions(answers)[0]["output"]["content"]
    tokenizer: Any = AutoTokenizer.from_pretrained(servable)
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(servable)).eval()
    given = tokenizer.apply_chat_template(
        [user("Is 3 more than 1?")], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=0)
    theirs = tokenizer.decode(written[0][given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours == theirs.strip()
