"""What a recipe must say: its Spec (the form, the API schema, the flags), its columns, its metrics,
and the hooks with which the engine trains, evaluates and answers.

It stands in `shared` because the form and the loss are one file, and only `shared` may be imported
by web and worker both. Torch is imported inside the hooks alone.
"""

from __future__ import annotations

import pkgutil
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import Refused


def knob(default: Any, *, title: str, help: str = "", advanced: bool = False, **bounds: Any) -> Any:
    """A field of a Spec: what the form draws, the API checks and the docs list."""
    extra: Any = {"advanced": advanced}
    return Field(default, title=title, description=help, json_schema_extra=extra, **bounds)


class Spec(BaseModel):
    """Knobs that every training recipe has. A recipe's Spec adds its own and sets its defaults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epochs: float = knob(3, gt=0, le=100, title="Epochs", help="Times that every row is seen.")
    batch_size: int = knob(8, ge=1, le=1024, title="Batch size", help="Rows in one optimizer step.")
    learning_rate: float = knob(
        2e-5, gt=0, le=1, title="Learning rate", help="Peak of the learning-rate schedule."
    )
    max_length: int = knob(512, ge=8, le=131_072, title="Longest row", help="Tokens; longer rows are cut.")
    valid_fraction: float = knob(
        0.1,
        ge=0,
        le=0.5,
        title="Held out",
        help="Share of the rows kept for validation where no validation set is given.",
    )
    max_steps: int | None = knob(
        None,
        ge=1,
        le=10_000_000,
        title="Most steps",
        help="Ends earlier than the epochs would.",
        advanced=True,
    )
    optimizer: Literal["adamw", "adam", "sgd"] = knob("adamw", title="Optimizer", advanced=True)
    learning_rate_schedule: Literal["linear", "cosine", "constant"] = knob(
        "linear", title="Learning-rate schedule", advanced=True
    )
    warmup_fraction: float = knob(
        0.05, ge=0, le=0.5, title="Warm-up", help="Share of the steps until the peak.", advanced=True
    )
    weight_decay: float = knob(0.01, ge=0, le=1, title="Weight decay", advanced=True)
    max_grad_norm: float = knob(
        1.0, ge=0, le=1000, title="Gradient clipping", help="Largest norm; 0 turns it off.", advanced=True
    )
    evaluations: int = knob(
        5,
        ge=1,
        le=100,
        title="Evaluations",
        help="Spread over the training, the last one included.",
        advanced=True,
    )
    checkpoints: int = knob(
        3,
        ge=1,
        le=50,
        title="Checkpoints",
        help="Spread over the training, the last one included.",
        advanced=True,
    )
    patience: int | None = knob(
        None,
        ge=1,
        le=100,
        title="Early stopping",
        help="Evaluations without a better score before it stops.",
        advanced=True,
    )
    checkpoint_minutes: float = knob(
        20,
        gt=0,
        le=1440,
        title="Longest time without a checkpoint",
        help="Minutes; what a crash may cost at most.",
        advanced=True,
    )


class LoraSpec(Spec):
    """Knobs of recipes that can train an adapter instead of the full weights."""

    method: Literal["lora", "full"] = knob(
        "lora", title="Weights", help="lora trains a small adapter, full every weight."
    )
    lora_rank: int = knob(16, ge=1, le=512, title="LoRA rank", advanced=True)
    lora_alpha: int = knob(
        32, ge=1, le=1024, title="LoRA alpha", help="Scale of the adapter: alpha / rank.", advanced=True
    )
    lora_dropout: float = knob(0.0, ge=0, lt=1, title="LoRA dropout", advanced=True)


@dataclass(frozen=True)
class Column:
    """A column that the recipe reads. `kind` is what a cell must be."""

    name: str
    help: str
    kind: Literal["text", "messages", "label", "labels"] = "text"
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


@dataclass
class Sampling:
    """How text is generated; temperature 0 is greedy."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)


Item = dict[str, Any]  # one encoded example: numbers, lists of numbers, text; what a cache can hold
Batch = dict[str, Any]  # tensors by name


class Loss(NamedTuple):
    """A micro-batch's loss as a sum and its weight, so that batches add up exactly.

    `total` is differentiable; the step's loss is the sum of totals over the sum of weights (answer
    tokens, rows …). `extra` holds more sums, floats or tensors, that `scored` turns into metrics.
    """

    total: Any
    weight: float
    extra: dict[str, Any] = {}


class Scores(NamedTuple):
    """An evaluation: the declared metrics, and what a page draws in detail."""

    metrics: dict[str, float]
    detail: dict[str, Any] = {}


