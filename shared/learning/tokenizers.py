"""Tokenizers for models from scratch, learned from the rows. All three give every text back as it was.

- `bpe`: byte-level byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909);
- `characters`: a token for each of the most frequent characters, bytes for the others;
- `bytes`: a token for each byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from shared.errors import Refused
from shared.spec import ScratchSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, START, END, MASK = "<pad>", "<s>", "</s>", "<mask>"
SPECIAL = (PAD, START, END, MASK)
BYTES = 256


def train(texts: Iterable[str], spec: ScratchSpec, special: tuple[str, ...] = ()) -> Any:
    """A fast tokenizer of transformers with at most `spec.vocab_size` tokens beside the special ones.

    `<s>` starts and `</s>` ends a text (they are `bos` and `cls`, `eos` and `sep`); nothing is added by
    itself. `special` are more such tokens. Raises Refused where there is nothing to learn from.
    """
    from transformers import PreTrainedTokenizerFast

    texts = filled(texts)
    learn = {"bpe": pairs, "characters": characters, "bytes": plain_bytes}[spec.tokenizer]
    every = [*SPECIAL, *special]
    plain = learn(texts, max(spec.vocab_size, BYTES + len(every)), every)
    plain.add_special_tokens(every)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token=PAD,
        bos_token=START,
        cls_token=START,
        eos_token=END,
        sep_token=END,
        mask_token=MASK,
        additional_special_tokens=list(special),
        clean_up_tokenization_spaces=False,
    )


def frame(tokenizer: Any) -> Any:
    """The same tokenizer, which from now on puts a text between `<s>` and `</s>` by itself, and a pair of
    texts as `<s>` one `</s>` two `</s>` whose second part has the token type 1: as BERT reads them.
    """
    from tokenizers.processors import TemplateProcessing

    start, end = tokenizer.cls_token, tokenizer.sep_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, tokenizer.cls_token_id), (end, tokenizer.sep_token_id)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what is saved
    return tokenizer


def filled(texts: Iterable[str]) -> Iterator[str]:
    """The same texts. Raises Refused where all are empty."""
    texts = (text for text in texts if text)
    first = next(texts, None)
    if first is None:
        raise Refused("There is no text to learn a tokenizer from.", param="training_file")
    return chain([first], texts)


def pairs(texts: Iterable[str], size: int, special: list[str]) -> Tokenizer:
    """Byte-level byte-pair encoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain.train_from_iterator(texts, trainer)
    return plain


def characters(texts: Iterable[str], size: int, special: list[str]) -> Tokenizer:
    """The most frequent characters, the rest as bytes."""
    from tokenizers import Tokenizer, decoders, models

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    room = max(0, size - len(special) - BYTES)
    frequent = sorted(counts, key=lambda char: (-counts[char], char))[:room]
    known = [*special, *(f"<0x{byte:02X}>" for byte in range(BYTES)), *frequent]
    plain = Tokenizer(models.BPE({token: n for n, token in enumerate(known)}, [], byte_fallback=True))
    plain.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return plain


def plain_bytes(texts: Iterable[str], size: int, special: list[str]) -> Tokenizer:  # noqa: ARG001 - learns nothing
    """The 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    known = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({token: n for n, token in enumerate(known)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return plain
