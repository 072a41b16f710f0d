"""`method` on the wire: which recipe, with which hyperparameters, and back again."""

from dataclasses import dataclass
from typing import Any

from shared import recipe as recipes
from shared.errors import Refused
from shared.recipe import Recipe

DEFAULT = "supervised"


@dataclass(frozen=True)
class Method:
    """A recipe and the hyperparameters as they came; `param` goes before their names in errors."""

    recipe: Recipe
    hyperparameters: dict[str, Any]
    param: str


def read(method: dict[str, Any] | None, hyperparameters: dict[str, Any] | None) -> Method:
    """The method that is asked for: `{"type": T, T: {"hyperparameters": {…}}}`, or OpenAI's older form
    with `hyperparameters` at the top. Raises Refused for an unknown recipe or key.
    """
    if method is None:
        return Method(recipes.get(DEFAULT), hyperparameters or {}, "hyperparameters.")
    kind = method.get("type")
    if not isinstance(kind, str):
        raise Refused(
            "Missing required parameter: 'method.type'.",
            param="method.type",
            code="missing_required_parameter",
        )
    recipe = recipes.get(kind)
    inner = method.get(kind)
    if unknown := sorted(set(method) - {"type", kind}):
        raise unrecognized(f"method.{unknown[0]}")
    if inner is None:
        return Method(recipe, hyperparameters or {}, "hyperparameters.")
    document(inner, f"method.{kind}")
    if unknown := sorted(set(inner) - {"hyperparameters"}):
        raise unrecognized(f"method.{kind}.{unknown[0]}")
    own = inner.get("hyperparameters")
    if own is None:
        return Method(recipe, hyperparameters or {}, "hyperparameters.")
    document(own, f"method.{kind}.hyperparameters")
    return Method(recipe, own, f"method.{kind}.hyperparameters.")


def write(recipe_name: str | None, spec: dict[str, Any], *, given: bool = False) -> dict[str, Any]:
    """A job's method: every knob with the value that counts, under our name and OpenAI's; `given`: only
    what was asked for, as it was.
    """
    recipe = recipes.recipes().get(recipe_name or "")
    if recipe is None:
        return {"type": recipe_name or DEFAULT}
    kind = recipes.wire_name(recipe)
    return {"type": kind, kind: {"hyperparameters": spec if given else openai_names(recipe, spec) | spec}}


def openai_names(recipe: Recipe | None, spec: dict[str, Any]) -> dict[str, Any]:
    """`n_epochs`, `batch_size` and `learning_rate_multiplier` of a spec; whole epochs as integers."""
    epochs, rate = spec.get("epochs"), spec.get("learning_rate")
    usual = recipe.spec.model_fields["learning_rate"].default if recipe else None
    return {
        "n_epochs": int(epochs) if epochs is not None and epochs == int(epochs) else epochs,
        "batch_size": spec.get("batch_size"),
        "learning_rate_multiplier": round(rate / usual, 6) if rate and usual else None,
    }


def document(value: Any, param: str) -> None:
    """Raises Refused where the value is no object."""
    if not isinstance(value, dict):
        raise Refused(f"Invalid type for '{param}': expected an object.", param=param, code="invalid_type")


def unrecognized(param: str) -> Refused:
    """The refusal of a key that means nothing here."""
    return Refused(f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
