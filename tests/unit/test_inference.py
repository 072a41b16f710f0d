"""The engine answers requests: in shards, in any order, none of them twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Refused
from shared.recipe import Item, Learner, Media, Sampling, recipes
from shared.recipes.sft import SFT
from tests.attempts import events, json_lines, predictions, run_here, write_attempt
from tests.factories import tiny_causal_lm
from worker.engine import infer, shards
from worker.engine.__main__ import run
from worker.engine.attempt import STOPPED, Stop


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("tiny"))


def question(words: str, **sampling: Any) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": words}]},
        "sampling": {"max_tokens": 3} | sampling,
    }


def attempt(folder: Path, tiny: Path, requests: list[dict[str, Any]], recipe: str = "sft") -> Path:
    """An inference attempt over these requests."""
    folder.mkdir(parents=True)
    asked = folder / "requests.jsonl"
    asked.write_text("".join(json.dumps({"row": n} | one) + "\n" for n, one in enumerate(requests, 1)))
    given = {"kind": "infer", "recipe": recipe, "requests": asked, "base_model": tiny}
    return write_attempt(folder / "attempt", **given)


class Echo(SFT):
    """Answers with the words that it was asked, and remembers what was asked together."""

    name = "echo"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        return super().encode_input(given, learner) | {"words": given["messages"][-1]["content"]}

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        self.calls.append([item["words"] for item in items])
        if any("forbidden" in item["words"] for item in items):
            raise Refused("This word is not answered.")
        return [{"said": item["words"], "seed": way.seed} for item, way in zip(items, sampling, strict=True)]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    """A recipe of that kind in the list, without waiting between shards."""
    recipe = Echo()
    monkeypatch.setitem(recipes(), "echo", recipe)
    monkeypatch.setattr(shards, "ENOUGH", 4)
    monkeypatch.setattr(shards, "SOONEST", 0)
    return recipe


def test_requests_of_like_length_are_answered_together_and_none_alone(tmp_path: Path, tiny: Path, echo: Echo):
    words = ["x" * (n % 7 * 20 + 1) for n in range(210)]
    folder = attempt(tmp_path / "a", tiny, [question(one) for one in words], "echo")
    assert run_here(folder) == 0, events(folder, "error")
    assert all(len(call) > 1 for call in echo.calls)
    assert sum(map(len, echo.calls)) == 210
    padded = sum(len(call) * max(map(len, call)) for call in echo.calls)
    assert padded <= 1.3 * sum(map(len, words))
    told = predictions(folder)
    assert [one["output"]["said"] for one in told] == words
    assert len({one["output"]["seed"] for one in told}) == 210, "each row draws by a seed of its own"


def test_beams_are_batched_apart(tmp_path: Path, tiny: Path, echo: Echo):
    mixed = [question(str(n), beams=1 + n % 2) for n in range(12)]
    run_here(attempt(tmp_path / "a", tiny, mixed, "echo"))
    assert all(len({int(one) % 2 for one in call}) == 1 for call in echo.calls)


def test_a_bad_request_is_an_error_row_among_the_others(tmp_path: Path, tiny: Path, echo: Echo):
    requests: list[dict[str, Any]] = [question(str(n)) for n in range(6)]
    requests[1] = {"input": {"messages": []}}
    requests[2] = {"input": {"messages": [{"role": "user", "value": "?"}]}}  # Echo reads no «value»
    requests[3] = question("forbidden")
    requests[4] = {"input": {}, "error": {"message": "It was wrong before.", "code": None, "param": None}}
    folder = attempt(tmp_path / "a", tiny, requests, "echo")
    assert run_here(folder) == 0
    told = predictions(folder)
    assert [one["place"] for one in told if "output" in one] == [0, 5]
    assert told[2]["error"]["code"] == "invalid_input"
    assert told[3]["error"]["message"] == "This word is not answered."
    assert told[4]["error"]["message"] == "It was wrong before."


def test_what_shards_answer_is_not_asked_again(tmp_path: Path, tiny: Path, echo: Echo):
    folder = attempt(tmp_path / "a", tiny, [question(str(n)) for n in range(80)], "echo")
    assert run_here(folder) == 0
    whole = predictions(folder)
    finished = sorted((folder / "artifacts" / "shards").glob("shard-*"))
    assert len(finished) > 2
    (finished[-1] / "answers.jsonl").unlink()
    finished[-1].rmdir()
    missing = {str(one["place"]) for one in whole} - {str(one["place"]) for one in predictions(folder)}
    echo.calls.clear()
    assert run_here(folder) == 0
    assert {word for call in echo.calls for word in call} == missing
    assert predictions(folder) == whole


def test_a_picture_lies_in_the_shard_that_names_it(
    tmp_path: Path, tiny: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
):
    def drawn(learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        return [Media("png", item["words"].encode()) for item in items]

    monkeypatch.setattr(echo, "predict", drawn)
    folder = attempt(tmp_path / "a", tiny, [question(f"n{n}") for n in range(9)], "echo")
    assert run_here(folder) == 0
    for shard in (folder / "artifacts" / "shards").iterdir():
        lines = json_lines((shard / "answers.jsonl").read_text()) if shard.name != "next" else []
        names = {line["output"]["media"] for line in lines}
        assert {path.name for path in shard.iterdir()} - {"answers.jsonl"} == names
    assert predictions(folder)[3]["output"]["media"].endswith(".png")


def test_where_memory_runs_out_batches_get_smaller(
    tmp_path: Path, tiny: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
):
    import torch

    right = echo.predict

    def small(learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        if len(items) > 2:
            raise torch.OutOfMemoryError("full")
        return right(learner, items, sampling)

    monkeypatch.setattr(echo, "predict", small)
    folder = attempt(tmp_path / "a", tiny, [question(str(n)) for n in range(9)], "echo")
    assert run_here(folder) == 0
    assert [one["output"]["said"] for one in predictions(folder)] == [str(n) for n in range(9)]


def test_a_stop_keeps_what_was_answered_and_the_next_goes_on(
    tmp_path: Path, tiny: Path, echo: Echo, monkeypatch: pytest.MonkeyPatch
):
    folder = attempt(tmp_path / "a", tiny, [question(str(n)) for n in range(80)], "echo")
    stop, right = Stop(), echo.predict

    def interrupted(learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        if len(echo.calls) == 1:
            stop.heard()
        return right(learner, items, sampling)

    monkeypatch.setattr(echo, "predict", interrupted)
    monkeypatch.setattr(shards, "ENOUGH", 1000)
    assert run(folder, stop) == STOPPED
    assert [event["data"]["answers"] for event in events(folder, "shard")] == [32]
    first = {one["place"] for one in predictions(folder)}
    assert run_here(folder) == 0
    assert len(predictions(folder)) == 80
    assert [event["data"]["answers"] for event in events(folder, "shard")] == [32, 48]
    assert first == {int(word) for word in echo.calls[0]}


def test_it_says_how_fast_it_is(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(infer, "PAUSE", 0)
    folder = attempt(tmp_path / "a", tiny, [question(str(n)) for n in range(80)])
    assert run_here(folder) == 0
    told = [e["data"] for e in events(folder, "stage") if e["data"].get("rows_per_second")]
    assert [one["done"] for one in told] == [32, 64, 80]
    assert told[0]["eta_seconds"] > 0
    assert told[0]["tokens_per_second"] > told[0]["rows_per_second"]


def test_the_cost_of_a_batch_counts_what_may_be_written_and_beams():
    def asked(read: int, beams: int = 1) -> infer.Asked:
        return infer.Asked(0, {}, Sampling(beams=beams), read, (read + 100) * beams)

    sizes = [len(batch) for batch in infer.batches([asked(412) for _ in range(32)], "cpu")]
    assert sizes == [16, 16]
    sizes = [len(batch) for batch in infer.batches([asked(412, beams=4) for _ in range(8)], "cpu")]
    assert sizes == [4, 4]
