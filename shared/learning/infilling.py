"""Fill-in-the-middle: part of the texts is learned as prefix, suffix, middle, so that a causal model can write what
stands between two texts (Bavarian et al. 2022, https://arxiv.org/abs/2207.14255).

A text is cut at two characters drawn at random and becomes «⟨prefix⟩⟨suffix⟩ suffix ⟨middle⟩ prefix middle
⟨end⟩»: the paper's SPM mode, in which a middle follows its prefix directly, so that whoever can write on can fill in.
A tokenizer that has tokens for the three marks is used with them; in another one they are spelled out, so that a
base model keeps its vocabulary and an adapter fits it as it is. A base model whose marks are others than ours has
learned the paper's PSM mode, «⟨prefix⟩ prefix ⟨suffix⟩ suffix ⟨middle⟩ middle ⟨end⟩», and is asked so.
"""

import random
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
KNOWN = (
    MARKS,
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)  # fmt: skip
SLACK = 8  # tokens by which a text may grow when it is cut into three


class Marks(NamedTuple):
    """Tokens that stand before the parts, at the start and at the end of a sequence."""

    prefix: list[int]
    suffix: list[int]
    middle: list[int]
    start: list[int]
    end: list[int]
    suffix_first: bool

    @property
    def room(self) -> int:
        """How many tokens they take together."""
        return sum(map(len, (self.start, self.prefix, self.suffix, self.middle, self.end)))

    def around(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """All that stands before a middle."""
        if self.suffix_first:
            return [*self.start, *self.prefix, *self.suffix, *suffix, *self.middle, *prefix]
        return [*self.start, *self.prefix, *prefix, *self.suffix, *suffix, *self.middle]


def native(tokenizer: Any) -> tuple[str, str, str] | None:
    """The three marks that the tokenizer has tokens for, if any."""
    for names in KNOWN:
        ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
        if all(number is not None and number != tokenizer.unk_token_id for number in ids):
            return names
    return None


def marks(tokenizer: Any) -> Marks:
    """The tokenizer's own marks, or ours spelled out."""
    names = native(tokenizer)
    if names:
        parts = [[tokenizer.convert_tokens_to_ids(name)] for name in names]
    else:
        parts = [tokens(name, tokenizer) for name in MARKS]
    ends = [number for number in (tokenizer.eos_token_id, tokenizer.sep_token_id) if number is not None][:1]
    start = ends if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return Marks(*parts, start, ends, suffix_first=names in (None, MARKS))


def spelled(prefix: str, suffix: str, tokenizer: Any) -> str:
    """`Marks.around` as a text, which a tokenizer reads with its special tokens."""
    names = native(tokenizer)
    before, behind, middle = names or MARKS
    if names in (None, MARKS):
        return f"{before}{behind}{suffix}{middle}{prefix}"
    return f"{before}{prefix}{behind}{suffix}{middle}"


def tokens(text: str, tokenizer: Any) -> list[int]:
    """The text's tokens; words in it that look like special tokens are text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def sequences(text: str, tokenizer: Any, longest: int, rate: float) -> Iterator[list[int]]:
    """The text as sequences of at most `longest` tokens, about `rate` of them with their middle at the end.

    Which, and where they are cut, is drawn from the text itself: the same text is always learned the same.
    """
    known = marks(tokenizer)
    name = sha256(text.encode()).hexdigest()
    pieces = list(cut(text, tokenizer, max(1, longest - known.room - SLACK)))
    for number, (ids, piece) in enumerate(pieces):
        dice = random.Random(f"{name}/{number}")
        if dice.random() < rate:
            yield moved(piece, tokenizer, known, longest, dice)
        else:
            yield known.start + ids + (known.end if number == len(pieces) - 1 else [])


def cut(text: str, tokenizer: Any, size: int) -> Iterator[tuple[list[int], str]]:
    """(tokens, text) of the pieces of `size` tokens; the texts end to end are the whole."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
    places = [0, *(starts[at] for at in range(size, len(ids), size)), len(text)]
    for number, at in enumerate(range(0, len(ids), size)):
        yield ids[at : at + size], text[places[number] : places[number + 1]]


def moved(text: str, tokenizer: Any, known: Marks, longest: int, dice: random.Random) -> list[int]:
    """The text cut at two random characters, its middle last; the prefix gives way where it is too long."""
    first, second = sorted(dice.randrange(len(text) + 1) for _ in range(2))
    prefix, middle, suffix = (
        tokens(part, tokenizer) for part in (text[:first], text[first:second], text[second:])
    )
    over = max(0, known.room + len(prefix) + len(middle) + len(suffix) - longest)
    return [*known.around(prefix[over:], suffix), *middle, *known.end][:longest]


def question(prompt: list[int], suffix: list[int] | None, known: Marks, room: int) -> list[int]:
    """What a model goes on from, in at most `room` tokens: the end of the prompt, and of the suffix its beginning,
    which gets a quarter of the room or what the prompt leaves.
    """
    if suffix is None:
        return [*known.start, *ending(prompt, room - len(known.start))]
    left = max(2, room - known.room)
    suffix = suffix[: max(left // 4, left - len(prompt))]
    return known.around(ending(prompt, left - len(suffix)), suffix)


def ending(ids: list[int], most: int) -> list[int]:
    """The last `most` of them."""
    return ids[max(0, len(ids) - most) :]
