"""Code completion learns: how Python is spelled, which lines fit where they stand, and what a suffix tells of them.

The code is the short ones of the files by which networkx tests itself, whole files of them held out. Bits per
character are compared with a character trigram's; filled gaps with nothing, with what an untrained model writes and
with the ends of random lines of the same files; the loss of what stands in a gap with its own suffix in sight is
compared with its loss with that of another gap, so that what differs is what the suffix says. (The loss without a
suffix is printed: at this size a suffix costs about what it tells.)
"""

import math
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch

from shared import presets
from shared.learning import infilling, syntax
from shared.learning.batch import IGNORED
from shared.learning.language_model import answer_sums, collate, collate_blocks
from shared.recipe import Learner
from shared.recipes.code import LINE, NEAR, Code, Gap, chosen, near
from tests.attempts import checkpoints, events, run_here, write_attempt
from tests.generators import reopened
from tests.imports import imported, zipped
from tests.proofs.conftest import Found
from tests.proofs.trigram import trigram

pytestmark = pytest.mark.slow
CODE = Code()
PRESET = presets.preset("scratch/llama-tiny")
LONGEST = 6_000  # characters of a file
GAPS = 150
SEEN = 200  # characters before a gap, with a suffix as without, so that the suffix takes no room from them
SEED = 7

Rows = list[dict[str, Any]]


def files() -> dict[str, str]:
    """{path: content}, in the order of their paths."""
    root = Path(networkx.__file__).parent
    found = {str(path.relative_to(root)): path.read_text() for path in sorted(root.glob("**/tests/*.py"))}
    return {path: content for path, content in found.items() if 0 < len(content) <= LONGEST}


@torch.no_grad()
def summed(learner: Learner, batches: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """(loss, tokens) of all batches."""
    found = [one for batch in batches for one in answer_sums(learner.model, batch)]
    return sum(one["loss"] for one in found), sum(one["weight"] for one in found)


def bits(learner: Learner, rows: Rows) -> float:
    """Bits per character of files as they stand, piece by piece."""
    longest = learner.spec.max_length
    pieces = [
        ids for row in rows for ids in infilling.sequences(row["content"], learner.tokenizer, longest, 0)
    ]
    loss, _ = summed(learner, (collate_blocks([{"input_ids": ids}]) for ids in pieces))
    return loss / math.log(2) / sum(len(row["content"]) for row in rows)


def middles(learner: Learner, gaps: list[Gap], suffixes: list[str] | None) -> float:
    """The loss a token of what was in the gaps, behind these suffixes or none."""
    known = infilling.marks(learner.tokenizer)

    def asked(gap: Gap, suffix: str | None) -> dict[str, Any]:
        before, line = (infilling.tokens(text, learner.tokenizer) for text in (near(gap)["prompt"], gap.line))
        after = None if suffix is None else infilling.tokens(suffix, learner.tokenizer)
        prompt = infilling.question(before, after, known, NEAR - LINE.max_tokens)
        return {"input_ids": prompt + line, "labels": [IGNORED] * len(prompt) + line}

    items = [asked(gap, suffix) for gap, suffix in zip(gaps, suffixes or [None] * len(gaps), strict=True)]
    loss, tokens = summed(learner, (collate([item], learner) for item in items))
    return loss / tokens


class Holes:
    """Places in files that are valid as they are, and whether lines written there leave them so."""

    def __init__(self, rows: Rows, most: int) -> None:
        found = [(rows[place]["path"], gap) for place, gap in chosen(rows, list(range(len(rows))), most)]
        self.places = [one for one in found if syntax.valid(one[0], "".join(one[1]))]
        self.gaps = [gap for _, gap in self.places]

    def valid(self, lines: list[str]) -> float:
        """The share of files that are valid with these lines in them."""
        filled = zip(self.places, lines, strict=False)
        checked = [syntax.valid(path, gap.before + line + gap.after) for (path, gap), line in filled]
        return sum(checked) / len(checked)


def trained(folder: Path) -> tuple[Learner, Rows, Rows]:
    """(the learner, the files that it learned, those held out): from a zip, everything as it is by default."""
    (folder / "import").mkdir()
    made = imported(folder / "import", "networkx.zip", zipped(files()))
    attempt = write_attempt(
        folder / "attempt",
        recipe="code",
        spec={"max_length": 256, "batch_size": 4, "evaluations": 1},
        columns=CODE.recognise(made.rows[0]),
        preset=PRESET,
        seed=SEED,
        threads=None,
        train=made.folder / "artifacts" / "data.parquet",
    )
    assert run_here(attempt) == 0, events(attempt, "error")
    learned, held = CODE.split(made.rows, CODE.spec().valid_fraction, SEED)
    learner = reopened(checkpoints(attempt)[-1] / "servable", "code")
    return learner, [made.rows[place] for place in learned], [made.rows[place] for place in held]


def untrained(learner: Learner) -> Learner:
    """The same with new weights."""
    fresh = replace(learner, preset=PRESET)
    return replace(fresh, model=CODE.build_model(fresh).eval())


def test_it_completes_code_that_it_has_never_seen(tmp_path: Path, found: Found):
    learner, learned, held = trained(tmp_path)
    baseline = trigram(*("".join(row["content"] for row in rows) for rows in (learned, held)))
    reached = bits(learner, held)
    found(f"{reached:.3f} bits per character; trigram: {baseline:.3f}")

    holes, others = Holes(held, GAPS), Holes(learned, 2 * GAPS).gaps
    ends = [gap.line for gap in random.Random(SEED).sample(others, len(holes.gaps))]
    open_ended = [gap._replace(after="") for gap in holes.gaps]
    shares = {
        "filled in": holes.valid(CODE.filled(learner, holes.gaps)),
        "completed": holes.valid(CODE.filled(learner, open_ended)),
        "untrained": holes.valid(CODE.filled(untrained(learner), holes.gaps)),
        "random ends": holes.valid(ends),
        "nothing": holes.valid([""] * len(holes.gaps)),
    }
    valid = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    found(f"valid of {len(holes.gaps)}: {valid}")

    gaps = [gap._replace(before=gap.before[-SEEN:]) for gap in holes.gaps]
    own = [near(gap)["suffix"] for gap in gaps]
    with_it, without, with_other = (
        middles(learner, gaps, suffixes) for suffixes in (own, None, own[1:] + own[:1])
    )
    found(f"loss on middles: with suffix {with_it:.3f}, without {without:.3f}, with another {with_other:.3f}")
    assert reached < baseline
    assert min(shares["filled in"], shares["completed"]) > max(
        shares["untrained"], shares["random ends"], shares["nothing"]
    )
    assert with_it < with_other
