"""A Spec: the knobs of a recipe. One class is the form, the API schema, the flags and the docs table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import Refused

if TYPE_CHECKING:
    from shared.recipe import Recipe


def knob(default: Any, *, title: str, help: str = "", advanced: bool = False, **bounds: Any) -> Any:
    """A field of a Spec: what the form draws, the API checks and the docs list."""
    extra: Any = {"advanced": advanced}
    return Field(default, title=title, description=help, json_schema_extra=extra, **bounds)


class Spec(BaseModel):
    """Knobs that every training recipe has. A recipe's Spec adds its own and sets its defaults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    from_scratch: ClassVar[bool] = False  # whether training may start without weights

    epochs: float = knob(3, gt=0, le=100, title="Epochs", help="Times that every row is seen.")
    batch_size: int = knob(8, ge=1, le=1024, title="Batch size", help="Rows in one optimizer step.")
    learning_rate: float = knob(
        2e-5, gt=0, le=1, title="Learning rate", help="Peak of the learning-rate schedule."
    )
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
    optimizer: Literal["adamw", "adam", "sgd"] = knob(
        "adamw", title="Optimizer", help="sgd has a momentum of 0.9.", advanced=True
    )
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

    @classmethod
    def usual_rate(cls, *, scratch: bool) -> float:  # noqa: ARG003 - for recipes that start both ways
        """The learning rate where none is asked for."""
        return cls.model_fields["learning_rate"].default

    def settled(self, *, scratch: bool) -> Self:  # noqa: ARG002 - for recipes that start both ways
        """The same with what depends on the start decided: from scratch or from learned weights."""
        return self


class TextSpec(Spec):
    """Knobs of recipes that read text."""

    max_length: int = knob(512, ge=8, le=131_072, title="Longest row", help="Tokens; longer rows are cut.")


class LoraSpec(TextSpec):
    """Knobs of recipes that can train an adapter instead of the full weights."""

    method: Literal["lora", "full"] = knob(
        "lora", title="Weights", help="lora trains a small adapter, full every weight."
    )
    lora_rank: int = knob(16, ge=1, le=512, title="LoRA rank", advanced=True)
    lora_alpha: int = knob(
        32, ge=1, le=1024, title="LoRA alpha", help="Scale of the adapter: alpha / rank.", advanced=True
    )
    lora_dropout: float = knob(0.0, ge=0, lt=1, title="LoRA dropout", advanced=True)


class ChatSpec(LoraSpec):
    """Knobs of recipes over conversations."""

    max_length: int = knob(
        1024, ge=8, le=131_072, title="Longest row", help="Tokens; longer conversations are cut at the end."
    )
    system: str = knob(
        "",
        max_length=4000,
        title="System message",
        help="Put in front of every conversation that has none, in training and in answers.",
        advanced=True,
    )


class ScratchSpec(TextSpec):
    """Knobs of recipes that can start from scratch, and then train a tokenizer first."""

    from_scratch: ClassVar[bool] = True

    tokenizer: Literal["bpe", "characters", "bytes"] = knob(
        "bpe",
        title="Tokenizer",
        help="How text is cut into tokens. Only read from scratch; a base model brings its own.",
        advanced=True,
    )
    vocab_size: int = knob(
        2048,
        ge=64,
        le=262_144,
        title="Vocabulary",
        help="Tokens that the tokenizer may learn. Only read from scratch.",
        advanced=True,
    )


class PretrainSpec(ScratchSpec):
    """Knobs of recipes that read on from a base model as well as they start from scratch."""

    learning_rate: float | None = knob(  # ty: ignore[incompatible-attribute-override] - open until `settled`
        None,
        gt=0,
        le=1,
        title="Learning rate",
        help="Peak of the learning-rate schedule. Empty: 0.003 from scratch, 0.0001 from learned weights.",
    )

    @classmethod
    def usual_rate(cls, *, scratch: bool) -> float:
        """New weights bear a much higher one than learned weights."""
        return 3e-3 if scratch else 1e-4

    def settled(self, *, scratch: bool) -> Self:
        """With a learning rate."""
        rate = self.usual_rate(scratch=scratch) if self.learning_rate is None else self.learning_rate
        return self.model_copy(update={"learning_rate": rate})


class DiffusionSpec(Spec):
    """Knobs of recipes that generate by diffusion, from scratch or from an earlier checkpoint."""

    from_scratch: ClassVar[bool] = True

    epochs: float = knob(50, gt=0, le=10_000, title="Epochs", help="Times that every row is seen.")
    batch_size: int = knob(64, ge=1, le=4096, title="Batch size", help="Rows in one optimizer step.")
    learning_rate: float = knob(
        1e-3, gt=0, le=1, title="Learning rate", help="Peak of the learning-rate schedule."
    )
    guidance: float = knob(
        2.0,
        ge=1,
        le=20,
        title="Guidance",
        help="How strongly an answer keeps to what is asked for; 1 turns it off and takes half the time.",
    )
    sampling_steps: int = knob(
        24,
        ge=1,
        le=1000,
        title="Sampling steps",
        help="From noise to an answer; more of them are finer and slower.",
        advanced=True,
    )
    unconditional: float = knob(
        0.1,
        ge=0,
        le=0.9,
        title="Rows without what they show",
        help="Share of the rows that are learned without label or caption; guidance needs them.",
        advanced=True,
    )


OPENAI_NAMES = {"n_epochs": "epochs"}


def resolve(recipe: Recipe, asked: dict[str, Any], param: str = "", *, scratch: bool | None = None) -> Spec:
    """The recipe's Spec from what was asked: OpenAI's names are understood, «auto» is the default,
    `learning_rate_multiplier` scales the default rate. Raises Refused naming the first bad field.

    `scratch`: whether training starts without weights; None: not known yet, what depends on it stays open.
    """
    values = {OPENAI_NAMES.get(k, k): v for k, v in asked.items() if v not in ("auto", None, "")}
    multiplier = values.pop("learning_rate_multiplier", None)
    try:
        if multiplier is not None:
            usual = recipe.spec.usual_rate(scratch=bool(scratch))
            values.setdefault("learning_rate", float(multiplier) * usual)
        spec = recipe.spec.model_validate(values)
    except (ValidationError, TypeError, ValueError) as wrong:
        raise refused(recipe, wrong, param) from None
    return spec if scratch is None else spec.settled(scratch=scratch)


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
