"""Rows in, batches out: Parquet → canonical rows → encoded items (cached by hash) → the batch of a step.

Step N is the same batch in every attempt and for any number of ranks: it is a pure function of the
items' lengths, the seed and N.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shared.errors import Refused
from shared.learning.language_model import room
from shared.recipe import Item, Learner, Recipe
from shared.spec import LoraSpec, Spec, TextSpec
from worker.engine.events import Events
from worker.engine.items import Items, Packer
from worker.engine.memory import prune
from worker.engine.row_groups import RowGroups

PRIME = 1_000_003  # keeps the seeds of steps and items apart
MOST_ENCODED = 32  # datasets that are kept encoded
MOST_EVALUATED = 512  # held-out rows that an evaluation reads
NOT_ENCODED_WITH = set(LoraSpec.model_fields) - {"max_length"}  # knobs that leave the items as they are


class Rows(Sequence[dict[str, Any]]):
    """The usable rows of a Parquet file under the recipe's column names, read when they are asked for.

    `numbers[i]` is the row's number in the Parquet file, from 1; `refused` holds (number in the user's file,
    reason) of the rest.
    """

    def __init__(self, path: Path, recipe: Recipe, columns: dict[str, str]) -> None:
        self.path = path
        names = pq.read_schema(path).names
        self.stored = RowGroups(path, sorted({*names} & {*columns.values()}) or names[:1])
        self.recipe, self.columns = recipe, columns
        self.numbers = array("q")
        self.refused: list[tuple[int, str]] = []
        for number in range(1, len(self.stored) + 1):
            try:
                self.read(number)
            except Refused as wrong:
                self.refused.append((self.in_file(number), wrong.message))
            else:
                self.numbers.append(number)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        return self.read(self.numbers[place])

    def in_file(self, number: int) -> int:
        """The number in the user's file of row `number`; the two differ where the file had lines without a row."""
        known = self.stored.in_file
        return number if known is None else known[number - 1].as_py()

    def part(self, places: Sequence[int], refused: Sequence[tuple[int, str]] = ()) -> Rows:
        """The rows at these places, as rows of their own."""
        part = copy(self)
        part.numbers, part.refused = array("q", [self.numbers[place] for place in places]), list(refused)
        return part

    def read(self, number: int) -> dict[str, Any]:
        """Row `number` of the file, from 1. Raises Refused."""
        return self.recipe.canonical(self.stored[number - 1], self.columns)


class View(Sequence[dict[str, Any]]):
    """Some rows of a sequence, in the order of `places`."""

    def __init__(self, rows: Sequence[dict[str, Any]], places: Sequence[int]) -> None:
        self.rows, self.places = rows, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[self.places[place]]


class Both(Sequence[dict[str, Any]]):
    """The rows of two files one after the other: what a recipe reads its facts from."""

    def __init__(self, first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, place: Any) -> Any:
        before = len(self.first)
        return self.first[place] if place < before else self.second[place - before]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.first
        yield from self.second


def joins_rows(recipe: Recipe) -> bool:
    """Whether items of that recipe span rows, so that held-out rows must be encoded apart."""
    return type(recipe).encode_all is not Recipe.encode_all


def encode(rows: Rows, learner: Learner, recipe: Recipe, cache: Path | None, events: Events) -> Items:
    """Every row as items, read from the cache if the same rows were encoded so before.

    Rows that cannot be used are left out with a line in the log.
    """
    stored = cache / "encoded" / fingerprint(rows, learner, recipe) if cache else None
    if stored:
        with suppress(FileNotFoundError):
            return Items.load(stored)
    packer, refused = Packer(recipe.length, stored.parent if stored else None), list(rows.refused)
    try:
        for place, item in enumerate_encoded(rows, learner, recipe, refused):
            packer.add(place, item)
        if not len(packer):
            reason = refused[0][1] if refused else "the file has no rows."
            raise Refused(
                f"No row can be used. Row {refused[0][0] if refused else 1}: {reason}", param="training_file"
            )
        report(refused, events)
        packed = packer.packed()
        if stored is None:
            return packed
        packed.save(stored)
        prune(stored.parent, MOST_ENCODED)
    finally:
        packer.close()
    return Items.load(stored)


