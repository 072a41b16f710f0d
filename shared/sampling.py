"""How answers are made: the knobs that a request, a form or a command may turn, and their bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.errors import Refused


@dataclass
class Sampling:
    """How text is generated; temperature 0 is greedy."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    beams: int = 1  # more than one: beam search, which is deterministic
    guidance: float | None = None  # of a diffusion model; None: as it was trained to be used


class Knob(NamedTuple):
    """A number among them, as a form shows it, and its bounds."""

    title: str
    help: str
    low: float
    high: float
    whole: bool = False


KNOBS = {
    "max_tokens": Knob("Longest answer", "Tokens.", 1, 32_768, whole=True),
    "temperature": Knob("Temperature", "0 always takes the likeliest token.", 0, 2),
    "top_p": Knob(
        "Top p", "Draws among the likeliest tokens that have this share together; 1 keeps all.", 0, 1
    ),
    "top_k": Knob(
        "Top k", "Draws among this many of the likeliest tokens; 0 keeps all.", 0, 1_000_000, whole=True
    ),
    "beams": Knob("Beams", "More than 1 searches for the likeliest answer as a whole.", 1, 16, whole=True),
    "seed": Knob(
        "Seed", "The same seed draws the same; row n is drawn with seed + n.", -(2**63), 2**63 - 1, whole=True
    ),
    "guidance": Knob(
        "Guidance", "How strongly the wish is followed; empty is as the model was trained.", 0, 50
    ),
}
STOPS = 4


def checked(given: dict[str, Any], reads: Iterable[str], param: str = "") -> dict[str, Any]:
    """The values of `Sampling` that are given; null and «auto» are not.

    `reads` are the knobs that the recipe reads. Raises Refused naming `param` + the knob.
    """
    reads = list(reads)
    known: dict[str, Any] = {}
    for name, value in given.items():
        if value in (None, "", "auto", []):
            continue
        if name not in reads:
            raise unread(name, reads, param)
        known[name] = stops(value, param) if name == "stop" else number(name, value, param)
    if known.get("beams", 1) > 1 and known.get("temperature", 0) > 0:
        raise Refused(
            "Beam search draws nothing: leave out 'temperature', or set 'beams' to 1.", param=f"{param}beams"
        )
    return known


def number(name: str, value: Any, param: str) -> float:
    """The value, where it is a number within its knob's bounds. Raises Refused."""
    knob = KNOBS[name]
    wanted = int if knob.whole else int | float
    if isinstance(value, bool) or not isinstance(value, wanted) or not knob.low <= value <= knob.high:
        kind = "a whole number" if knob.whole else "a number"
        raise Refused(f"'{name}' must be {kind} from {knob.low} to {knob.high}.", param=param + name)
    return value


def parsed(name: str, text: str) -> Any:
    """The number that a form sent for a knob, or the text where it is none."""
    try:
        return int(text) if KNOBS[name].whole else float(text)
    except ValueError:
        return text


def stops(value: Any, param: str) -> list[str]:
    """The texts that end an answer. Raises Refused."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > STOPS or not all(isinstance(t, str) and t for t in texts):
        raise Refused(f"'stop' must be a text or at most {STOPS} texts.", param=f"{param}stop")
    return texts


def unread(name: str, reads: list[str], param: str) -> Refused:
    """The refusal of a knob that would change nothing."""
    known = f"It reads: {', '.join(reads)}." if reads else "It reads none."
    return Refused(
        f"'{name}' would change nothing in this model's answers. {known}",
        param=param + name,
        code="unsupported_parameter",
    )
