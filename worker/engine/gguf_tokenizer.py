"""A byte-level BPE tokenizer in a GGUF file: its tokens and merges, and by what name llama.cpp knows how it cuts a
text before it merges. Names: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import Refused
from shared.learning.writer import PROMPTS


def described(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's own description. Raises Refused where it is of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = json.loads(backend.to_str()) if backend is not None else {}
    bytewise = "ByteLevel" in json.dumps(told.get("pre_tokenizer"))
    if told.get("model", {}).get("type") != "BPE" or not bytewise or told.get("normalizer"):
        raise Refused(
            "GGUF is made of models with a byte-level BPE tokenizer; this one has another.", param="form"
        )
    if not told["model"]["merges"]:
        raise Refused(
            "GGUF needs a tokenizer that merges bytes to tokens; this one has no merges.", param="form"
        )
    return told


def add(writer: Any, tokenizer: Any, size: int) -> None:
    """Write tokens (as many as the model has words), their kinds, merges, special ids, the chat template."""
    told = described(tokenizer)
    known = {number: word for word, number in tokenizer.get_vocab().items()}
    added = {one["id"]: one["special"] for one in told["added_tokens"]}
    merges = [one if isinstance(one, str) else " ".join(one) for one in told["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name(tokenizer))
    writer.add_token_list([known.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kind(number in known, added.get(number)) for number in range(size)])
    writer.add_token_merges(merges)
    for add_id, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if number is not None:
            add_id(number)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def kind(known: bool, special: bool | None) -> int:
    """What llama.cpp calls a token that is known or fills up, and was added (special or not) or learned."""
    from gguf import TokenType

    if not known:
        return TokenType.UNUSED
    return {None: TokenType.NORMAL, True: TokenType.CONTROL, False: TokenType.USER_DEFINED}[special]


def cuts() -> dict[str, Any]:
    """{name: how llama.cpp cuts a text under it}."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    words, plain = ByteLevel(add_prefix_space=False), ByteLevel(add_prefix_space=False, use_regex=False)
    llama = Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), "isolated")
    return {
        "gpt-2": words,
        "smollm": Sequence([Digits(individual_digits=True), words]),
        "llama-bpe": Sequence([llama, plain]),
    }


def name(tokenizer: Any) -> str:
    """The name under which llama.cpp cuts texts as this tokenizer does. Raises Refused where it has none."""
    from tokenizers import Tokenizer

    own = tokenizer.backend_tokenizer
    wanted = [own.encode(text).ids for text in PROMPTS]
    again = Tokenizer.from_str(own.to_str())
    known = cuts()
    for found in sorted(known, key=lambda one: str(known[one]) != str(own.pre_tokenizer)):
        cut_by(again, found)
        if [again.encode(text).ids for text in PROMPTS] == wanted:
            return found
    raise Refused(
        "llama.cpp has no name that we know for the way in which this tokenizer cuts texts: it cannot be written as"
        " GGUF.",
        param="form",
    )


def cut_by(plain: Any, found: str) -> None:
    """Make a tokenizer cut texts as llama.cpp does under that name."""
    plain.pre_tokenizer = cuts()[found]
    plain.model.ignore_merges = found == "llama-bpe"  # there a word that is a token is never put together


def restore(tokenizer: Any, path: Path) -> None:
    """Make the tokenizer that transformers reads from a file cut texts by the name in it: it knows only some."""
    from transformers.integrations.gguf import get_gguf_tokenizer

    cut_by(tokenizer.backend_tokenizer, get_gguf_tokenizer(str(path))[1]["pre_tokenizer_type"])
