"""How numbers, sizes, times and states read on a page. Pure functions; `web.layout` makes them filters."""

import json
import math
from datetime import UTC, datetime
from typing import Any, TypeGuard

from shared.room import gib

MINUTE, HOUR, DAY = 60, 3600, 86_400
SIZES = ("bytes", "kB", "MB", "GB", "TB")


def known(value: Any) -> TypeGuard[float]:
    """Whether it is a number; templates also ask about what a document does not have."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def count(value: float | None) -> str:
    """1234567 as «1,234,567»; nothing as a dash."""
    return f"{round(value):,}" if known(value) else "–"


def figure(value: Any) -> str:
    """A loss, a rate or a score with three significant digits."""
    if not known(value):
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole >= 3:
        return f"{value:,.0f}"
    leading = 0 if abs(value) >= 0.1 or not value else -math.floor(math.log10(abs(value))) - 1
    return f"{value:.{3 - whole + leading}f}"


def plain(value: Any) -> str:
    """A knob's value as a person would type it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def size(value: float | None) -> str:
    """Bytes with a unit: 4100000 as «4.1 MB»."""
    if not known(value):
        return "–"
    power = 0
    while value >= 1000 and power < len(SIZES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.0f} {SIZES[power]}" if power == 0 or value >= 100 else f"{value:.1f} {SIZES[power]}"


def span(seconds: float | None) -> str:
    """A duration: «12 m 04 s», «3 h 20 m», «2 d 4 h»."""
    if not known(seconds):
        return "–"
    whole = max(0, int(seconds))
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} m {whole % MINUTE:02d} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02d} m"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def about(seconds: float | None) -> str:
    """A reckoned duration, no finer than it is known: «about 12 min», «within moments», «not known yet»."""
    if not known(seconds):
        return "not known yet"
    if seconds < MINUTE:
        return "within moments" if seconds < 5 else "in less than a minute"
    if seconds < 1.5 * HOUR:
        return f"in about {round(seconds / MINUTE)} min"
    if seconds < 2 * DAY:
        return f"in about {round(seconds / HOUR)} h"
    return f"in about {round(seconds / DAY)} days"


def plural(number: int, one: str, many: str = "") -> str:
    """«1 job», «1,200 jobs»."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def ago(moment: datetime | None, at: datetime | None = None) -> str:
    """How long before or after `at` (now) a moment is: «4 m ago», «in 3 h»; a date beyond a month."""
    if moment is None:
        return "–"
    away = ((at or datetime.now(UTC)) - moment).total_seconds()
    distance = abs(away)
    if distance < 10:
        return "just now" if away >= 0 else "now"
    if distance >= 30 * DAY:
        return f"{moment:%-d %b %Y}"
    number, unit = next(
        (int(distance // length), unit)
        for length, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (1, "s"))
        if distance >= length
    )
    return f"{number} {unit} ago" if away >= 0 else f"in {number} {unit}"


def absolute(moment: datetime | None) -> str:
    """The moment itself, in UTC; the browser puts it in the reader's zone."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(moment: datetime | None) -> str:
    """For `<time datetime>`."""
    return "" if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


def share(part: float | None, whole: float | None) -> int:
    """Whole per cent, 0 where it cannot be said."""
    return min(100, int(100 * part / whole)) if known(part) and known(whole) and part and whole else 0


def short(text: Any, length: int = 300) -> str:
    """Text cut to a length, with an ellipsis where something is missing."""
    said = str(text)
    return said if len(said) <= length else said[: length - 1] + "…"


def change(base: Any, now: Any, better: str = "lower") -> str:
    """How far a score moved: in per cent for losses («−36 %»), by itself for shares («+0.08»)."""
    if not known(base) or not known(now):
        return ""
    moved = now - base
    sign = "+" if moved > 0 else "−" if moved < 0 else "±"
    if better == "higher":
        return f"{sign}{abs(moved):.2f}" if abs(moved) >= 0.01 else f"{sign}{abs(moved):.3f}"
    percent = 100 * abs(moved) / abs(base) if base else 0
    return f"{sign}{percent:.0f} %" if percent >= 1 else f"{sign}{percent:.1f} %"


def servable(manifest: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files of a checkpoint that people download, named as in its folder."""
    kept = [entry for entry in manifest if entry["name"].startswith("servable/")]
    return [entry | {"name": entry["name"].removeprefix("servable/")} for entry in kept]


def same(names: list[str]) -> list[tuple[str, str]]:
    """Options whose value is their word."""
    return [(name, name) for name in names]


def pairs(rows: list[Any], value: str, word: str) -> list[tuple[str, str]]:
    """Options from rows: one attribute is the value, another its word."""
    return [(getattr(row, value), getattr(row, word)) for row in rows]


def tuned_pairs(rows: list[tuple[Any, Any]]) -> list[tuple[str, str]]:
    """Options from (checkpoint, its job)."""
    return [(point.id, f"{job.name or job.id}, step {point.step:,}") for point, job in rows]


def spoken(value: Any) -> Any:
    """Text, labels or messages as text; a picture or sound as it is: {"media": its name}."""
    if isinstance(value, dict) and "media" in value:
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in value)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def line(row: Any) -> str:
    """A row as one line of JSONL; a picture or sound by what it is."""
    return json.dumps(row, ensure_ascii=False, default=media_word)


def media_word(content: bytes) -> str:
    """What bytes in a row are."""
    return "PNG picture" if content.startswith(b"\x89PNG") else "WAV sound"


FILTERS = {
    f.__name__: f
    for f in (
        count,
        figure,
        plain,
        size,
        gib,
        span,
        about,
        plural,
        ago,
        absolute,
        iso,
        share,
        short,
        change,
        servable,
        spoken,
        same,
        line,
        pairs,
        tuned_pairs,
    )
}
