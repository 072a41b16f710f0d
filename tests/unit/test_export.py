"""Exports are compared with what was trained: as a folder, and as one GGUF file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import Refused
from shared.recipe import Learner, get
from tests.attempts import checkpoints, events, parquet, run_here, write_attempt
from tests.factories import tiny_encoder, tiny_llama
from worker.engine import gguf_file, gguf_tokenizer, llama_cpp_file, weights
from worker.engine.attempt import Attempt
from worker.engine.checkpoint import copied

SFT = get("sft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks so


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a tiny Llama, an adapter trained on it)."""
    folder = tmp_path_factory.mktemp("trained")
    base = tiny_llama(folder / "base")
    given: dict[str, Any] = {"epochs": 4, "batch_size": 4, "max_length": 96, "learning_rate": 0.02}
    spec = SFT.spec(**given).model_dump()
    rows = parquet(folder / "rows.parquet", SFT.example)
    told: dict[str, Any] = {"recipe": "sft", "spec": spec, "columns": {"messages": "messages"}}
    attempt = write_attempt(folder / "attempt", **told, base_model=base, train=rows)
    assert run_here(attempt) == 0, events(attempt, "error")
    return base, checkpoints(attempt)[-1] / "servable"


def exported(folder: Path, trained: tuple[Path, Path], form: str) -> Path:
    given = {"kind": "export", "recipe": "sft", "form": form, "base_model": trained[0], "adapter": trained[1]}
    return write_attempt(folder / form, **given)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_an_export_answers_as_the_trained_model(form: str, trained: tuple[Path, Path], tmp_path: Path):
    folder = exported(tmp_path, trained, form)
    assert run_here(folder) == 0, events(folder, "error")
    compared = json.loads((folder / "artifacts" / "agreement.json").read_text())
    assert compared["equal"] >= 0.99
    rounded = {"merged": 1e-4, "gguf": 0.02}[form]  # a GGUF file holds float16
    assert compared["largest_difference"] < rounded
    assert "of the likeliest next tokens are equal" in compared["said"]


def test_a_gguf_file_brings_its_tokenizer(trained: tuple[Path, Path], tmp_path: Path):
    from transformers import AutoTokenizer

    folder = exported(tmp_path, trained, "gguf")
    assert run_here(folder) == 0
    again: Any = AutoTokenizer.from_pretrained(folder / "artifacts" / "gguf", gguf_file="model.gguf")
    plain: Any = AutoTokenizer.from_pretrained(trained[0])
    text = "<|im_start|>user\nHow are the others? 12 ü\n<|im_end|>"
    assert again(text)["input_ids"] == plain(text)["input_ids"]
    assert again.chat_template == plain.chat_template


def test_a_tokenizer_that_begins_texts_by_itself_does_so_in_a_gguf_file(tmp_path: Path):
    base = tiny_llama(tmp_path / "base")
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    told = json.loads((base / "tokenizer.json").read_text())
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    (base / "tokenizer.json").write_text(json.dumps(told))
    given = {"kind": "export", "recipe": "sft", "form": "gguf", "base_model": base}
    folder = write_attempt(tmp_path / "gguf", **given)
    assert run_here(folder) == 0, events(folder, "error")
    again = gguf_file.opened(folder / "artifacts" / "gguf", Learner(spec=None, facts={})).tokenizer
    assert again("the year 1984")["input_ids"][0] == 1


def refused(folder: Path, form: str) -> str:
    """Why the export was refused; it is not there."""
    assert run_here(folder) == 10
    told = events(folder, "error")[-1]["data"]
    assert told["code"] == "export_disagrees"
    assert not (folder / "artifacts" / form).exists()
    assert not (folder / "artifacts" / "agreement.json").exists()
    return told["message"]


SWAPPED = gguf_file.LAYER | {"input_layernorm": "ffn_norm", "post_attention_layernorm": "attn_norm"}
WRONG_PLACES = pytest.mark.parametrize(
    ("place", "mistake"),
    [("permuted", lambda _, value, __: value), ("LAYER", SWAPPED)],
    ids=["queries and keys not permuted", "norms swapped"],
)


