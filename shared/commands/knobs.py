"""A recipe's knobs as flags, drawn from its Spec."""

import argparse
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from shared import recipe as recipes
from shared.recipe import Recipe


def read(recipe: Recipe, words: list[str]) -> dict[str, Any]:
    """The knobs that are given, by name. Exits with a message for a flag that the recipe lacks."""
    return {
        name: value for name, value in vars(parser(recipe).parse_args(words)).items() if value is not None
    }


def parser(recipe: Recipe) -> argparse.ArgumentParser:
    """A flag for every knob, with its title, help and default."""
    made = argparse.ArgumentParser(
        prog="burnish job submit", usage=f"burnish job submit --recipe {recipe.name} --data … [knobs]",
        description=f"{recipe.title}: {recipe.summary}", add_help=False, allow_abbrev=False,
    )  # fmt: skip
    for name, field in recipe.spec.model_fields.items():
        made.add_argument("--" + name.replace("_", "-"), dest=name, **shape(field))
    return made


def shape(field: FieldInfo) -> dict[str, Any]:
    """How argparse reads the knob; the bounds are the server's to check."""
    kinds = members(field.annotation)
    choices = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    says = " ".join(part for part in (f"{field.title}.", field.description) if part).replace("%", "%%")
    flag: dict[str, Any] = {"help": f"{says} (default: {field.default})".replace("(default: None)", "")}
    if bool in kinds:
        return flag | {"action": argparse.BooleanOptionalAction}
    if choices:
        return flag | {"choices": choices}
    plain = next((kind for kind in (float, int) if kind in kinds), str)
    return flag | {"type": plain, "metavar": {int: "N", float: "X"}.get(plain, "TEXT")}


def members(annotation: Any) -> tuple[Any, ...]:
    """The types that a union names; a type alone is itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def method(recipe: Recipe, knobs: dict[str, Any]) -> dict[str, Any]:
    """The `method` of a request."""
    kind = recipes.wire_name(recipe)
    return {"type": kind, kind: {"hyperparameters": knobs}}
