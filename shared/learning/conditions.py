"""What a generator is asked for: a label of a fixed set, or a caption in free words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from shared.errors import Refused
from shared.learning.labels import in_order, label
from shared.recipe import Finding

MOST_LABELS = 10_000
NAMES = ("caption", "label")  # a caption says more, so it goes first


def known_as(columns: dict[str, str]) -> str:
    """Which of the two a mapping has; captions where it has both."""
    return next(name for name in NAMES if name in columns)


def words(value: Any, name: str) -> str:
    """A label or caption cell as text without blanks around it, "" where there is none. Raises Refused."""
    text = label(value)
    if isinstance(text, list):
        raise Refused(f"The {name} must be a word or a text, not a list.", param=name)
    return text or ""


def facts(asked: list[str], captions: bool, earlier: dict[str, Any]) -> dict[str, Any]:
    """{"labels": every label in order}, or None in its place for captions. Raises Refused.

    A checkpoint keeps its own labels, in its own order.
    """
    if not asked:
        raise Refused("No row can be used.", param="training_file")
    if earlier and (earlier["labels"] is None) != captions:
        has, needs = ("captions", "labels") if captions else ("labels", "captions")
        raise Refused(
            f"The checkpoint was trained with {needs}, these rows have {has}. Start from scratch, or bring {needs}.",
            param="model",
        )
    if captions:
        return {"labels": None}
    labels = in_order(set(asked))
    if len(labels) > MOST_LABELS:
        raise Refused(f"There are more than {MOST_LABELS} different labels.", param="training_file")
    if earlier:
        require_known(labels, earlier["labels"])
        return {"labels": earlier["labels"]}
    if len(labels) < 2:
        raise Refused("A generator needs rows of at least two labels.", param="training_file")
    return {"labels": labels}


def require_known(labels: Sequence[str], known: Sequence[str]) -> None:
    """Refuses labels that a checkpoint has no place for."""
    if strange := sorted(set(labels) - set(known)):
        raise Refused(
            f"The checkpoint does not know the label «{strange[0]}». It knows {listed(known)}. Train from scratch "
            "to teach it others.",
            param="training_file",
        )


def number(given: dict[str, Any], labels: Sequence[str]) -> int:
    """The number of the label that a prediction asks for. Raises Refused naming those that are known."""
    name = words(given.get("label"), "label")
    if not name:
        raise Refused(f"The input needs a «label»: {listed(labels)}.", param="label")
    if name not in labels:
        raise Refused(f"There is no label «{name}». There are {listed(labels)}.", param="label")
    return labels.index(name)


def listed(labels: Sequence[str], most: int = 20) -> str:
    """The labels for a sentence."""
    shown = ", ".join(f"«{name}»" for name in labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def findings(seen: Counter[str], name: str, column: str) -> Iterator[Finding]:
    """What is wrong with the column of labels or captions as a whole."""
    if len(seen) == 1 and name == "label":
        only = next(iter(seen))
        yield Finding(
            f"Every label is «{only}»: a generator needs at least two to tell apart.", column=column
        )
