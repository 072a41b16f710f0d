"""Answers that stand in a text: how they come in a dataset, where they stand, and how right one is.

Right is what SQuAD says (Rajpurkar et al. 2016 and 2018, https://arxiv.org/abs/1806.03822): texts are
compared in lower case, without punctuation, without «a», «an» and «the», and with single blanks. Of
several accepted answers the closest counts. A question without an answer accepts the empty text alone.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shared.errors import Refused
from shared.learning.cells import kind

WANTED = "{text: […], answer_start: […]}"
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """The text as it is compared."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 where the answer is one of the accepted ones, else 0.0."""
    return float(normalised(answer) in {normalised(one) for one in golden(accepted)})


def f1(answer: str, accepted: Sequence[str]) -> float:
    """The best overlap of words with an accepted answer, 0 to 1."""
    return max(overlap(answer, one) for one in golden(accepted))


def golden(accepted: Sequence[str]) -> list[str]:
    """The accepted answers that have words; the empty text where none has."""
    return [one for one in accepted if normalised(one)] or [""]


def overlap(answer: str, accepted: str) -> float:
    """F1 of the words that two texts share: the harmonic mean of precision and recall."""
    mine, theirs = normalised(answer).split(), normalised(accepted).split()
    if not mine or not theirs:
        return float(mine == theirs)
    shared = (Counter(mine) & Counter(theirs)).total()
    return 2 * shared / (len(mine) + len(theirs))


def several(cell: Any) -> tuple[list[Any], list[Any]]:
    """Texts and starts of a cell of «answers»: SQuAD's two lists, its list of objects, or JSON text of these.

    Starts are None where they are not told. Raises Refused.
    """
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            cell = None
    if isinstance(cell, list) and all(isinstance(one, dict) for one in cell):
        cell = {name: [one.get(name) for one in cell] for name in ("text", "answer_start")}
    if not isinstance(cell, dict) or cell.get("text") is None:
        raise Refused(
            f"The answers must be {WANTED}, with empty lists where there is no answer.",
            param="answers",
            code="wrong_type",
        )
    texts, starts = (listed(cell.get(name)) for name in ("text", "answer_start"))
    starts = starts if cell.get("answer_start") is not None else [None] * len(texts)
    if len(texts) != len(starts):
        raise Refused(
            f"There are {len(texts)} answers and {len(starts)} starts («answer_start»): every answer needs one.",
            param="answers",
            code="wrong_length",
        )
    return texts, starts


def listed(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, a single value as a list of one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def single(row: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Text and start of a row with one answer; none where its cell is empty."""
    text, start = row["answer"], row.get("answer_start")
    if text is None or (isinstance(text, str) and not text.strip()):
        return [], []
    return [text], [None if start == "" else start]


def placed(texts: list[Any], starts: list[Any], context: str, column: str) -> dict[str, list[Any]]:
    """{text, answer_start} once every answer was found where it is said to be. Raises Refused."""
    found = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            what = "empty" if isinstance(text, str) or text is None else kind(text)
            raise Refused(
                f"An answer must be text that stands in the context; this one is {what}.",
                param=column,
                code="wrong_type",
            )
        found.append(
            located(text, context, column) if start is None else agreed(text, start, context, column)
        )
    return {"text": texts, "answer_start": found}


def located(text: str, context: str, column: str) -> int:
    """Where the answer stands. Raises Refused unless that is one place."""
    if not (count := context.count(text)):
        raise Refused(
            f"The answer «{short(text)}» does not stand in its context.", param=column, code="misplaced"
        )
    if count > 1:
        raise Refused(
            f"The answer «{short(text)}» stands {count} times in its context: say where by «answer_start».",
            param=column,
            code="ambiguous",
        )
    return context.index(text)


def agreed(text: str, told: Any, context: str, column: str) -> int:
    """The place that is told of an answer. Raises Refused where something else stands there."""
    start = whole(told)
    if start is None:
        raise Refused(
            f"«answer_start» must be a whole number from 0, not {short(json.dumps(told, default=str))}.",
            param="answer_start" if column == "answer" else column,
            code="wrong_type",
        )
    if context.startswith(text, start):
        return start
    there = context[start : start + len(text)]
    what = f"there stands «{short(there)}»" if there else f"that has only {len(context)}"
    raise Refused(
        f"The answer «{short(text)}» does not stand at character {start} of its context: {what}."
        f" {elsewhere(text, context)}",
        param=column,
        code="misplaced",
    )


def whole(value: Any) -> int | None:
    """A whole number from 0, also where it is written as text or with «.0»; else None."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 12:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def elsewhere(text: str, context: str) -> str:
    """A sentence on where the answer stands instead."""
    count = context.count(text)
    if count == 1:
        return f"It stands at character {context.index(text)}."
    return f"It stands at {count} other places." if count else "It stands nowhere in it."


def short(text: str, most: int = 60) -> str:
    """The start of a text as it may stand in a sentence."""
    clean = " ".join(text[: most + 1].split())
    return clean if len(text) <= most else f"{clean[:most]}…"
