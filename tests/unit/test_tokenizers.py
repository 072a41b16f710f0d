"""Tokenizers for models from scratch: nothing of a text is lost, whatever the text."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Refused
from shared.learning.tokenizers import train
from shared.spec import ScratchSpec

TEXTS = ["The cat sat\non the mat.\n\n", "  Größe: 3 µm\t(ungefähr)", "数 字 ☃"]
EVERY = pytest.mark.parametrize("kind", ["bpe", "characters", "bytes"])


def trained(kind: Any, size: int = 320) -> Any:
    return train(TEXTS, ScratchSpec(tokenizer=kind, vocab_size=size), special=("<hole>",))


TRAINED = {kind: trained(kind) for kind in ("bpe", "characters", "bytes")}


@EVERY
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(kind: str, text: str):
    ids = TRAINED[kind](text)["input_ids"]
    assert TRAINED[kind].decode(ids) == text


@EVERY
def test_it_comes_back_from_its_folder(kind: str, tmp_path: Path):
    from transformers import AutoTokenizer

    TRAINED[kind].save_pretrained(tmp_path)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again(text)["input_ids"] == TRAINED[kind](text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
    assert again.convert_tokens_to_ids("<hole>") == TRAINED[kind].convert_tokens_to_ids("<hole>")
    assert (again.pad_token, again.eos_token, again.mask_token) == ("<pad>", "</s>", "<mask>")


def test_words_that_are_frequent_become_one_token():
    tokenizer = train(["the cat"] * 9, ScratchSpec(tokenizer="bpe", vocab_size=300))
    assert len(tokenizer("the cat")["input_ids"]) == 2
    assert len(tokenizer) <= 300


def test_no_text_is_refused():
    with pytest.raises(Refused, match="no text"):
        train(["", ""], ScratchSpec())