@dataclass
class Learner:
    """What the hooks work on. `model` is None until the weights are loaded.

    `facts` are JSON: what `Recipe.facts` read from the data (the labels …); they travel with every
    checkpoint. `source` is the folder of the base model; `frozen` a second copy of the weights as
    they were, where the recipe needs a reference and trains every weight.
    """

    spec: Any
    facts: dict[str, Any]
    tokenizer: Any = None
    model: Any = None
    source: Path | None = None
    frozen: Any = None
    packs: bool | None = None  # whether batches are packed; None: not tried yet

    @property
    def device(self) -> Any:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @contextmanager
    def reference(self) -> Generator[Any]:
        """The model as it was before training: the adapter off, or the frozen copy."""
        if self.frozen is not None:
            yield self.frozen
        else:
            with self.model.disable_adapter():
                yield self.model


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
    head: ClassVar[str]  # what a base model must offer: «causal_lm», «encoder»
    default_base_model: ClassVar[str]
    place: ClassVar[int] = 100  # where it stands in lists: smaller is earlier
    needs_reference: ClassVar[bool] = False  # `Learner.reference` is called in the loss
    needs_facts: ClassVar[bool] = False  # only a checkpoint of its own can answer, no plain base model

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
        for found in self.findings(rows, columns):
            if found.row is None:
                of_all.append(found)
            elif len(of_rows[found.fatal]) < MAX_FINDINGS // 2:
                of_rows[found.fatal].append(found)
            else:
                more += 1
        if more:
            of_all.append(Finding(f"{more} more rows have something like this.", fatal=False))
        return sorted(of_rows[True] + of_rows[False], key=lambda found: found.row or 0) + of_all

    def findings(self, rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> Iterator[Finding]:
        """Every finding, row by row."""
        raise NotImplementedError

    def input(self, row: dict[str, Any]) -> dict[str, Any]:
        """The part of a canonical row that a prediction starts from: it leaves out what is learned."""
        outputs = {c.name for c in self.columns if c.output}
        return {name: value for name, value in row.items() if name not in outputs}

    # What is learned from the data before any weight is loaded.
    def facts(self, rows: Sequence[dict[str, Any]], spec: Any) -> dict[str, Any]:
        """What the model's shape depends on (the labels …), from the canonical rows; JSON."""
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
    def load_tokenizer(self, folder: Any, rows: Sequence[dict[str, Any]], spec: Any) -> Any:
        """The tokenizer of the base model; a recipe that starts from scratch trains one on `rows`."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    def load_model(self, learner: Learner, folder: Any) -> Any:
        """The weights in float32, as the base model or a full checkpoint has them."""
        from shared.learning.language_model import load

        return load(folder)

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
        """(row number from 0, item) of every usable row. Override to pack rows into blocks."""
        for number, row in enumerate(rows):
            for item in self.encode(row, learner):
                yield number, item

    def length(self, item: Item) -> int:
        """What an item costs, in tokens: batches are grouped by it."""
        return max((len(value) for value in item.values() if isinstance(value, list)), default=1)

    def collate(self, items: list[Item], learner: Learner) -> Batch:
        """Items as one batch of tensors; may draw random numbers (masks, noise): the step seeds them."""
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
        sums: dict[str, float] = {"loss": 0.0, "weight": 0.0}
        for _, batch in batches:
            loss = self.loss(learner, batch)
            sums["loss"] += float(loss.total)
            sums["weight"] += loss.weight
            for name, value in loss.extra.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return Scores(self.scored(sums))

    def scored(self, sums: dict[str, float]) -> dict[str, float]:
        """The declared metrics from the sums of `loss` (loss, weight and every extra)."""
        return {"loss": sums["loss"] / max(sums["weight"], 1e-9)}

    def sample(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the model makes of a few held-out rows: [{prompt, expected, answer}]."""
        return []

    def encode_input(self, given: dict[str, Any], learner: Learner) -> Item:
        """A prediction's input as an item. Raises Refused with what is wrong with it."""
        raise NotImplementedError

    def predict(self, learner: Learner, items: list[Item], sampling: list[Sampling]) -> list[Any]:
        """An output for each item, JSON."""
        raise NotImplementedError

    def usage(self, learner: Learner) -> str:
        """Python that loads and asks a downloaded checkpoint, for its card."""
        return ""


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


OPENAI_NAMES = {"n_epochs": "epochs"}


def resolve(recipe: Recipe, asked: dict[str, Any], param: str = "") -> Spec:
    """The recipe's Spec from what was asked: OpenAI's names are understood, «auto» is the default,
    `learning_rate_multiplier` scales the default rate. Raises Refused naming the first bad field.
    """
    values = {OPENAI_NAMES.get(k, k): v for k, v in asked.items() if v not in ("auto", None, "")}
    multiplier = values.pop("learning_rate_multiplier", None)
    try:
        if multiplier is not None:
            values.setdefault(
                "learning_rate", float(multiplier) * recipe.spec.model_fields["learning_rate"].default
            )
        return recipe.spec.model_validate(values)
    except (ValidationError, TypeError, ValueError) as wrong:
        raise refused(recipe, wrong, param) from None


def refused(recipe: Recipe, wrong: Exception, param: str) -> Refused:
    """A sentence for the first thing that is wrong with a Spec."""
    if not isinstance(wrong, ValidationError):
        return Refused(
            "«learning_rate_multiplier» must be a number.", param=f"{param}learning_rate_multiplier"
        )
    first = wrong.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    known = recipe.spec.model_fields.get(name)
    if known is None:
        names = ", ".join(recipe.spec.model_fields)
        return Refused(
            f"Unrecognized hyperparameter «{name}». «{recipe.name}» has: {names}.",
            param=param + name,
            code="unknown_parameter",
        )
    said = first["msg"].replace("Input should", "It must").rstrip(".")
    return Refused(f"{known.title} ({name}) cannot be {first['input']!r}. {said}.", param=param + name)
