"""What must not depend on how it is computed: cut into micro-batches, shared out among processes, packed or
padded, adapter merged or not. Every variant of every recipe is held to each of them that applies to it.

All train by SGD: it passes an error in a gradient on as it is, where Adam would turn one that is zero but
for rounding into a whole step. Dropout is off, as it is drawn for a micro-batch; everything that recipes
draw themselves (masks, noise, labels left out) is drawn for an item and takes part. (Resumed and
uninterrupted are the same bit for bit; test_resumed.py holds every variant to that.)

The same sums in another order differ by the rounding of float32: a part in 10⁷ each, some thousands of them
one after the other. So losses agree to a part in 10⁵, and weights to 10⁻⁴ of what they have moved.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared.learning import packing
from shared.recipe import Learner, Recipe, Sampling, recipes
from shared.spec import LoraSpec
from tests import variants
from tests.attempts import checkpoints, events, run_here, write_attempt
from tests.variants import Variant
from worker.engine.attempt import Attempt
from worker.engine.weights import is_adapter, reopened
from worker.zygote import Zygote

PACKED = {"sft", "dpo"}
MERGED = {"sft", "dpo", "classification", "extractive_qa", "seq2seq", "code", "causal_lm"}
LOSSES, WEIGHTS, ANSWERS = 1e-5, 1e-4, 1e-4  # relative
STEPS = 5


@pytest.fixture(scope="module")
def zygote() -> Generator[Zygote]:
    zygote = Zygote.start()
    yield zygote
    zygote.stop()


@pytest.fixture(scope="module", autouse=True)
def every_step_is_told() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engine.events.PAUSE", 0)
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny base model of each kind, without dropout."""
    return variants.bases(tmp_path_factory.mktemp("bases"), calm=True)