@WRONG_PLACES
def test_a_file_with_weights_in_the_wrong_place_is_refused(
    place: str, mistake: Any, trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_file, place, mistake)
    said = refused(exported(tmp_path, trained, "gguf"), "gguf")
    assert said.startswith("The gguf export answers otherwise than the trained model, so it is not offered;")
    assert "nats on average" in said


def test_a_file_that_cuts_texts_otherwise_is_refused(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_tokenizer, "name", lambda _: "smollm")  # which leaves digits apart
    said = refused(exported(tmp_path, trained, "gguf"), "gguf")
    assert said.endswith("cuts 1 of 6 texts into other tokens than the trained model.")


@pytest.mark.parametrize("name", gguf_tokenizer.cuts())
def test_the_name_of_a_tokenizer_is_that_of_how_it_cuts_texts(name: str, trained: tuple[Path, Path]):
    assert gguf_tokenizer.name(cutting(trained[0], gguf_tokenizer.cuts()[name])) == name


def test_a_tokenizer_that_cuts_texts_in_a_way_of_its_own_is_refused(trained: tuple[Path, Path]):
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    own = Sequence([Split("8", "isolated"), ByteLevel(add_prefix_space=False)])
    with pytest.raises(Refused, match="cuts texts"):
        gguf_tokenizer.name(cutting(trained[0], own))


def cutting(base: Path, cut: Any) -> Any:
    """The base model's tokenizer, cutting texts in another way."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.pre_tokenizer = cut
    return tokenizer


def test_a_model_of_another_kind_is_refused_with_a_sentence(tmp_path: Path):
    base = tiny_encoder(tmp_path / "base")
    given = {"kind": "export", "recipe": "masked_lm", "form": "gguf", "base_model": base}
    folder = write_attempt(tmp_path / "gguf", **given)
    assert run_here(folder) == 10
    assert "Llama-type" in events(folder, "error")[-1]["data"]["message"]


# --- llama.cpp itself ------------------------------------------------------------------------


def read_by_llama_cpp(folder: Path, trained: tuple[Path, Path]) -> str:
    """What is said of llama.cpp's reading of a file with the trained weights."""
    learner = weights.reopened(Attempt.read(exported(folder, trained, "gguf")), SFT)
    gguf_file.rounded(learner.model)
    path = folder / gguf_file.NAME
    gguf_file.write(path, learner.model.config, learner.tokenizer, copied(weights.merged(learner)), "tiny")
    probes = SFT.probes(learner)
    with torch.no_grad():
        return llama_cpp_file.said(path, probes, SFT.shown(learner, probes))


def test_llama_cpp_finds_the_tokens_that_the_trained_model_finds(trained: tuple[Path, Path], tmp_path: Path):
    said = read_by_llama_cpp(tmp_path, trained)
    assert said.startswith("Read by llama.cpp: over ")
    assert "differ by at most 0.0" in said


@WRONG_PLACES
def test_llama_cpp_notices_weights_in_the_wrong_place(
    place: str, mistake: Any, trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_file, place, mistake)
    with pytest.raises(Refused, match=r"^llama\.cpp reads the gguf export otherwise.*nats on average"):
        read_by_llama_cpp(tmp_path, trained)


def test_llama_cpp_notices_a_wrong_name_of_how_texts_are_cut(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_tokenizer, "name", lambda _: "smollm")  # which leaves digits apart
    with pytest.raises(Refused, match="cuts 1 of 6 texts into other tokens"):
        read_by_llama_cpp(tmp_path, trained)


def test_where_llama_cpp_is_not_installed_the_export_says_so(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    folder = exported(tmp_path, trained, "gguf")
    assert run_here(folder) == 0
    told = (folder / "artifacts" / "agreement.json").read_text()
    assert "llama.cpp is not installed on this worker and has not read the file." in told
