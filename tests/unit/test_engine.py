"""The engine on tiny models: equivalences that must hold, checkpoints that others read, ends that are told."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shared.recipe import Loss, get
from tests.attempts import TINY, checkpoints, events, parquet, predictions, run_here, tensors, write_attempt

TOPICS = ["rain", "snow", "sun", "wind", "fog"]
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {word}{'?' * (n % 4)}"},
            {"role": "assistant", "content": f"{word} is weather{'!' * (n % 3)}"},
        ]
    }
    for n in range(8)
    for word in TOPICS
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["causal_lm"](tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def fields(base: Path, tmp_path: Path) -> dict[str, Any]:
    """An attempt at chat fine-tuning; `spec` may be changed."""
    return {
        "recipe": "sft",
        "spec": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "max_length": 96, "evaluations": 2},
        "columns": {"messages": "messages"},
        "base_model": base,
        "train": parquet(tmp_path / "rows.parquet", ROWS),
    }


def losses(folder: Path) -> list[float]:
    return [event["data"]["loss"] for event in events(folder, "step")]


def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.events.PAUSE", 0)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_packed_rows_are_learned_like_padded_ones(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
):
    every_step(monkeypatch)
    fields["spec"] |= {"method": method, "system": "You are a weather station."}
    packed, padded = (write_attempt(tmp_path / name, **fields) for name in ("packed", "padded"))
    assert run_here(packed) == 0
    monkeypatch.setattr("shared.learning.packing.works", lambda model: False)
    assert run_here(padded) == 0
    assert losses(packed) == pytest.approx(losses(padded), rel=2e-3)
    assert losses(packed)[-1] < losses(packed)[0]


def test_a_batch_lays_rows_end_to_end_after_their_shared_beginning():
    from shared.learning.packing import in_common, pack

    rows = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 6, 7, 8]]
    assert in_common(rows, most=9) == 2
    batch, starts = pack(rows, most=[3, 3, 3])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 2, 3, 4]]
    assert starts == [0, 2, 3]
    assert pack(rows, most=[1, 9, 9])[0]["input_ids"].tolist() == [[1, 2, 3, 4, 2, 5, 2, 6, 7, 8]]


def test_a_family_of_rows_has_its_own_beginning_once_and_each_row_sees_it():
    from shared.learning.packing import pack

    rows = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 7, 8], [1, 7, 9]]
    batch, starts = pack(rows, most=[3, 3, 2, 2], family=2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3, 4, 1, 2, 2]]
    assert starts == [0, 1, 5, 6]
    first, second = batch["layout_mask"][:, 0].int().tolist()
    #        1  2  3  4  5  6
    assert first == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]
    assert [one[:4] for one in second[:3]] == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]


@pytest.mark.parametrize("window", [None, 4])
def test_packing_gives_the_numbers_of_other_architectures(window: int | None):
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from shared.learning.packing import NAME, prepare, works

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 99,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window}
    model = prepare(MistralForCausalLM(MistralConfig(**small, **heads)))
    assert model.config._attn_implementation == NAME
    assert works(model)


def test_logits_are_computed_for_answers_alone(base: Path):
    import torch

    from shared.learning.language_model import collate, load, only
    from shared.recipe import Learner

    model = load(base)
    learner = Learner(spec=None, facts={}, model=model, packs=True)
    items = [
        {"input_ids": [1, 5, 6, 7, 8], "labels": [-100, -100, 6, 7, -100]},
        {"input_ids": [1, 9, 10], "labels": [-100, -100, 10]},
    ]
    batch = collate(items, learner)
    assert batch["targets"].tolist() == [6, 7, 10]
    assert batch["input_ids"].shape[1] == 4, "what is behind the last answer token is not read"
    with only(model, batch["places"]), torch.no_grad():
        from shared.learning.packing import call

        assert call(model, batch).logits.shape[0] == 3


def test_an_adapter_is_read_by_plain_peft_and_its_merged_model_answers_alike(
    fields: dict[str, Any], tmp_path: Path
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = write_attempt(tmp_path / "trained", **fields)
    assert run_here(trained) == 0
    servable = checkpoints(trained)[-1] / "servable"
    given = {"kind": "export", "recipe": "sft", "base_model": fields["base_model"], "adapter": servable}
    exported = write_attempt(tmp_path / "export", **given)
    assert run_here(exported) == 0
    plain = AutoModelForCausalLM.from_pretrained(fields["base_model"])
    tokenizer: Any = AutoTokenizer.from_pretrained(servable)
    ids = tokenizer("What is rain?", return_tensors="pt")
    with torch.no_grad():
        before = plain(**ids).logits
        adapted = PeftModel.from_pretrained(plain, str(servable))(**ids).logits
        merged = AutoModelForCausalLM.from_pretrained(exported / "artifacts" / "merged")(**ids).logits
    assert torch.allclose(adapted, merged, atol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-2)


def test_full_weights_are_read_by_plain_transformers(fields: dict[str, Any], tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fields["spec"] |= {"method": "full"}
    trained = write_attempt(tmp_path / "trained", **fields)
    assert run_here(trained) == 0
    servable = checkpoints(trained)[-1] / "servable"
    loaded: Any = AutoModelForCausalLM.from_pretrained(servable, output_loading_info=True)
    model, told = loaded
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert "burnish" not in (servable / "config.json").read_text(), "our name for attention stays with us"
    tokenizer: Any = AutoTokenizer.from_pretrained(servable)
    assert tokenizer.chat_template
    assert model.num_parameters() < 100_000


def test_a_classifier_carries_the_labels_of_its_dataset(tmp_path: Path):
    from transformers import AutoModelForSequenceClassification

    rows = [
        {"text": f"{word} {n}", "label": [word, "weather"][: 1 + n % 2]} for n in range(6) for word in TOPICS
    ]
    given = {
        "recipe": "classification",
        "spec": {"epochs": 1},
        "columns": {"text": "text", "label": "label"},
        "base_model": TINY["encoder"](tmp_path / "base"),
        "train": parquet(tmp_path / "rows.parquet", rows),
    }
    folder = write_attempt(tmp_path / "attempt", **given)
    assert run_here(folder) == 0, events(folder, "error")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints(folder)[-1] / "servable")
    assert set(model.config.id2label.values()) == {*TOPICS, "weather"}
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("kind", ["encoder", "causal_lm"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_classifier_stands_on_any_base_and_answers_as_it_was_judged(tmp_path: Path, kind: str, method: str):
    rows = [{"text": f"{word} {n}", "label": word} for n in range(8) for word in TOPICS]
    base = TINY[kind](tmp_path / "base")
    given = {
        "recipe": "classification",
        "spec": {"epochs": 30, "learning_rate": 0.01, "method": method},
        "columns": {"text": "text", "label": "label"},
        "base_model": base,
        "train": parquet(tmp_path / "rows.parquet", rows),
        "valid": parquet(tmp_path / "valid.parquet", rows[:10]),
    }
    folder = write_attempt(tmp_path / "attempt", **given)
    assert run_here(folder) == 0, events(folder, "error")
    last = checkpoints(folder)[-1] / "servable"
    adapted = (last / "adapter_config.json").exists()
    assert adapted == (method == "lora")
    requests = tmp_path / "requests.jsonl"
    lines = [{"row": n, "input": {"text": row["text"]}} for n, row in enumerate(rows[:10])]
    requests.write_text("\n".join(map(json.dumps, lines)))
    weights = {"base_model": base, "adapter": last} if adapted else {"base_model": last}
    asked = write_attempt(
        tmp_path / "asked", kind="infer", recipe="classification", requests=requests, **weights
    )
    assert run_here(asked) == 0, events(asked, "error")
    told = zip(predictions(asked), rows, strict=False)
    right = sum(answer["output"]["label"] == row["label"] for answer, row in told)
    accuracy = events(folder, "eval")[-1]["data"]["metrics"]["accuracy"]
    assert right / 10 == pytest.approx(accuracy)
    assert accuracy > 0.7


def test_checkpoints_hold_safetensors_and_json_and_nothing_that_runs(fields: dict[str, Any], tmp_path: Path):
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 0
    kinds = {path.suffix for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".md", ".jinja"}
    assert not list((folder / "checkpoints").glob("tmp-*"))


def test_a_loss_that_is_no_number_ends_the_job_after_three_steps(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = get("sft")
    honest = type(recipe).loss

    def broken(self: Any, learner: Any, batch: Any) -> Loss:
        loss = honest(self, learner, batch)
        return loss._replace(total=loss.total * math.nan) if learner.model.training else loss

    monkeypatch.setattr(type(recipe), "loss", broken)
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 40
    (error,) = events(folder, "error")
    assert error["data"]["code"] == "diverged"
    assert "lower learning rate" in error["data"]["message"]
    assert not checkpoints(folder)


@pytest.mark.parametrize("broken_at", [3, 8])
def test_no_checkpoint_holds_weights_that_are_no_numbers(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_at: int
):
    """An update may break them in a step whose loss was fine. In the last step only the weights tell."""
    import torch

    from worker.engine import optim

    fields["spec"] |= {"method": "full", "checkpoints": 8, "evaluations": 2, "max_steps": 8}
    honest, taken = optim.update, []

    def breaking(optimizer: Any, *given: Any) -> float:
        norm = honest(optimizer, *given)
        taken.append(norm)
        if len(taken) == broken_at:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0][0, 0] = math.inf
        return norm

    monkeypatch.setattr(optim, "update", breaking)
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 40
    assert events(folder, "error")[0]["data"]["code"] == "diverged"
    assert [path.name for path in checkpoints(folder)] == [f"step-{n:06d}" for n in range(1, broken_at)]
    assert any("no checkpoint is made" in event["data"]["message"] for event in events(folder, "log"))


def test_where_memory_runs_out_the_micro_batch_is_halved_until_it_fits_and_said_once(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    every_step(monkeypatch)
    calm = write_attempt(tmp_path / "calm", **fields)
    assert run_here(calm) == 0
    recipe = get("sft")
    honest = type(recipe).loss

    def greedy(self: Any, learner: Any, batch: Any) -> Loss:
        if learner.model.training and len(batch["layout_rows"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return honest(self, learner, batch)

    monkeypatch.setattr(type(recipe), "loss", greedy)
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 0
    said = [event["data"]["message"] for event in events(folder, "log") if event["data"]["level"] == "warn"]
    assert len([text for text in said if "Memory ran out" in text]) == 1
    assert losses(folder) == pytest.approx(losses(calm), rel=2e-3)


def test_where_single_rows_do_not_fit_layers_are_computed_again(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    every_step(monkeypatch)
    calm = write_attempt(tmp_path / "calm", **fields)
    assert run_here(calm) == 0
    recipe = get("sft")
    honest = type(recipe).loss

    def greedy(self: Any, learner: Any, batch: Any) -> Loss:
        if learner.model.training and "layout_rows" in batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return honest(self, learner, batch)

    monkeypatch.setattr(type(recipe), "loss", greedy)
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 0
    assert any("gradient checkpointing" in event["data"]["message"] for event in events(folder, "log"))
    assert losses(folder) == pytest.approx(losses(calm), rel=2e-3)


def test_memory_that_never_suffices_is_told_with_a_way_out(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    def greedy(*_: Any) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr("worker.engine.loop.judge", lambda run: None)
    monkeypatch.setattr(type(get("sft")), "loss", greedy)
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 20
    assert "max_length" in events(folder, "error")[0]["data"]["message"]


def test_early_stopping_keeps_the_best(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fields["spec"] |= {"epochs": 20, "learning_rate": 0.5, "patience": 2, "evaluations": 20, "checkpoints": 1}
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 0
    scores = {
        event["step"]: event["data"]["metrics"]["loss"] for event in events(folder, "eval") if event["step"]
    }
    assert len(scores) < 20
    best = [event["step"] for event in events(folder, "checkpoint") if event["data"]["best"]]
    assert best[-1] == min(scores, key=lambda step: scores[step])
    assert any("Stopped early" in event["data"]["message"] for event in events(folder, "log"))


def test_rows_of_their_own_are_held_out(fields: dict[str, Any], tmp_path: Path):
    folder = write_attempt(
        tmp_path / "attempt", **fields, valid=parquet(tmp_path / "valid.parquet", ROWS[:3])
    )
    assert run_here(folder) == 0
    assert {event["data"]["rows"] for event in events(folder, "eval")} == {3}


def test_rows_that_cannot_be_used_are_left_out_and_told(fields: dict[str, Any], tmp_path: Path):
    rows = ROWS + [{"messages": [ROWS[0]["messages"][0]]}]
    folder = write_attempt(
        tmp_path / "attempt", **fields | {"train": parquet(tmp_path / "more.parquet", rows)}
    )
    assert run_here(folder) == 0
    assert any(
        "row 41: There is no assistant message" in event["data"]["message"] for event in events(folder, "log")
    )


def test_a_job_without_a_usable_row_is_refused(fields: dict[str, Any], tmp_path: Path):
    rows = [{"messages": [ROWS[0]["messages"][0]]}] * 3
    folder = write_attempt(
        tmp_path / "attempt", **fields | {"train": parquet(tmp_path / "bad.parquet", rows)}
    )
    assert run_here(folder) == 10
    (error,) = events(folder, "error")
    assert error["data"]["param"] == "training_file"
    assert "Row 1" in error["data"]["message"]


def test_encoded_rows_are_read_from_the_cache_the_second_time(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fields["cache"] = tmp_path / "cache"
    first, second = (write_attempt(tmp_path / name, **fields) for name in ("first", "second"))
    assert run_here(first) == 0

    def never(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(type(get("sft")), "encode", never)
    monkeypatch.setattr(
        "worker.engine.data.fingerprint", lambda *_: next((tmp_path / "cache/encoded").iterdir()).name
    )
    assert run_here(second) == 0
    assert tensors(checkpoints(second)[-1]) == tensors(checkpoints(first)[-1])


def test_an_adapter_goes_on_from_another_jobs_checkpoint(fields: dict[str, Any], tmp_path: Path):
    first = write_attempt(tmp_path / "first", **fields)
    assert run_here(first) == 0
    second = write_attempt(tmp_path / "second", **fields, adapter=checkpoints(first)[-1] / "servable")
    assert run_here(second) == 0
    tuned, base = events(first, "eval")[-1]["data"]["metrics"], events(second, "eval")[0]["data"]["metrics"]
    assert base == pytest.approx(tuned, rel=1e-4)


def test_events_go_on_after_a_line_that_was_cut(tmp_path: Path):
    from worker.engine.events import Events

    path = tmp_path / "events.jsonl"
    path.write_text('{"seq": 1}\n{"seq": 2, "ty')
    told = Events(tmp_path)
    told.write("eval", {"metrics": {"loss": math.inf}}, step=3)
    told.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1]) == json.loads(lines[1]) | {
        "seq": 2,
        "step": 3,
        "data": {"metrics": {"loss": None}},
    }


def test_the_last_step_is_always_told(tmp_path: Path):
    from worker.engine.events import Events

    told = Events(tmp_path)
    for step in range(1, 101):
        told.step(step, {})
    told.write("stage", {"stage": "done"})
    told.close()
    steps = [event["step"] for event in events(tmp_path, "step")]
    assert len(steps) < 10
    assert steps[-1] == 100


def test_a_base_model_is_judged_once_on_the_same_rows(fields: dict[str, Any], tmp_path: Path):
    cache, judged = tmp_path / "cache", tmp_path / "cache" / "judged"
    base_scores = []
    for name, spec, seed in (("first", {}, 1), ("other rate", {"learning_rate": 0.02}, 1), ("seed", {}, 2)):
        folder = write_attempt(
            tmp_path / name, **fields | {"spec": fields["spec"] | spec}, cache=cache, seed=seed
        )
        assert run_here(folder) == 0
        base_scores.append(events(folder, "eval")[0]["data"])
        assert events(folder, "sample")[0]["step"] == 0
    assert base_scores[0] == base_scores[1]
    assert len(list(judged.iterdir())) == 2  # another seed holds other rows out


def test_changed_weights_are_judged_anew(fields: dict[str, Any], tmp_path: Path):
    import shutil

    cache, mine = tmp_path / "cache", tmp_path / "mine"
    shutil.copytree(fields["base_model"], mine)
    for name in ("before", "after"):
        assert run_here(write_attempt(tmp_path / name, **fields | {"base_model": mine}, cache=cache)) == 0
        weights = mine / "model.safetensors"
        weights.write_bytes(weights.read_bytes())
    assert len(list((cache / "judged").iterdir())) == 2
