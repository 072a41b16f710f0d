"""Files of a model from outside: which may come in, told by content, and what may stand in them.

Only safetensors and JSON (and the plain text of tokenizers) enter. What could run code when a library
reads it is refused by name of the file and the key, before anything is loaded. Pure Python: the web
looks at an uploaded zip with it, the importer at what it unpacks.
"""

import json
import math
import struct
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from shared import archives
from shared.errors import Refused
from shared.formats import counted, foreign_kind, quoted

# what is taken from a model's folder; the rest is checked and left behind
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
)
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)

# model_type → what it offers to recipes
HEADS = {
    **dict.fromkeys(
        (
            "bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "albert", "modernbert",
            "deberta-v2", "camembert",
        ),
        "encoder",
    ),
    **dict.fromkeys(
        (
            "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2",
            "gpt_neox", "gpt_neo", "opt", "smollm3", "olmo", "olmo2", "stablelm", "starcoder2", "granite",
            "falcon", "mixtral", "codegen", "bloom",
        ),
        "causal_lm",
    ),
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "bart", "pegasus"), "seq2seq"),
}  # fmt: skip

# keys that make a library fetch or run code, at any depth
HARMFUL = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
HARMFUL_STARTS = ("_attn_implementation", "attn_implementation", "_experts_implementation", "_kernel")
DTYPES = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json")
HEADER = 8 * 1024**2
JSON = 4 * 1024**2
TEMPLATE = 64 * 1024


