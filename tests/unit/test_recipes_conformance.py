"""What every file in the folder of recipes must keep; a new one is tested by being there."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from shared import presets
from shared.recipe import Recipe, Sampling, get, recipes, wire_name
from shared.spec import resolve
from tests.attempts import TINY, checkpoints, events, parquet, predictions, run_here, tensors, write_attempt
from worker.engine import evaluate, shards
from worker.zygote import Zygote

EVERY = pytest.mark.parametrize("recipe", recipes().values(), ids=lambda recipe: recipe.name)
# the engine resumes, for all alike: an adapter, what is masked by chance, and noise stand for the others
RESUMED = ("sft", "masked_lm", "text_to_image")
DRAWABLE = {"string", "integer", "number", "boolean", "null"}


@pytest.fixture(scope="module")
def zygote() -> Generator[Zygote]:
    """A process that forks trainers."""
    zygote = Zygote.start()
    yield zygote
    zygote.stop()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny base model of each kind."""
    folder = tmp_path_factory.mktemp("bases")
    return {head: make(folder / head) for head, make in TINY.items()}


@pytest.fixture
def fields(recipe: Recipe, bases: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """What an attempt at training the recipe on its own example needs."""
    rows = parquet(tmp_path / "rows.parquet", recipe.example)
    known: dict[str, Any] = {"epochs": 4, "batch_size": 4, "valid_fraction": 0.25, "max_length": 96}
    known |= {"sampling_steps": 2}
    spec = recipe.spec(**{name: value for name, value in known.items() if name in recipe.spec.model_fields})
    preset = presets.preset(recipe.default_base_model)
    return {
        "recipe": recipe.name,
        "spec": spec.model_dump(),
        "columns": recipe.recognise(recipe.example[0]),
        "base_model": None if preset else bases[recipe.head],
        "preset": preset,
        "train": rows,
    }


@EVERY
def test_the_example_fits_the_recipe(recipe: Recipe):
    columns = recipe.recognise(recipe.example[0])
    assert columns is not None
    assert recipe.check(recipe.example, columns) == []
    assert set(columns) <= {column.name for column in recipe.columns}


@EVERY
def test_a_form_can_draw_the_spec(recipe: Recipe):
    for name, told in recipe.spec.model_json_schema()["properties"].items():
        kinds = {one["type"] for one in told.get("anyOf", [told])}
        assert kinds <= DRAWABLE, name
        assert told["title"], name
        assert told.get("advanced") in (True, False), name
    values = recipe.spec().model_dump()
    assert resolve(recipe, values).model_dump() == values


@EVERY
def test_it_is_found_by_its_name_and_its_name_on_the_wire(recipe: Recipe):
    assert get(recipe.name) is recipe
    assert get(wire_name(recipe)) is recipe


def test_recipes_load_no_training_library():
    code = (
        "import sys; from shared.recipe import recipes; recipes();"
        "print([name for name in ('torch', 'transformers', 'peft', 'numpy', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@EVERY
def test_it_trains_and_reports_its_declared_metrics(recipe: Recipe, fields: dict[str, Any], tmp_path: Path):
    folder = write_attempt(tmp_path / "attempt", **fields)
    assert run_here(folder) == 0, events(folder, "error")
    judged = events(folder, "eval")
    assert [judged[0]["data"]["which"], judged[-1]["data"]["which"]] == ["base", "tuned"]
    for event in judged:
        assert list(event["data"]["metrics"]) == [metric.name for metric in recipe.metrics]
        assert all(math.isfinite(value) for value in event["data"]["metrics"].values())
    assert [event["seq"] for event in events(folder)] == list(range(1, len(events(folder)) + 1))
    steps = events(folder, "step")
    assert steps[-1]["step"] == steps[-1]["data"]["total_steps"]
    assert {
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "epoch",
        "eta_seconds",
    } <= set(steps[-1]["data"])
    for event, path in zip(events(folder, "checkpoint"), checkpoints(folder), strict=True):
        assert event["data"]["name"] == path.name
        assert json.loads((path / "servable" / "burnish.json").read_text())["recipe"] == wire_name(recipe)
        assert (path / "servable" / "README.md").read_text().startswith("---")
    assert any(event["data"]["best"] for event in events(folder, "checkpoint"))


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(one, marks=() if one.name in RESUMED else pytest.mark.slow) for one in recipes().values()],
    ids=lambda recipe: recipe.name,
)
def test_a_stopped_training_goes_on_bit_for_bit(
    recipe: Recipe, fields: dict[str, Any], tmp_path: Path, zygote: Zygote
):
    fields["spec"] |= {"epochs": 100, "max_steps": 100}
    whole = write_attempt(tmp_path / "whole", **fields)
    assert zygote.fork(whole).wait(120) == 0
    stopped = write_attempt(tmp_path / "stopped", **fields)
    trainer = zygote.fork(stopped)
    deadline = time.monotonic() + 60
    while not events(stopped, "step") and time.monotonic() < deadline:
        time.sleep(0.01)
    trainer.terminate()
    assert trainer.wait(60) == 75
    saved = checkpoints(stopped)[-1]
    assert 0 < int(saved.name.removeprefix("step-")) < 100
    resumed = write_attempt(tmp_path / "resumed", **fields, resume=saved)
    assert zygote.fork(resumed).wait(120) == 0
    assert tensors(checkpoints(resumed)[-1]) == tensors(checkpoints(whole)[-1])


