"""Draws any Spec as a form and reads it back: one field a knob, bounds and help from the Spec itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.errors import Refused
from shared.recipe import Recipe
from shared.resources import MOST_PROCESSES
from shared.spec import Spec, resolve

MOST_HOURS = 10_000
TRUE = {"on", "true", "1", "yes"}


@dataclass(frozen=True)
class Knob:
    """One field of a Spec, as a form shows it. `kind`: number, integer, choice, check or text."""

    name: str
    title: str
    help: str
    kind: str
    default: Any
    options: tuple[str, ...]
    bounds: str
    advanced: bool
    optional: bool


PROCESSES = Knob(
    name="processes",
    title="Processes",
    help="Train it together, each on a share of every step; on GPUs, one each.",
    kind="integer",
    default=1,
    options=(),
    bounds=f"1 to {MOST_PROCESSES}",
    advanced=True,
    optional=False,
)
GPUS = replace(
    PROCESSES,
    name="gpus",
    title="GPUs",
    help="The worker must have that many; with 0 any worker will do.",
    default=0,
    bounds=f"0 to {MOST_PROCESSES}",
)
GPU_MEMORY = replace(
    GPUS,
    name="gpu_memory_gb",
    title="Memory of a GPU, in GB",
    help="Each of the worker's GPUs must have that much; 0: any.",
    bounds="",
)
CPUS = replace(
    GPUS, name="cpus", title="CPU cores", help="The worker must have that many; 0: any.", bounds=""
)
RUN_HOURS = replace(
    GPUS,
    name="max_run_hours",
    title="Longest run, in hours",
    help="Then it is stopped, its checkpoint kept; empty: as the team's page says.",
    kind="number",
    default=None,
    bounds="",
    optional=True,
)
NEEDS = (GPUS, GPU_MEMORY, CPUS, RUN_HOURS)  # of every job that computes
MACHINE = (PROCESSES, *NEEDS)  # of a training


def machine(form: Mapping[str, str], asked: Sequence[Knob] = MACHINE) -> dict[str, Any]:
    """What is asked of the worker, where it is not the default."""
    typed = {knob.name: _typed(knob, form.get(knob.name, "").strip()) for knob in asked}
    return {knob.name: typed[knob.name] for knob in asked if typed[knob.name] != knob.default}


def needs_of(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The part of it that an order calls its needs."""
    return {name: value for name, value in machine.items() if name not in ("processes", "max_run_hours")}


def machine_of(resources: Mapping[str, int], max_run_seconds: int | None) -> dict[str, Any]:
    """The same, of a job."""
    hours = max_run_seconds / 3600 if max_run_seconds else None
    known = {**resources, "max_run_hours": round(hours, 3) if hours else None}
    return {
        knob.name: known[knob.name] for knob in MACHINE if known.get(knob.name, knob.default) != knob.default
    }


def run_seconds(hours: Any) -> int | None:
    """Hours as typed, in seconds. Raises Refused."""
    if hours is None:
        return None
    if not isinstance(hours, int | float) or not 0 < hours < MOST_HOURS:
        raise Refused(f"The longest run is a number of hours; «{hours}» is not.", param="max_run_hours")
    return round(hours * 3600)


def knobs(spec: type[Spec]) -> list[Knob]:
    """The Spec's fields in their order."""
    described = spec.model_json_schema()["properties"]
    return [_knob(name, field, described[name]) for name, field in spec.model_fields.items()]


def _knob(name: str, field: Any, described: dict) -> Knob:
    alternatives = [d for d in described.get("anyOf", [described]) if d.get("type") != "null"]
    schema = alternatives[0] if alternatives else described
    kind = (
        "choice"
        if "enum" in schema
        else {"boolean": "check"}.get(schema.get("type"), schema.get("type", "text"))
    )
    return Knob(
        name=name,
        title=field.title or name,
        help=field.description or "",
        kind="text" if kind in ("string", "array", "object") else kind,
        default=field.default,
        options=tuple(str(option) for option in schema.get("enum", ())),
        bounds=_bounds(schema),
        advanced=bool((field.json_schema_extra or {}).get("advanced")),
        optional=len(alternatives) < len(described.get("anyOf", alternatives)),
    )


def _bounds(schema: dict) -> str:
    """The bounds in words: «1 to 1,024», «above 0, up to 1»."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{low:,g} to {high:,g}"
    said = [f"above {above:,g}"] if above is not None else [f"from {low:,g}"] if low is not None else []
    said += [f"up to {high:,g}"] if high is not None else [f"below {below:,g}"] if below is not None else []
    return ", ".join(said)


def read(spec: type[Spec], form: Mapping[str, str]) -> dict[str, Any]:
    """What was asked for: the knobs whose value is not the default. Text that is no number stays as
    typed, so that the error can quote it."""
    asked: dict[str, Any] = {}
    for knob in knobs(spec):
        if knob.kind == "check":
            value: Any = form.get(knob.name, "") in TRUE
            present = f"{knob.name}-shown" in form
        else:
            value, present = _typed(knob, form.get(knob.name, "").strip()), knob.name in form
        if present and value != knob.default and not (value is None and knob.default is None):
            asked[knob.name] = value
    return asked


def _typed(knob: Knob, text: str) -> Any:
    if text == "":
        return None if knob.optional else knob.default
    try:
        if knob.kind == "integer":
            return int(text.replace(",", ""))
        if knob.kind == "number":
            return float(text.replace(",", ""))
    except ValueError:
        pass
    return text


def problems(recipe: Recipe, asked: dict[str, Any]) -> dict[str, str]:
    """{knob: sentence} for every value that the Spec refuses, and for what it refuses together."""
    wrong: dict[str, str] = {}
    for name, value in asked.items():
        try:
            resolve(recipe, {name: value})
        except Refused as refusal:
            wrong[name] = refusal.message
    if not wrong:
        try:
            resolve(recipe, asked)
        except Refused as refusal:
            wrong[field_of(refusal)] = refusal.message
    return wrong


FIELDS = {  # the API's parameter: the form's field
    "training_file": "dataset",
    "dataset_version_id": "dataset",
    "valid_version_id": "valid",
    "validation_file": "valid",
    "base_model": "model",
    "base_model_id": "model",
    "checkpoint_id": "model",
    "suffix": "name",
    "type": "recipe",
    "completion_window": "dataset",
    "input_file_id": "dataset",
    "max_run_seconds": "max_run_hours",
}


def field_of(refusal: Refused) -> str:
    """The form's field that a refusal is about; empty for none."""
    parts = (refusal.param or "").split(".")
    if "columns" in parts[:-1]:
        return f"column-{parts[-1]}"
    if parts[-1] == "columns":
        return "columns"
    return FIELDS.get(parts[-1], parts[-1])
