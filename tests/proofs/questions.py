"""Questions about the King James Bible that its own wording answers: «Whose son was Abner?», «How old was Sarah?».

A relation is a turn of phrase that the text uses of two names, or of a name and a number: «Abner the son of Ner».
It can be asked for from both sides. Where a passage names somebody and never uses the phrase of him, the question
has no answer there.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tests.proofs.texts import chapters

NOT_NAMES = (
    "After Again All Also And As At Because Behold But Come Even For From Go He Her His I If In It Let Moreover My Not"
    " Now O Of Or Our She So That The Their Then There Therefore These They This Thou Thus Thy To Unto We What When"
    " Wherefore Which Who Whose With Ye Yea Yet Your"
)
NAME = rf"(?:the LORD|God|(?!(?:{NOT_NAMES.replace(' ', '|')})\b)[A-Z][a-z]+)\b"
NUMBER = (
    "(?:(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|twenty|thirty|forty|fifty"
    "|sixty|seventy|eighty|ninety|hundred|thousand|threescore|fourscore|and)\\b ?)+"
)
KIN = r"\b(?:sons?|daughters?|father|mother|brother|brethren|sister|wife|child\w*|begat|bare|born|seed)\b"
SHORTEST, LONGEST = 150, 350  # characters of a passage
HELD_OUT = 0.2  # of the chapters
TOGETHER = 4  # questions about a passage, at most

Row = dict[str, Any]


class Relation(NamedTuple):
    """A phrase with the groups `a` and `b`, the questions for a and for b, and the words without which nothing is
    said of it: None where the text may well say it in words of its own.
    """

    phrase: str
    for_a: str
    for_b: str
    words: str | None = None


A, B, NUMBERED = f"(?P<a>{NAME})", f"(?P<b>{NAME})", f"(?P<b>{NUMBER})"
SUBJECT = f"(?<!of )(?<!the ){A}"
KINSHIP = (
    Relation(f"{A},? the son of {B}", "Who was the son of {b}?", "Whose son was {a}?", KIN),
    Relation(f"{A},? the daughter of {B}", "Who was the daughter of {b}?", "Whose daughter was {a}?"),
    Relation(f"{A} begat {B}", "Who begat {b}?", "Whom did {a} beget?"),
    Relation(f"{A},? the father of {B}", "Who was the father of {b}?", "Whose father was {a}?"),
    Relation(f"{A},? the brother of {B}", "Who was the brother of {b}?", "Whose brother was {a}?"),
    Relation(f"{A},? (?:the )?wife of {B}", "Who was the wife of {b}?", "Whose wife was {a}?"),
    Relation(
        f"{SUBJECT} {B}'s (?P<c>wife|son|brother|father|daughter|sister)",
        "Who was {b}'s {c}?",
        "Whose {c} was {a}?",
    ),
)
RELATIONS = (
    *KINSHIP,
    Relation(
        f"{A},? (?:the )?king of {B}",
        "Who was king of {b}?",
        "Of what was {a} king?",
        r"\b(?:king\w*|reign\w*|throne)\b",
    ),
    Relation(
        f"{SUBJECT},? the (?P<b>(?:high |chief )?(?:priest|prophet|scribe|captain|governor|servant))\\b",
        "Who was the {b}?",
        "What was {a}?",
    ),
    Relation(
        f"{SUBJECT},? the (?P<b>[A-Z][a-z]+ite)\\b",
        "Which {b} is named?",
        "Of which people was {a}?",
        r"ites?\b",
    ),
    Relation(
        f"{SUBJECT} was {NUMBERED}years old", "Who was {b} years old?", "How old was {a}?", r"\byears?\b"
    ),
    Relation(f"{NUMBERED}years old was {A}", "Who was {b} years old?", "How old was {a}?"),
    Relation(
        f"children of {A}, {NUMBERED}(?=[.:;,])",
        "Whose children were {b}?",
        "How many were the children of {a}?",
    ),
    Relation(
        f"{SUBJECT} (?:said|spake|answered)(?: also| moreover| again)? (?:un)?to {B}",
        "Who spoke to {b}?",
        "To whom did {a} speak?",
    ),
    Relation(
        f"{SUBJECT} (?:went|came|departed|returned|fled|journeyed)(?: up| down| out| over)* (?:to|into|unto) {B}",
        "Who went to {b}?",
        "To whom or where did {a} go?",
    ),
    Relation(
        f"{SUBJECT} (?:dwelt|abode) (?:in|at) (?:the land of )?{B}",
        "Who dwelt in {b}?",
        "Where did {a} dwell?",
    ),
)


class Asked(NamedTuple):
    """A question, its kind, and every answer with its place in the passage."""

    question: str
    kind: str
    answers: dict[str, int]


def questions(seed: int, to_learn: int, to_hold: int) -> tuple[list[Row], list[Row]]:
    """Rows with question, context and answers, to learn from and held out: no chapter and no question is in both.

    Up to `to_learn` and `to_hold` of a kind.
    """
    chance = random.Random(seed)
    found = chapters()
    chance.shuffle(found)
    many = round(len(found) * HELD_OUT)
    held = asked(found[:many], chance, to_hold, set())
    return asked(found[many:], chance, to_learn, {row["question"] for row in held}), held


def asked(found: list[list[str]], chance: random.Random, of_each: int, known: set[str]) -> list[Row]:
    """Two questions or more about every passage that answers one; none is asked twice, or is one of those known."""
    told = [passage for chapter in found for passage in passages(chapter)]
    chance.shuffle(told)
    people = {name for passage in told for name in relatives(passage)}
    rows, kinds, seen = [], Counter[str](), set(known)
    for passage in told:
        there = answered(passage, RELATIONS)
        nothing = [one for one in unanswered(passage, people) if one.question not in there] if there else []
        every = [*there.values(), *chance.sample(nothing, min(1, len(nothing)))]
        chance.shuffle(every)
        fresh = [one for one in every if one.question not in seen and kinds[one.kind] < of_each][:TOGETHER]
        if len(fresh) > 1:
            kinds.update(one.kind for one in fresh)
            seen.update(one.question for one in fresh)
            rows += [row(passage, one) for one in fresh]
    return rows


def row(passage: str, one: Asked) -> Row:
    """As SQuAD writes it."""
    answers = {"text": list(one.answers), "answer_start": list(one.answers.values())}
    return {"question": one.question, "context": passage, "answers": answers}


def passages(chapter: list[str]) -> Iterator[str]:
    """Neighbouring verses."""
    passage = ""
    for verse in chapter:
        passage = f"{passage} {verse}".strip()
        if len(passage) >= SHORTEST:
            if len(passage) <= LONGEST:
                yield passage
            passage = ""


def answered(passage: str, relations: Iterable[Relation]) -> dict[str, Asked]:
    """What the passage says, by question."""
    found: dict[str, Asked] = {}
    for relation in relations:
        for match in re.finditer(rf"(?<!\w)(?={relation.phrase})", passage):
            names = {name: part.strip() for name, part in match.groupdict().items()}
            for side, template in (("a", relation.for_a), ("b", relation.for_b)):
                question = template.format(**names)
                one = found.setdefault(question, Asked(question, relation.for_a, {}))
                one.answers.setdefault(names[side], match.start(side))
    return found


def relatives(passage: str) -> set[str]:
    """People of whom the passage says whose relatives they are."""
    told = answered(passage, KINSHIP).values()
    return {name for one in told for name in one.answers if name.isalpha()}


def unanswered(passage: str, people: set[str]) -> Iterator[Asked]:
    """Questions about people of the passage that it does not answer: the words for it stand nowhere near them."""
    parts = re.split("[,.;:?()]", passage)
    for person in sorted(people & set(re.findall(r"\w+", passage))):
        beside = " ".join(part for part in parts if re.search(rf"\b{person}\b", part))
        for relation in RELATIONS:
            if relation.words and not re.search(relation.words, beside):
                yield Asked(relation.for_b.format(a=person), "no answer", {})
