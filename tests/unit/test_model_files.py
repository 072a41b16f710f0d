"""Models from outside: nothing that could run code comes in, whatever its name; the sentence names it."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from shared import model_files
from shared.errors import Refused

CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 10}
WEIGHTS = save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)})
GOOD = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
}


def zipped(files: dict[str, bytes], folder: str = "") -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(folder + name, data)
    return buffer


def refusal_of(files: dict[str, bytes]) -> Refused:
    with pytest.raises(Refused) as refusal:
        model_files.check_zip(zipped(files))
    return refusal.value


def with_config(**more: object) -> dict[str, bytes]:
    return GOOD | {"config.json": json.dumps(CONFIG | more).encode()}


@pytest.mark.parametrize("folder", ["", "my-model/", "a/b/"])
def test_a_sound_model_is_taken_from_whatever_folder_it_lies_in(folder: str):
    more = {"README.md": b"hello", "1_Pooling/config.json": b"{}", "notes.xyz": b"left behind"}
    taken = model_files.check_zip(zipped(GOOD | more, folder))
    assert set(taken) == {*GOOD, "README.md"}


@pytest.mark.parametrize(
    "key",
    [
        "auto_map",
        "trust_remote_code",
        "_attn_implementation_internal",
        "_attn_implementation",
        "custom_pipelines",
    ],
)
def test_a_key_that_runs_code_is_refused_by_name_at_any_depth(key: str):
    for files in (
        with_config(**{key: {"AutoModel": "evil.Model"}}),
        with_config(text_config={"x": [{key: "a/b"}]}),
    ):
        refusal = refusal_of(files)
        assert refusal.code == "harmful_key"
        assert f"config.json has the key «{key}»" in refusal.message
    tokenizer = GOOD | {"tokenizer_config.json": json.dumps({key: ["evil.Tokenizer", None]}).encode()}
    assert f"tokenizer_config.json has the key «{key}»" in refusal_of(tokenizer).message


def torch_zip() -> bytes:
    return zipped({"archive/data.pkl": pickle.dumps({})}).getvalue()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("model.safetensors", lambda: pickle.dumps({"weights": [1, 2, 3]})),
        ("model-1-of-2.safetensors", lambda: pickle.dumps({"weights": [1, 2, 3]}, 2)),
        ("pytorch_model.bin", torch_zip),
        ("vocab.txt", torch_zip),
        ("optimizer.pt", lambda: pickle.dumps({}, 2)),
        ("tokenizer.model", lambda: pickle.dumps([1] * 100, 5)),
    ],
)
def test_a_pickle_is_refused_whatever_its_name(name: str, make: Callable[[], bytes]):
    refusal = refusal_of(GOOD | {name: make()})
    assert refusal.code == "pickle"
    assert f"«{name}»" in refusal.message


@pytest.mark.parametrize(
    ("name", "magic"), [("model.h5", b"\x89HDF\r\n\x1a\n"), ("a.npy", b"\x93NUMPY"), ("a.gguf", b"GGUF")]
)
def test_other_weights_are_refused_by_their_first_bytes(name: str, magic: bytes):
    assert f"«{name}»" in refusal_of(GOOD | {name: magic + b"x" * 20}).message


@pytest.mark.parametrize("name", ["modeling_evil.py", "sub/tool.PY", "x.so", "setup.sh"])
def test_code_is_refused(name: str):
    assert refusal_of(GOOD | {name: b"import os"}).code == "code"


@pytest.mark.parametrize("left_out", list(GOOD))
def test_a_model_without_a_part_is_refused(left_out: str):
    files = {name: data for name, data in GOOD.items() if name != left_out}
    assert left_out.split(".", maxsplit=1)[0] in refusal_of(files).message


def test_an_adapter_is_refused():
    assert "adapter" in refusal_of(GOOD | {"adapter_config.json": b"{}"}).message


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    refusal = refusal_of(with_config(model_type="lightglue"))
    assert refusal.code == "unsupported_architecture"
    assert "«lightglue»" in refusal.message
    assert "llama" in refusal.message


def test_quantized_weights_are_refused():
    assert "quantized" in refusal_of(with_config(quantization_config={"bits": 4})).message


def test_a_huge_chat_template_is_refused():
    big = "x" * 70_000
    assert "64 KiB" in refusal_of(GOOD | {"chat_template.jinja": big.encode()}).message
    config = GOOD | {"tokenizer_config.json": json.dumps({"chat_template": big}).encode()}
    assert "64 KiB" in refusal_of(config).message


def header(tensors: object, body: bytes = b"") -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(start: int, end: int, shape: object = (2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN = {
    "cut short": WEIGHTS[:-4],
    "too long": WEIGHTS + b"more",
    "header cut": WEIGHTS[:30],
    "empty": b"",
    "seven bytes": b"1234567",
    "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{abc",
    "a list": header([]),
    "overlap": header({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12),
    "gap": header({"a": tensor(0, 8), "b": tensor(12, 20)}, b"x" * 20),
    "backwards": header({"a": tensor(8, 0)}, b"x" * 8),
    "negative": header({"a": tensor(-8, 0)}, b"x" * 8),
    "shape and bytes differ": header({"a": tensor(0, 8, (3,))}, b"x" * 8),
    "a huge shape": header({"a": tensor(0, 8, (2**62, 2**62))}, b"x" * 8),
    "a float shape": header({"a": tensor(0, 8, (2.0,))}, b"x" * 8),
    "unknown type": header({"a": tensor(0, 8, (2,), "OBJECT")}, b"x" * 8),
    "no offsets": header({"a": {"dtype": "F32", "shape": [2]}}, b"x" * 8),
    "deep": struct.pack("<Q", 20_000) + b"[" * 20_000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_safetensors_file_that_lies_is_refused(case: str):
    refusal = refusal_of(GOOD | {"model.safetensors": BROKEN[case]})
    assert refusal.code == "invalid_safetensors"
    assert "«model.safetensors»" in refusal.message


def test_what_is_no_zip_is_refused():
    for data in (b"", b"{}", pickle.dumps({}), WEIGHTS):
        with pytest.raises(Refused, match="Upload a zip"):
            model_files.check_zip(io.BytesIO(data))


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_flipped_byte_of_a_model_crashes_the_look(flips: list[tuple[int, int]]):
    data = bytearray(zipped(GOOD).getvalue())
    for place, value in flips:
        data[place % len(data)] = value
    with suppress(Refused):
        model_files.check_zip(io.BytesIO(bytes(data)))