@pytest.fixture(scope="module", params=variants.EVERY, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.fixture(scope="module")
def fields(
    variant: Variant, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """An attempt over the recipe's example: some steps of eight items each."""
    known: dict[str, Any] = {"epochs": 20, "max_steps": STEPS, "batch_size": 8, "max_length": 96}
    known |= {"valid_fraction": 0, "checkpoints": 1, "optimizer": "sgd", "learning_rate": 0.3}
    return variant.fields(tmp_path_factory.mktemp("rows"), bases, copies=2, **known)


@pytest.fixture(scope="module")
def whole(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempt by one process, each step in a single micro-batch."""
    return done(tmp_path_factory.mktemp("whole") / "whole", fields, budget=1_000_000)


def done(folder: Path, fields: dict[str, Any], budget: int) -> Path:
    """The attempt, done here with micro-batches of at most that many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engine.run.BUDGET", {"cpu": budget})
        assert run_here(write_attempt(folder, **fields)) == 0, events(folder, "error")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What users would download, by file and name."""
    servable = checkpoints(folder)[-1] / "servable"
    return {
        f"{path.relative_to(servable)}/{name}": value
        for path in sorted(servable.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_alike(folder: Path, whole: Path) -> None:
    """The same losses at every step that both told, and the same weights."""
    mine, theirs = (
        {event["step"]: event["data"]["loss"] for event in events(one, "step")} for one in (folder, whole)
    )
    told = sorted(mine.keys() & theirs.keys())
    assert {1, STEPS} <= set(told)
    assert [mine[step] for step in told] == pytest.approx([theirs[step] for step in told], rel=LOSSES)
    mine, theirs = weights(folder), weights(whole)
    assert mine.keys() == theirs.keys()
    gap = sum(float((mine[name] - theirs[name]).double().square().sum()) for name in mine) ** 0.5
    assert gap < WEIGHTS * moved(whole)


def moved(whole: Path) -> float:
    """How far SGD went in all, if every step went the same way: rates × norms of the clipped gradients."""
    steps = [event["data"] for event in events(whole, "step")]
    return sum(step["learning_rate"] * min(1.0, step["grad_norm"]) for step in steps)


def test_eight_micro_batches_of_one_are_a_batch_of_eight(fields: dict[str, Any], whole: Path, tmp_path: Path):
    assert_alike(done(tmp_path / "one by one", fields, budget=1), whole)


def test_two_ranks_are_one(zygote: Zygote, fields: dict[str, Any], whole: Path, tmp_path: Path):
    both = write_attempt(tmp_path / "both", **fields, processes=2)
    assert zygote.fork(both).wait(120) == 0, (both / "output.log").read_text()
    assert_alike(both, whole)


def test_packed_rows_are_padded_ones(
    variant: Variant, fields: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Exactly the methods that are known to pack do."""
    tried: list[bool] = []
    honest = packing.works
    monkeypatch.setattr(packing, "works", lambda model: tried.append(honest(model)) or False)
    padded = done(tmp_path / "padded", fields, budget=1_000_000)
    assert any(tried) == (variant.recipe.name in PACKED)
    assert_alike(padded, whole)


def test_exactly_these_methods_have_adapters():
    assert {name for name, recipe in recipes().items() if issubclass(recipe.spec, LoraSpec)} == MERGED


def test_a_merged_adapter_answers_as_the_adapter_does(
    variant: Variant, fields: dict[str, Any], whole: Path, tmp_path: Path
):
    """Merging adds two matrices where the adapter added two products: float32's rounding alone again."""
    recipe = variant.recipe
    if recipe.name not in MERGED or variant.name == "lstm":
        pytest.skip("This method or model takes no adapter.")
    if "method" in variant.spec:
        pytest.skip("With an adapter this is the method as it is by default.")
    base = fields["base_model"] or checkpoints(whole)[-1] / "servable"
    spec = fields["spec"] | {"method": "lora", "lora_rank": 4}
    mine = fields | {"spec": spec, "base_model": base, "preset": {}}
    adapter = checkpoints(done(tmp_path / "trained", mine, budget=1_000_000))[-1] / "servable"
    asked = {"recipe": recipe.name, "base_model": base, "adapter": adapter}
    exported = write_attempt(tmp_path / "export", kind="export", **asked)
    assert run_here(exported) == 0, events(exported, "error")
    merged = {"recipe": recipe.name, "base_model": exported / "artifacts" / "merged"}
    rows = [recipe.canonical(row, fields["columns"]) for row in recipe.example[:4]]

    def opened(name: str, given: dict[str, Any], *, merge: bool = False) -> Learner:
        return reopened(
            Attempt.read(write_attempt(tmp_path / name, kind="infer", **given)), recipe, merge=merge
        )

    by_adapter, by_merged = (
        said(recipe, opened(*one), rows) for one in (("adapter", asked), ("merged", merged))
    )
    worked_in = opened("worked in", asked, merge=True)
    assert not is_adapter(worked_in.model)
    assert by_merged == near(by_adapter)
    assert said(recipe, worked_in, rows) == near(by_adapter)


def said(recipe: Recipe, learner: Learner, rows: list[Any]) -> Any:
    """Answers to the rows, and what is found of them where that needs no reference."""
    with torch.no_grad():
        items = [recipe.encode_input(recipe.input(row), learner) for row in rows]
        answers = recipe.predict(learner, items, [Sampling(max_tokens=6)] * len(items))
        if recipe.needs_reference:
            return answers
        encoded = [item | {"row": n, "seed": n} for n, item in recipe.encode_all(rows, learner)]
        return [answers, recipe.judge(learner, rows, [(encoded, recipe.collate(encoded, learner))])]


def near(value: Any) -> Any:
    """The same JSON with numbers that equal others within a part in 10⁴."""
    if isinstance(value, float):
        return pytest.approx(value, rel=ANSWERS, abs=1e-6)
    if isinstance(value, dict):
        return {name: near(one) for name, one in value.items()}
    return [near(one) for one in value] if isinstance(value, list) else value
