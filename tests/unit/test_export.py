"""Exports are compared with what was trained: as a folder, and as one GGUF file."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.recipe import get
from tests.attempts import checkpoints, events, parquet, run_here, write_attempt
from tests.factories import tiny_causal_lm, tiny_encoder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a tiny Llama, an adapter trained on it)."""
    folder = tmp_path_factory.mktemp("trained")
    base, recipe = with_a_merge(tiny_causal_lm(folder / "base")), get("sft")
    given: dict[str, Any] = {"epochs": 4, "batch_size": 4, "max_length": 96, "learning_rate": 0.02}
    spec = recipe.spec(**given).model_dump()
    rows = parquet(folder / "rows.parquet", recipe.example)
    told: dict[str, Any] = {"recipe": "sft", "spec": spec, "columns": {"messages": "messages"}}
    attempt = write_attempt(folder / "attempt", **told, base_model=base, train=rows)
    assert run_here(attempt) == 0, events(attempt, "error")
    return base, checkpoints(attempt)[-1] / "servable"


def with_a_merge(base: Path) -> Path:
    """The same model with a tokenizer that merges «he» to one token."""
    from transformers import AutoModelForCausalLM

    path = base / "tokenizer.json"
    told = json.loads(path.read_text())
    told["model"]["vocab"]["he"] = size = len(told["model"]["vocab"])
    told["model"]["merges"] = [["h", "e"]]
    path.write_text(json.dumps(told))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(size + 1)
    model.save_pretrained(base)
    return base


def exported(folder: Path, trained: tuple[Path, Path], form: str) -> Path:
    given = {"kind": "export", "recipe": "sft", "form": form, "base_model": trained[0], "adapter": trained[1]}
    return write_attempt(folder / form, **given)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_an_export_answers_as_the_trained_model(form: str, trained: tuple[Path, Path], tmp_path: Path):
    folder = exported(tmp_path, trained, form)
    assert run_here(folder) == 0, events(folder, "error")
    compared = json.loads((folder / "artifacts" / "agreement.json").read_text())
    assert compared["equal"] >= 0.95
    assert compared["largest_difference"] < {"merged": 1e-3, "gguf": 0.05}[form]
    assert compared["tokens"] > 90


def test_a_gguf_file_brings_its_tokenizer(trained: tuple[Path, Path], tmp_path: Path):
    from transformers import AutoTokenizer

    folder = exported(tmp_path, trained, "gguf")
    assert run_here(folder) == 0
    again: Any = AutoTokenizer.from_pretrained(folder / "artifacts" / "gguf", gguf_file="model.gguf")
    plain: Any = AutoTokenizer.from_pretrained(trained[0])
    text = "<|im_start|>user\nHow are the others? 12 ü\n<|im_end|>"
    assert again(text)["input_ids"] == plain(text)["input_ids"]
    assert again.chat_template == plain.chat_template


def test_an_export_that_answers_otherwise_is_refused(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worker.engine.gguf_file.permuted", lambda _, value, __: -value)
    folder = exported(tmp_path, trained, "gguf")
    assert run_here(folder) == 10
    told = events(folder, "error")[-1]["data"]
    assert told["code"] == "export_disagrees"
    assert not (folder / "artifacts" / "gguf").exists()


def test_a_model_of_another_kind_is_refused_with_a_sentence(tmp_path: Path):
    base = tiny_encoder(tmp_path / "base")
    given = {"kind": "export", "recipe": "masked_lm", "form": "gguf", "base_model": base}
    folder = write_attempt(tmp_path / "gguf", **given)
    assert run_here(folder) == 10
    assert "Llama-type" in events(folder, "error")[-1]["data"]["message"]
