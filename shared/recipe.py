"""What a recipe must say: its Spec (`shared.spec`), its columns, its metrics, and the hooks with which
the engine builds, trains, evaluates and answers. Each hook has a good default.

It stands in `shared` because the form and the loss are one file, and only `shared` may be imported
by web and worker both. Torch is imported inside the hooks alone.
"""

from __future__ import annotations

import pkgutil
import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from shared.errors import Refused
from shared.sampling import Sampling
from shared.spec import Spec


@dataclass(frozen=True)
class Column:
    """A column that the recipe reads. `kind` is what a cell must be."""

    name: str
    help: str
    kind: Literal["text", "messages", "label", "labels", "answers", "image", "audio"] = "text"
    output: bool = False  # what is learned; prediction inputs lack it
    required: bool = True


@dataclass(frozen=True)
class Metric:
    """A number that the recipe reports, and which way is better. Stored as `valid_<name>`."""

    name: str
    title: str
    better: Literal["higher", "lower"]


@dataclass(frozen=True)
class Finding:
    """Something wrong in the data. `row` counts from 1 as in the user's file; None: all of it."""

    message: str
    row: int | None = None
    column: str | None = None
    fatal: bool = True  # False: the row is left out and training goes on


MAX_FINDINGS = 100


class Media(NamedTuple):
    """A picture or a sound that a recipe made; the engine stores it and puts its name in its place."""

    suffix: Literal["png", "wav"]
    content: bytes


Item = dict[str, Any]  # one encoded example: numbers, lists of numbers, text; what a cache can hold
Batch = dict[str, Any]  # tensors by name


class Loss(NamedTuple):
    """A micro-batch's loss as a sum and its weight, so that batches add up exactly.

    `total` is differentiable; the step's loss is the sum of totals over the sum of weights (answer
    tokens, rows …).
    """

    total: Any
    weight: float


Judged = dict[str, Any]  # what was found of one row, as JSON: sums by name, or a truth and a guess


class Scores(NamedTuple):
    """An evaluation: the declared metrics, and what a page draws in detail."""

    metrics: dict[str, float]
    detail: dict[str, Any] = {}


PROBES = 4  # rows of the example that an export is asked


class Agreement(NamedTuple):
    """Whether an export is the model that was trained, and a sentence with the figures for a page.

    `equal` is the share of the answers (tokens, labels …) that are equal, `largest_difference` lies between
    two scores of the same answer (logits, probabilities, levels …).
    """

    same: bool
    said: str
    equal: float
    largest_difference: float


@dataclass
class Learner:
    """What the hooks work on. `model` is None until the weights are loaded.

    `facts` are JSON: what `Recipe.facts` read from the data (the labels …); they travel with every
    checkpoint. `source` is the folder of the base model, None from scratch: then `preset` names the
    architecture and its size (`shared.presets`). `frozen` is a second copy of the weights as they were,
    where the recipe needs a reference that is not the model with its adapter off.
    """

    spec: Any
    facts: dict[str, Any]
    tokenizer: Any = None
    model: Any = None
    source: Path | None = None
    preset: dict[str, Any] = field(default_factory=dict)
    frozen: Any = None
    packs: bool | None = None  # whether batches are packed; None: not tried yet

    @property
    def device(self) -> Any:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @contextmanager
    def reference(self) -> Generator[Any]:
        """The model as it was before training, without dropout: the adapter off, or the frozen copy."""
        if self.frozen is not None:
            yield self.frozen
            return
        training = self.model.training
        self.model.eval()
        try:
            with self.model.disable_adapter():
                yield self.model
        finally:
            self.model.train(training)