@pytest.fixture
def weights(recipe: Recipe, fields: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What an attempt at asking a checkpoint of the recipe needs."""
    trained = write_attempt(tmp_path / "trained", **fields)
    assert run_here(trained) == 0
    servable = checkpoints(trained)[-1] / "servable"
    adapted = (servable / "adapter_config.json").exists()
    return {
        "recipe": recipe.name,
        "base_model": fields["base_model"] if adapted else servable,
        "adapter": servable if adapted else None,
    }


@EVERY
def test_its_checkpoint_answers(
    recipe: Recipe, fields: dict[str, Any], weights: dict[str, Any], tmp_path: Path
):
    rows = [recipe.canonical(row, fields["columns"]) for row in recipe.example]
    requests = [
        {"row": number, "input": recipe.input(row), "sampling": vars(Sampling(max_tokens=5))}
        for number, row in enumerate(rows)
    ]
    asked = tmp_path / "requests.jsonl"
    asked.write_text("\n".join(json.dumps(one) for one in [*requests, {"row": 99, "input": {}}]))
    folder = write_attempt(tmp_path / "answers", kind="infer", requests=asked, **weights)
    assert run_here(folder) == 0, events(folder, "error")
    told = predictions(folder)
    assert [one["place"] for one in told] == list(range(len(requests) + 1))
    assert all(one["output"] for one in told[:-1])
    assert told[-1]["error"]["message"].endswith(".")


@EVERY
def test_a_killed_evaluation_goes_on_bit_for_bit_and_does_nothing_twice(
    recipe: Recipe,
    fields: dict[str, Any],
    weights: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(shards, "ENOUGH", 1)
    monkeypatch.setattr(shards, "SOONEST", 0)
    monkeypatch.setitem(evaluate.BUDGET, "cpu", 64)
    given = {"kind": "evaluate", "valid": fields["train"], "columns": fields["columns"]} | weights
    whole = write_attempt(tmp_path / "whole", **given)
    assert run_here(whole) == 0, events(whole, "error")
    finished = sorted((whole / "artifacts" / "shards").glob("shard-*"))
    assert len(finished) >= 2
    for kept in {1, len(finished) - 1}:
        killed = write_attempt(tmp_path / f"killed-{kept}", **given)
        for shard in finished[:kept]:
            shutil.copytree(shard, killed / "artifacts" / "shards" / shard.name)
        assert run_here(killed) == 0, events(killed, "error")
        assert found_by(killed) == found_by(whole)
        assert len(events(killed, "shard")) == len(finished) - kept


def found_by(folder: Path) -> tuple[str, dict[str, Any]]:
    """Every row's line, and the report but for its duration."""
    report = json.loads((folder / "artifacts" / "report.json").read_text())
    assert report.pop("seconds") >= 0
    return (folder / "artifacts" / "results.jsonl").read_text(), report