def check_zip(file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """The members to take from an uploaded model, by their name in the model's folder. Raises Refused.

    Looks at every member's first bytes, every JSON file's keys and every safetensors header.
    """
    head = file.read(8) if not file.seek(0) else b""
    if not head.startswith(b"PK"):
        what = foreign_kind(head) or "not a zip"
        raise refused(
            f"The file is {what}. Upload a zip of a model's folder: config.json, safetensors, tokenizer."
        )
    found = flattened(archives.members(file))
    try:
        with zipfile.ZipFile(file) as archive:
            for name, entry in found.items():
                with archive.open(entry) as member:
                    check_member(name, member, entry.file_size)
    except archives.DAMAGED as wrong:
        raise refused(f"The zip is damaged ({quoted(str(wrong))}). Pack it again.") from None
    taken = {name: entry for name, entry in found.items() if wanted(name)}
    check_complete(set(taken), set(found))
    file.seek(0)
    return taken


def flattened(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Names within the one folder that holds config.json."""
    configs = [e.filename for e in members if PurePosixPath(e.filename).name == "config.json"]
    if not configs:
        raise refused(
            "The zip has no config.json. Pack the model's folder: config.json, safetensors, tokenizer."
        )
    root = str(PurePosixPath(min(configs, key=lambda name: name.count("/"))).parent)
    start = "" if root == "." else root + "/"
    return {entry.filename.removeprefix(start): entry for entry in members}


def wanted(name: str) -> bool:
    """Whether a file of the model's folder is taken."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PATTERNS)


def check_member(name: str, file: Any, size: int) -> None:
    """Raises Refused for a file that could run code, whatever its name, or that lies about itself."""
    if PurePosixPath(name).suffix.lower() in (".py", ".pyc", ".so", ".sh"):
        raise refused(
            f"«{quoted(name)}» is code. A base model is weights, JSON and a tokenizer; remove it.", "code"
        )
    head = file.read(8)
    check_magic(name, head)
    if name.endswith(".safetensors"):
        safetensors_header(name, head, file, size)
    elif name.endswith(".json") and PurePosixPath(name).name not in VOCABULARIES:  # their keys are data
        check_json(name, json_of(name, head + file.read(JSON)))
    elif name.endswith(".jinja") and size > TEMPLATE:
        raise refused(
            f"The chat template «{quoted(name)}» is larger than {TEMPLATE // 1024} KiB. Shorten it."
        )


def check_magic(name: str, head: bytes) -> None:
    """Raises Refused for pickles and everything else that is no model file, by its first bytes."""
    if head.startswith(b"PK"):
        raise refused(
            f"«{quoted(name)}» is a PyTorch file (a zip of pickles), which can run code."
            " Save the weights as safetensors and leave it out.",
            "pickle",
        )
    if kind := foreign_kind(head):
        why = ", which can run code" if "pickle" in kind else ""
        raise refused(
            f"«{quoted(name)}» is {kind}{why}. Save the weights as safetensors and leave it out.",
            "pickle" if why else "unsupported_format",
        )


def json_of(name: str, data: bytes) -> Any:
    """The value of a JSON file. Raises Refused."""
    if len(data) > JSON:
        raise refused(f"«{quoted(name)}» is larger than {JSON // 1024**2} MB. Is it what its name says?")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as wrong:
        raise refused(f"«{quoted(name)}» is not JSON: {quoted(str(wrong))}.") from None


def check_json(name: str, value: Any) -> None:
    """Raises Refused for keys that would run code, too large templates and unknown architectures."""
    for key, inner in entries(value):
        if key in HARMFUL or key.startswith(HARMFUL_STARTS):
            if inner in (None, False, [], {}) and key != "auto_map":
                continue
            raise refused(
                f"{quoted(name)} has the key «{quoted(key)}», which can make a library fetch or run code."
                " Remove that key; the model must load without it.",
                "harmful_key",
            )
        if key == "chat_template" and len(json.dumps(inner)) > TEMPLATE:
            raise refused(
                f"The chat template in {quoted(name)} is larger than {TEMPLATE // 1024} KiB. Shorten it."
            )
    if name == "config.json":
        head_of(value)
        if value.get("quantization_config"):
            raise refused("config.json says that the weights are quantized. Save them in full precision.")


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of an object and of all within it, with its value."""
    level = [value]
    while level:
        inner = level.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            level.extend(inner.values())
        elif isinstance(inner, list):
            level.extend(inner)


def head_of(config: Any) -> str:
    """What a model with this config offers: «causal_lm», «encoder» or «seq2seq». Raises Refused."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in HEADS:
        raise refused(
            f"config.json says the model_type «{quoted(str(kind))}». Supported are: {', '.join(sorted(HEADS))}.",
            "unsupported_architecture",
        )
    return HEADS[kind]


def check_complete(taken: set[str], found: set[str]) -> None:
    """Raises Refused unless there are weights and a tokenizer."""
    if "adapter_config.json" in found:
        raise refused("This is an adapter, not a whole model. Merge it into its base model first.")
    if not any(name.endswith(".safetensors") for name in taken):
        raise refused("The zip has no model.safetensors. Save the weights as safetensors beside config.json.")
    if not taken.intersection(TOKENIZERS):
        raise refused(
            "The zip has no tokenizer. Put tokenizer.json (or vocab.txt, tokenizer.model) beside config.json."
        )


def safetensors_header(name: str, length: bytes, file: Any, size: int) -> dict[str, Any]:
    """The tensors that a safetensors file announces, once its offsets are proved sane. Raises Refused.

    `length` is its first 8 bytes, `file` stands behind them, `size` is the whole file's.
    """
    wrong = f"«{quoted(name)}» is not a sound safetensors file: "
    if len(length) < 8:
        raise refused(f"{wrong}it has {counted(size, 'byte')}. Upload it again.", "invalid_safetensors")
    (count,) = struct.unpack("<Q", length)
    if count > min(HEADER, size - 8):
        raise refused(
            f"{wrong}its header claims {count} bytes and the file has {size}. It is cut short or something else.",
            "invalid_safetensors",
        )
    try:
        header = json.loads(file.read(count))
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        spans = sorted(span_of(key, value) for key, value in tensors.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as bad:
        raise refused(f"{wrong}its header is broken ({quoted(str(bad))}).", "invalid_safetensors") from None
    place = 0
    for start, end in spans:
        if start != place:
            raise refused(f"{wrong}its tensors overlap or leave gaps at byte {place}.", "invalid_safetensors")
        place = end
    if place != size - 8 - count:
        raise refused(
            f"{wrong}its header announces {place} bytes of weights and {size - 8 - count} are there. Upload it again.",
            "invalid_safetensors",
        )
    return tensors


def span_of(key: str, tensor: dict[str, Any]) -> tuple[int, int]:
    """(start, end) of a tensor's bytes. Raises ValueError unless shape and type make that many."""
    start, end = tensor["data_offsets"]
    shape = tensor["shape"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"«{quoted(key)}» has an odd shape or place")
    if math.prod(shape) * DTYPES[tensor["dtype"]] != (end - start) * 8:
        raise ValueError(f"«{quoted(key)}» has not as many bytes as its shape says")
    return start, end


def refused(message: str, code: str = "invalid_model") -> Refused:
    """A refusal of the uploaded model."""
    return Refused(message, param="file", code=code)