class Recipe:
    """One method. Subclass it, set the class attributes, override what differs, and leave one
    instance called `recipe` in a file of `shared/recipes/`; the folder is the list.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]  # one sentence for the form's card
    paper: ClassVar[str] = ""
    api_type: ClassVar[str] = ""  # method.type on the wire where it is not the name
    endpoint: ClassVar[str] = "/v1/predictions"  # of its batches
    spec: ClassVar[type[Spec]]
    columns: ClassVar[tuple[Column, ...]]
    example: ClassVar[list[dict[str, Any]]]  # rows that train in a second; shown beside the upload
    metrics: ClassVar[tuple[Metric, ...]]  # the first one picks the best checkpoint
    head: ClassVar[str]  # what a base model must offer: «causal_lm», «encoder», «seq2seq», «diffusion»
    default_base_model: ClassVar[str]
    family: ClassVar[str] = "Fine-tuning"  # the heading that it stands under in the form
    place: ClassVar[int] = 100  # where it stands in lists: smaller is earlier
    needs_reference: ClassVar[bool] = False  # `Learner.reference` is called in the loss
    library: ClassVar[str] = "transformers"  # loads its checkpoints
    samples_with: ClassVar[tuple[str, ...]] = ()  # the names in `Sampling` that its `predict` reads
    needs_facts: ClassVar[bool] = False  # only a checkpoint of its own can answer, no plain base model
    opens_with: ClassVar[str] = "AutoModelForCausalLM"  # what loads a downloaded full model, of transformers
    agrees: ClassVar[str] = (  # what the page of an export says
        "{equal} of {count} example rows get the same answer, and no score differs by more than {largest}."
    )

    @property
    def from_scratch(self) -> bool:
        """Whether it can start without weights, from an architecture preset."""
        return self.spec.from_scratch

    # Data, without torch: the web and the importer call these.
    def recognise(self, columns: Iterable[str]) -> dict[str, str] | None:
        """{this recipe's column: the dataset's column} for shapes known without asking, else None."""
        names = set(columns)
        found = {c.name: c.name for c in self.columns if c.name in names}
        return found if all(c.name in found for c in self.columns if c.required) else None

    def canonical(self, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
        """The dataset's row under this recipe's column names. Raises Refused with the reason."""
        return {mine: row.get(theirs) for mine, theirs in columns.items()}

    def lacks(self, columns: dict[str, str]) -> str | None:
        """A sentence if this mapping leaves out a column that the recipe cannot do without."""
        missing = [f"«{c.name}» ({c.help})" for c in self.columns if c.required and c.name not in columns]
        return f"{self.title} needs a column for {', '.join(missing)}." if missing else None

    def check(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> list[Finding]:
        """What is wrong with the rows (at most 100 findings); row numbers count from 1."""
        if lacking := self.lacks(columns):
            return [Finding(lacking)]
        of_rows: dict[bool, list[Finding]] = {True: [], False: []}
        of_all, more = [], 0
        for found in self.found(rows, columns):
            if found.row is None:
                of_all.append(found)
            elif len(of_rows[found.fatal]) < MAX_FINDINGS // 2:
                of_rows[found.fatal].append(found)
            else:
                more += 1
        if more:
            of_all.append(Finding(f"{more} more rows have something like this.", fatal=False))
        return sorted(of_rows[True] + of_rows[False], key=lambda found: found.row or 0) + of_all

    def found(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """The findings. A row at which they break is a fatal one, and nothing behind it is checked."""
        number = 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal number
            for row in rows:
                number += 1
                yield row

        try:
            yield from self.findings(counted(), columns)
        except Exception as wrong:  # noqa: BLE001 - a cell that nobody thought of
            yield Finding(
                f"This row cannot be read ({type(wrong).__name__}). Mend it or take it out.", number
            )

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Every finding, row by row."""
        raise NotImplementedError

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """The part of a canonical row that a prediction starts from: it leaves out what is learned."""
        outputs = {c.name for c in self.columns if c.output}
        return {name: value for name, value in row.items() if name not in outputs}

    def examples(self, rows: int, characters: int, spec: Any) -> int:
        """About how many items so many rows with so many characters make, for the estimate of steps."""
        return rows

    # What is learned from the data before any weight is loaded.
    def facts(self, rows: Sequence[dict[str, Any]], spec: Any, earlier: dict[str, Any]) -> dict[str, Any]:
        """What the model's shape depends on (the labels …), from the canonical rows; JSON.

        `earlier` are those of the checkpoint that training starts from; {} for a base model.
        """
        return {}

    def split(
        self, rows: Sequence[dict[str, Any]], fraction: float, seed: int
    ) -> tuple[list[int], list[int]]:
        """Row numbers (from 0) to train on, and those held out; the same for the same seed."""
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        held = min(len(rows) - 1, max(1, round(fraction * len(rows)))) if fraction > 0 else 0
        return sorted(order[held:]), sorted(order[:held])

    # Building: torch and its friends are imported inside, from here on.
    def load_tokenizer(self, folder: Path, rows: Sequence[dict[str, Any]], spec: Any) -> Any:
        """The tokenizer of the base model or checkpoint in `folder`."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    def train_tokenizer(self, rows: Sequence[dict[str, Any]], spec: Any) -> Any:
        """A tokenizer for a model from scratch, learned from the rows; None where there is no text."""
        from shared.learning.tokenizers import train

        return train(self.texts(rows), spec)

    def texts(self, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
        """What a tokenizer learns from: every text of the rows."""
        for row in rows:
            yield from (value for value in row.values() if isinstance(value, str))

    def load_model(self, learner: Learner, folder: Path) -> Any:
        """The weights in float32, as the base model or a full checkpoint in `folder` has them."""
        from shared.learning.language_model import load

        return load(folder)

    def build_model(self, learner: Learner) -> Any:
        """New weights of the architecture that `learner.preset` names, drawn from torch's generator."""
        raise NotImplementedError

    def lora(self, learner: Learner) -> Any:
        """The adapter to attach where `spec.method` is lora."""
        from peft import LoraConfig

        spec = learner.spec
        return LoraConfig(
            r=spec.lora_rank,
            lora_alpha=spec.lora_alpha,
            lora_dropout=spec.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )

    def save(self, learner: Learner, weights: dict[str, Any], folder: Path) -> None:
        """Write full weights so that `load_model` and plain `from_pretrained` read them.

        `weights` is a copied state dict; the live model may be training meanwhile.
        """
        learner.model.save_pretrained(folder, state_dict=weights)

    # Training.
    def encode(self, row: dict[str, Any], learner: Learner) -> list[Item]:
        """A canonical row as items (windows of a long text are several). Raises Refused to leave it out."""
        raise NotImplementedError

    def encode_all(self, rows: Sequence[dict[str, Any]], learner: Learner) -> Iterator[tuple[int, Item]]:
        """(row number from 0, item) of every usable row. Override to join rows into blocks: rows that are
        held out are then encoded apart from the others, so that no block spans both.
        """
        for number, row in enumerate(rows):
            for item in self.encode(row, learner):
                yield number, item

    def length(self, item: Item) -> int:
        """What an item costs, in tokens: batches are grouped by it."""
        return max((len(value) for value in item.values() if isinstance(value, list)), default=1)

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """Items as one batch of tensors; may draw random numbers (masks, noise). What comes from
        `shared.learning.batch.dice(item)` is the item's own in this step, so that a batch may be cut
        into any micro-batches; torch's generator is seeded by the micro-batch.
        """
        from shared.learning.batch import pad

        return pad(items, learner.tokenizer)

    def loss(self, learner: Learner, batch: Batch) -> Loss:
        """The differentiable loss of a micro-batch."""
        raise NotImplementedError

    # Judging and answering; the engine has switched gradients and dropout off.
    def evaluate(
        self, learner: Learner, rows: Sequence[dict[str, Any]], batches: Iterable[tuple[list[Item], Batch]]
    ) -> Scores:
        """The declared metrics over held-out items; `item["row"]` is the item's place in `rows`."""
        return self.measure(list(self.judge(learner, rows, batches).values()), learner.facts)

    def judge(
        self, learner: Learner, rows: Sequence[dict[str, Any]], batches: Iterable[tuple[list[Item], Batch]]
    ) -> dict[int, Judged]:
        """{place in `rows`: what was found of it}, by the hooks below. An evaluation calls them itself, a
        batch or some rows at a time, keeps what they return as JSON, and goes on from there after a kill.
        """
        asked, items = self.asks(learner, rows), dict[int, Item]()
        found: dict[int, Judged] = {}
        for part, batch in batches:
            add_up(found, part, self.judged_items(learner, part, batch))
            items |= {item["row"]: item for item in part} if asked else {}
        found = self.settled(learner, rows, found)
        for place, more in self.answered(learner, rows, items, asked).items() if asked else ():
            found[place] = found[place] | more
        return found

    def judged(self, learner: Learner, batch: Batch) -> list[Judged]:
        """What is found of each item of a batch: sums by name for `scored`, or what `measure` reads."""
        raise NotImplementedError

    def judged_items(self, learner: Learner, items: list[Item], batch: Batch) -> list[Judged]:
        """The same, where that takes more of the items than stands in the batch; JSON. What several items of a
        row give is added up: numbers as sums, lists end to end.
        """
        return self.judged(learner, batch)

    def settled(
        self, learner: Learner, rows: Sequence[dict[str, Any]], found: dict[int, Judged]
    ) -> dict[int, Judged]:
        """The same once all items of all rows are judged: what only a whole row tells."""
        return found

    def asks(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[int]:
        """Places of the rows that the model also writes an answer to, for metrics of what it writes."""
        return []

    def answered(
        self,
        learner: Learner,
        rows: Sequence[dict[str, Any]],
        items: Mapping[int, Item],
        places: Sequence[int],
    ) -> dict[int, Judged]:
        """{place: what is found in the answer to that row}, added to what was judged; `items` are those of all
        rows. An evaluation asks for some of `asks` at a time: the same ones in every attempt.
        """
        raise NotImplementedError

    def measure(self, found: list[Judged], facts: dict[str, Any]) -> Scores:
        """The declared metrics of these rows; called again on samples of them for confidence intervals."""
        sums: Judged = {}
        for judged in found:
            sums = added(sums, judged)
        return Scores(self.scored(sums))

    def scored(self, sums: Judged) -> dict[str, float]:
        """The declared metrics from the sums of `judged`, here `loss` and `weight`."""
        return {"loss": sums["loss"] / max(sums["weight"], 1e-9)}

    def row_score(self, judged: Judged, facts: dict[str, Any]) -> float:
        """How well one row went, by the recipe's first metric in its direction."""
        return self.measure([judged], facts).metrics[self.metrics[0].name]

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the model makes of a few rows: [{prompt, expected, answer}]; an answer may be Media."""
        return []

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """A prediction's input as an item. Raises Refused with what is wrong with it."""
        raise NotImplementedError

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """An output for each item: JSON, whose values may be Media."""
        raise NotImplementedError

    def usage(self, learner: Learner) -> str:
        """Python that loads and asks a downloaded checkpoint, for its card."""
        return ""

    # Exporting: is what was written what was trained?
    def probes(self, learner: Learner) -> list[dict[str, Any]]:
        """What the trained model and its export are both asked: the inputs of some rows of the example."""
        columns = self.recognise(self.example[0]) or {}
        return [self.input(self.canonical(row, columns)) for row in self.example[:PROBES]]

    def opened(self, folder: Path, learner: Learner) -> Learner:
        """The full model in `folder` as its user opens it: by the library alone, with nothing of ours."""
        import transformers

        model = getattr(transformers, self.opens_with).from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return replace(learner, tokenizer=tokenizer, model=model.eval(), packs=None)

    def shown(self, learner: Learner, probes: list[dict[str, Any]]) -> list[Any]:
        """What a model makes of each probe, as JSON; the engine has switched gradients and dropout off."""
        items = [self.encode_input(probe, learner) for probe in probes]
        return self.predict(learner, items, [Sampling()] * len(items))

    def agreement(self, trained: list[Any], export: list[Any]) -> Agreement:
        """How alike is what `shown` gave of the trained model and of its export."""
        from shared.learning.agreement import of_answers

        return of_answers(trained, export, self.agrees)


def added(sums: Judged, more: Judged) -> Judged:
    """Sums by name, added up."""
    return {name: sums.get(name, 0) + value for name, value in more.items()}


def add_up(found: dict[int, Judged], items: Iterable[Item], judged: Iterable[Judged]) -> None:
    """Adds what was found of items to {place: what was found of the row}."""
    for item, one in zip(items, judged, strict=True):
        known = found.get(item["row"])
        found[item["row"]] = added(known, one) if known else one


def wire_name(recipe: Recipe) -> str:
    """The recipe's name as `method.type` on the wire."""
    return recipe.api_type or recipe.name


@lru_cache(maxsize=1)
def recipes() -> dict[str, Recipe]:
    """Every recipe by name, in the order of lists; the folder is the list. Loads no training library."""
    import shared.recipes as folder

    found = [
        import_module(f"{folder.__name__}.{m.name}").recipe for m in pkgutil.iter_modules(folder.__path__)
    ]
    return {recipe.name: recipe for recipe in sorted(found, key=lambda one: (one.place, one.name))}


def get(name: str) -> Recipe:
    """The recipe of that name, or of that `method.type`. Raises Refused."""
    for recipe in recipes().values():
        if name in (recipe.name, recipe.api_type):
            return recipe
    known = ", ".join(f"'{wire_name(r)}'" for r in recipes().values())
    raise Refused(f"Invalid value: '{name}'. Supported values are: {known}.", param="method.type")
