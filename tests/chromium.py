"""Which Chromium drives the browser tests: an installed one, Playwright's own, or Debian's package.

`python -m tests.chromium` looks, gets one where it may, and says in one line what came of it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# the shell takes half of the processor's time; Debian has packages of the first two names
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of a usable Chromium; CHROMIUM names another."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    installed = next((path for name in NAMES if (path := shutil.which(name))), None)
    return installed or playwrights()


def playwrights() -> str | None:
    """The one that Playwright has downloaded, if it has."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def download() -> None:
    """Playwright's, else Debian's package where we are root. Leaves errors to the next look."""
    run([sys.executable, "-m", "playwright", "install", "chromium"])
    if find() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        run(["apt-get", "update", "-qq"])
        for package in NAMES[:2]:
            if find() is None:
                run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package])


def run(command: list[str]) -> None:
    """Run it to its end, at most ten minutes; its output is not ours to judge."""
    try:
        subprocess.run(command, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as failure:
        print(f"{command[0]}: {failure}")


def main() -> int:
    """0 where there is one, or where the suite may be skipped; 1 under CI=true without one."""
    if find() is None:
        print("No Chromium here; trying to get one.", flush=True)
        download()
    found = find()
    if found:
        print(f"Browser tests run in {found}.")
        return 0
    print("No Chromium can be had: the browser suite is skipped. Install one, or name it in CHROMIUM.")
    return 1 if os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
