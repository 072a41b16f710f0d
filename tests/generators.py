"""Generators for tests: train one in seconds, ask it, and run the sampler of its card."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.recipe import Learner, get
from tests.attempts import checkpoints, events, parquet, run_here, write_attempt

TINY = {"architecture": "dit", "size": "tiny", "width": 32, "layers": 2, "heads": 2}


def trained(folder: Path, recipe: str, rows: list[dict[str, Any]], **spec: Any) -> Path:
    """The servable folder of a generator that has seen the rows a few times."""
    method = get(recipe)
    knobs: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 4,
        "valid_fraction": 0.25,
        "sampling_steps": 4,
        "evaluations": 1,
    }
    attempt = write_attempt(
        folder,
        recipe=recipe,
        spec=method.spec(**knobs | spec).model_dump(),
        columns=method.recognise(rows[0]),
        preset=TINY,
        train=parquet(folder.with_suffix(".parquet"), rows),
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    return checkpoints(attempt)[-1] / "servable"


def reopened(servable: Path, recipe: str) -> Learner:
    """A learner that answers with that checkpoint."""
    from worker.engine.attempt import Attempt
    from worker.engine.weights import reopened

    attempt = Attempt(
        folder=servable, kind="infer", recipe=recipe, base_model=servable, device="cpu", threads=1
    )
    return reopened(attempt, get(recipe))


def asked(learner: Learner, recipe: str, inputs: Sequence[dict[str, Any]], **sampling: Any) -> list[bytes]:
    """The files that the recipe makes of the inputs, all in one call."""
    import torch

    from shared.recipe import Sampling

    method = get(recipe)
    items = [method.encode_input(given, learner) for given in inputs]
    with torch.no_grad():
        made = method.predict(learner, items, [Sampling(**sampling)] * len(items))
    return [one.content for one in made]


def card_answer(servable: Path, folder: Path, asked: str, seed: int) -> bytes:
    """What the Python of a card makes of a label or caption, in a folder of its own, with no network."""
    text = (servable / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    line = next(one for one in code.splitlines() if one.startswith("folder, asked, seed"))
    guidance = line.rsplit(",", 1)[1]
    told = f"folder, asked, seed, guidance = {str(servable)!r}, {asked!r}, {seed},{guidance}"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(code.replace(line, told), {})
    finally:
        os.chdir(before)
    (made,) = folder.iterdir()
    return made.read_bytes()


def of_servable(servable: Path) -> dict[str, Any]:
    """A checkpoint's burnish.json."""
    return json.loads((servable / "burnish.json").read_text())
