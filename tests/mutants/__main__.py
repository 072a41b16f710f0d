"""`make mutants`: removes one guard after the other in a copy of the tree and shows which test turns red.

    python -m tests.mutants [--only PATTERN] [--keep]

Ends with status 1 where a guard can be removed without any of its tests noticing. The table goes into
docs/reliability.md.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import report
from tests.mutants.guard import Guard
from tests.mutants.guards import GUARDS

ROOT = Path(__file__).parents[2]
SECONDS = 300
RED, GREEN = 1, 0  # what pytest ends with


def main() -> int:
    """The whole command."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("--only", default="", help="guards whose name matches this pattern")
    parser.add_argument("--keep", action="store_true", help="do not write docs/reliability.md")
    asked = parser.parse_args()
    chosen = [guard for guard in GUARDS if re.search(asked.only, guard.name)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(Path(folder) / "tree")
        code, red = run(tree, [test for guard in chosen for test in guard.tests])
        if code != GREEN:
            print(f"With every guard in place these are red already: {', '.join(red) or 'pytest itself'}.")
            return 1
        told = {guard.name: noticed(tree, guard, keep=asked.keep) for guard in chosen}
    alive = [name for name, red in told.items() if not red]
    print(f"{len(told) - len(alive)} of {len(told)} guards are watched by a test.")
    if alive:
        print("Nothing noticed the removal of: " + ", ".join(alive))
    return 1 if alive else 0


def noticed(tree: Path, guard: Guard, *, keep: bool) -> list[str]:
    """The tests that turn red without the guard; written down as soon as that is known."""
    red = without(tree, guard)
    if not keep:
        row = (guard.name, guard.protects, ", ".join(red) or "**none**")
        report.guards([row], [one.name for one in GUARDS])
    return red


def copied(tree: Path) -> Path:
    """The files that git knows or would add, in a folder of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    for linked in (".venv", "web/node_modules"):
        if (ROOT / linked).exists() and not (tree / linked).exists():
            (tree / linked).symlink_to((ROOT / linked).resolve())
    return tree


def without(tree: Path, guard: Guard) -> list[str]:
    """The tests that turn red when the guard is removed from the tree."""
    began = time.monotonic()
    path = tree / guard.file
    whole = path.read_text()
    path.write_text(removed(whole, guard))
    code, named = run(tree, list(guard.tests))
    path.write_text(whole)
    red = named if code == RED else []
    seconds = time.monotonic() - began
    print(
        f"{seconds:4.0f} s  {'red  ' if red else 'GREEN'}  {guard.name}: {', '.join(named) or code}",
        flush=True,
    )
    return red


def removed(text: str, guard: Guard) -> str:
    """The file's text with the guard removed. Raises ValueError where it does not stand there once."""
    if text.count(guard.old) != 1:
        raise ValueError(f"«{guard.name}» stands {text.count(guard.old)} times in {guard.file}, not once.")
    return text.replace(guard.old, guard.new)


def run(tree: Path, tests: list[str]) -> tuple[int, list[str]]:
    """Pytest's status, and the tests that failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not bench",
        "-rfE",
        *dict.fromkeys(tests),
    ]
    surroundings = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=surroundings, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return RED, ["no end in sight"]
    named = re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)
    return done.returncode, list(dict.fromkeys(named))


if __name__ == "__main__":
    sys.exit(main())
