"""Texts as one stream of tokens, cut into blocks, so that every token is learned and nothing is padded.

A row that ends with a newline is continued by the next one: a text file comes as a row a line. A row
that does not ends its document, and the end token follows.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from shared.errors import Refused
from shared.recipe import Finding

TEXT_NAMES = ("text", "content", "document", "body", "article")
PIECE = 2**16  # characters that are cut into tokens at once


class Token(NamedTuple):
    """A token of the stream, the place of the row it stands in, and how many characters it brings."""

    number: int
    place: int
    chars: int


def recognise(columns: Iterable[str]) -> dict[str, str] | None:
    """A text column by its usual names."""
    names = set(columns)
    return next(({"text": name} for name in TEXT_NAMES if name in names), None)


def documents(rows: Iterable[dict[str, Any]]) -> Iterator[range]:
    """The places of the rows of each document."""
    start = place = 0
    for place, row in enumerate(rows, 1):
        if not row["text"].endswith("\n"):
            yield range(start, place)
            start = place
    if start < place:
        yield range(start, place)


def split(rows: Sequence[dict[str, Any]], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(places to learn from, places held out). Documents are drawn at random; of a stream, and where there
    are too few documents for that, the last rows are held out, which keeps the text whole.
    """
    wanted = min(len(rows) - 1, max(1, round(fraction * len(rows)))) if fraction > 0 else 0
    drawn = list(documents(rows))
    random.Random(seed).shuffle(drawn)
    held: set[int] = set()
    for document in drawn:
        if len(held) + len(document) <= wanted:
            held.update(document)
    if len(held) < wanted / 2:
        held = set(range(len(rows) - wanted, len(rows)))
    return [place for place in range(len(rows)) if place not in held], sorted(held)


def tokens(rows: Iterable[dict[str, Any]], tokenizer: Any, end: int) -> Iterator[Token]:
    """Every token of the rows' texts; `end` follows each document."""
    piece: list[tuple[int, str]] = []
    size = 0
    for place, row in enumerate(rows):
        text = row["text"]
        if not blank(text):
            piece.append((place, text))
            size += len(text)
        ends = not text.endswith("\n")
        if piece and (ends or size >= PIECE):
            yield from tokens_of(piece, tokenizer)
            if ends:
                yield Token(end, piece[-1][0], 0)
            piece, size = [], 0
    if piece:
        yield from tokens_of(piece, tokenizer)


def tokens_of(piece: list[tuple[int, str]], tokenizer: Any) -> Iterator[Token]:
    """The tokens of a run of (place, text), read as one text."""
    text = "".join(part for _, part in piece)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = found["input_ids"], found["offset_mapping"]
    row, row_end, reached = 0, len(piece[0][1]), 0
    for number, (token, (begin, stop)) in enumerate(zip(ids, spans, strict=True), 1):
        while begin >= row_end and row + 1 < len(piece):
            row += 1
            row_end += len(piece[row][1])
        before, reached = reached, max(reached, stop) if number < len(ids) else len(text)
        yield Token(token, piece[row][0], reached - before)


def parts(stream: Iterator[Token], length: int) -> Iterator[list[Token]]:
    """The stream in lists of `length` tokens; the last one may be shorter."""
    while part := list(islice(stream, length)):
        yield part


def blocks(
    rows: Iterable[dict[str, Any]], tokenizer: Any, length: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place of the row in which it begins, {"input_ids", "chars"}) of every block: `length` tokens that are
    to be predicted behind the one before them, so that each token is predicted once, and their characters.
    """
    end = end_token(tokenizer)
    before = end
    for part in parts(tokens(rows, tokenizer, end), length):
        ids = [before, *(token.number for token in part)]
        yield part[0].place, {"input_ids": ids, "chars": sum(token.chars for token in part)}
        before = ids[-1]


def end_token(tokenizer: Any) -> int:
    """What stands between documents, and in front of the first. Raises Refused where there is nothing."""
    for known in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id):
        if known is not None:
            return known
    raise Refused("This base model's tokenizer has no end token: choose another base model.", param="model")


def text_of(row: dict[str, Any]) -> str:
    """The text of a row as it was mapped; nothing is none. Raises Refused for what is no text."""
    value = row.get("text")
    if value is None:
        return ""
    if not isinstance(value, str):
        kinds = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
        raise Refused(f"The text must be text, not {kinds.get(type(value), 'a value')}.", param="text")
    return value


def blank(text: str) -> bool:
    """Whether there is nothing to learn; a blank line is a part of its stream."""
    return not text.strip() and not text.endswith("\n")


def findings(rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
    """What is no text is fatal; rows without any are left out. Streams have millions of rows: each costs little."""
    column, words, number = columns["text"], False, 0
    for number, row in enumerate(rows, 1):
        value = row.get(column)
        if isinstance(value, str) and value and not value.isspace():
            words = True
            continue
        try:
            text = text_of({"text": value})
        except Refused as wrong:
            yield Finding(wrong.message, number, column)
            continue
        if blank(text):
            yield Finding("The text is empty; the row is left out.", number, column, fatal=False)
    if not words:
        yield Finding("No row has text to learn from." if number else "There are no rows.", column=column)
    elif number == 1:
        yield Finding(
            "All text is in one row, so that none can be held out: put each document, or each line, into a row.",
            column=column,
            fatal=False,
        )