def enumerate_encoded(
    rows: Rows, learner: Learner, recipe: Recipe, refused: list[tuple[int, str]]
) -> Iterator[tuple[int, Item]]:
    """(place of the row, item) for usable rows; the others go to `refused`.

    A recipe that joins rows overrides `encode_all`; one that encodes row by row may refuse single rows.
    """
    if joins_rows(recipe):
        yield from recipe.encode_all(rows, learner)
        return
    for place in range(len(rows)):
        try:
            for item in recipe.encode(rows[place], learner):
                yield place, item
        except Refused as wrong:
            refused.append((rows.in_file(rows.numbers[place]), wrong.message))


def report(refused: list[tuple[int, str]], events: Events) -> None:
    """Say in the log which rows are left out."""
    if refused:
        first = "; ".join(f"row {number}: {reason}" for number, reason in sorted(refused)[:3])
        events.log(f"{len(refused)} rows are left out, as they cannot be used. {first}", "warn")


def fingerprint(rows: Rows, learner: Learner, recipe: Recipe) -> str:
    """What the encoded items depend on: the rows, the recipe's code, the tokenizer, how many tokens the model
    reads, facts and knobs.
    """
    digest = hashlib.sha256()
    with rows.path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(code_of(recipe))
    knobs = {name: value for name, value in learner.spec.model_dump().items() if name not in NOT_ENCODED_WITH}
    tokenizer = learner.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(tokenizer)
    told = [
        recipe.name,
        rows.columns,
        rows.numbers.tolist() if joins_rows(recipe) else [],
        knobs,
        learner.facts,
        words,
        room(learner, learner.spec.max_length) if isinstance(learner.spec, TextSpec) else None,
        str(getattr(tokenizer, "chat_template", "")),
    ]
    digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()[:40]


def code_of(recipe: Recipe) -> bytes:
    """A hash of the recipe's own code and of what recipes share."""
    digest = hashlib.sha256()
    for module in sorted(Path(encode.__code__.co_filename).parents[2].glob("shared/learning/*.py")):
        digest.update(module.read_bytes())
    digest.update(Path(inspect.getfile(type(recipe))).read_bytes())
    return digest.digest()


class Plan:
    """Which items make which step. `items` are places in `Items`; `lengths` theirs."""

    def __init__(self, places: list[int], lengths: list[int], spec: Spec, seed: int) -> None:
        self.places, self.lengths, self.seed = places, lengths, seed
        self.batch_size = spec.batch_size
        self.per_epoch = math.ceil(len(places) / spec.batch_size)
        wanted = math.ceil(spec.epochs * self.per_epoch - 1e-9)
        self.total = max(1, min(wanted, spec.max_steps or wanted))
        self.epoch: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """The items of step `step` (from 1), the longest last."""
        epoch, place = divmod(step - 1, self.per_epoch)
        if self.epoch[0] != epoch:
            self.epoch = (epoch, self.shuffled(epoch))
        return self.epoch[1][place]

    def shuffled(self, epoch: int) -> list[list[int]]:
        """An epoch's batches: random rows, so that no step learns from long or short ones alone."""
        order = list(range(len(self.places)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        return [[self.places[n] for n in sorted(batch, key=lambda n: self.lengths[n])] for batch in batches]


def seed_of(seed: int, step: int, item: int) -> int:
    """The seed of an item in a step."""
    return ((seed * PRIME + step) * PRIME + item) % 2**63


def portions(batch: list[int], lengths: dict[int, int] | list[int], budget: int) -> list[list[int]]:
    """A step's items (shortest first) in micro-batches of at most `budget` tokens, padding included."""
    parts: list[list[int]] = []
    for item in batch:
        if parts and (len(parts[-1]) + 1) * lengths[item] <= budget:
            parts[-1].append(item)
        else:
            parts.append([item])
    return parts


def least_padded(
    batch: list[int], lengths: dict[int, int] | list[int], budget: int, fixed: int
) -> list[list[int]]:
    """The same with as little padding as pays, where beginning a micro-batch costs as much as `fixed` tokens."""
    best, begin = [0], [0]  # of the first n items: what they cost, and where the last micro-batch begins
    for end in range(1, len(batch) + 1):
        longest = lengths[batch[end - 1]]
        first = max(0, min(end - 1, end - budget // max(longest, 1)))
        costs = [best[at] + (end - at) * longest + fixed for at in range(first, end)]
        best.append(min(costs))
        begin.append(first + costs.index(best[-1]))
    parts, end = [], len(batch)
    while end:
        parts.append(batch[begin[end] : end])
        end = begin[end]
    return parts[::-1]
