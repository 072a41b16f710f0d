"""`make chaos`: the fault matrix, then a seeded soak, against real processes; writes docs/reliability.md.

    python -m tests.chaos [--seed N] [--minutes M] [--only F9,F16 | --only none] [--times T] [--keep]

Ends with status 1 where an invariant was broken; then the seed and the audit are printed.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from tests.chaos import audit, report
from tests.chaos.invariants import Broken, Figures
from tests.chaos.scenario import Scenario, matrix
from tests.chaos.soak import soak
from tests.chaos.world import SETTLE_SECONDS, World, world

BROKEN = "**broken**"


def main() -> int:
    """The whole command."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--only", default="", help="rows, with commas between them; «none»: the soak alone")
    parser.add_argument("--times", type=int, default=1, help="how often each row is run")
    parser.add_argument("--keep", action="store_true", help="do not write docs/reliability.md")
    asked = parser.parse_args()
    rows = {row for row in asked.only.split(",") if row}
    chosen = [s for s in matrix() if not rows or s.row in rows] * asked.times
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, world(Path(folder)) as running:
        failed = run_matrix(running, chosen, keep=asked.keep)
        if asked.minutes > 0:
            failed += run_soak(running, asked.seed, asked.minutes, keep=asked.keep)
    return 1 if failed else 0


def run_matrix(running: World, chosen: list[Scenario], *, keep: bool) -> int:
    """Every chosen scenario; how many failed. Each is written down as soon as it is over."""
    failed = 0
    for one in chosen:
        found, seen = run_one(running, one)
        failed += seen == BROKEN
        if not keep:
            report.matrix([(one.row, one.fault, one.expected, seen, found)])
    return failed


def run_one(running: World, one: Scenario) -> tuple[Figures | None, str]:
    """What it came to, and «as expected» or what else."""
    running.fresh()
    began = time.monotonic()
    try:
        one.run(running)
        found = running.settle()
    except Exception as broken:  # noqa: BLE001 - the other rows are run all the same
        told = str(broken) if isinstance(broken, Broken) else traceback.format_exc()
        recover(running)
        story = "" if isinstance(broken, Broken) else audit.story([job.id for job in running.jobs])
        print(f"BROKEN {one.name}", told, story, sep="\n", flush=True)
        with suppress(AssertionError):  # what it leaves does not stand in the way of the next one
            running.work.await_end(running.jobs, SETTLE_SECONDS)
        return broken.figures if isinstance(broken, Broken) else None, BROKEN
    print(f"{time.monotonic() - began:5.0f} s  {one.name}: as expected", flush=True)
    return found, "as expected"


def recover(running: World) -> None:
    """The cluster is whole again for the next scenario."""
    running.cluster.attack.unlink(missing_ok=True)
    running.cluster.heal()


def run_soak(running: World, seed: int, minutes: float, *, keep: bool) -> int:
    """One soak; 1 where it failed."""
    print(f"Soak of {minutes:g} minutes with seed {seed}", flush=True)
    soaked = soak(running, seed, minutes, lambda said: print(said, flush=True))
    print(soaked.problems, report.table(report.SOAK_HEAD, [report.of_soak(soaked)]), sep="\n", flush=True)
    if not keep:
        report.soak(soaked)
    return 1 if soaked.problems else 0


if __name__ == "__main__":
    sys.exit(main())
