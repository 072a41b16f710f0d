"""One attempt as the engine sees it: a folder with `attempt.json`, and the ways in which it may end."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from shared.recipe import Recipe, get
from shared.spec import Spec

DONE, USER, MEMORY, DISK, DIVERGED, STOPPED, CRASHED = 0, 10, 20, 30, 40, 75, 1


class Diverged(Exception):
    """The loss was not a number too often; the last checkpoint is still good."""


class Stopped(Exception):
    """Somebody asked for an end (SIGTERM); what was saved lets another attempt go on."""


class Start(BaseModel):
    """Where weights come from: a base model or full checkpoint, and an adapter on it."""

    base_model: Path
    adapter: Path | None = None


class Attempt(BaseModel):
    """`attempt.json`. Paths are on this machine; `seed` decides every draw."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    folder: Path
    kind: Literal["train", "evaluate", "infer", "export", "import", "import_base_model"]
    job: str = ""
    recipe: str | None = None
    spec: dict[str, Any] = {}
    seed: int = 0
    columns: dict[str, str] = {}
    base_model: Path | None = None
    adapter: Path | None = None
    preset: dict[str, Any] = {}  # of a model from scratch
    reference: Start | None = None  # what the judged model was trained from, where that matters
    processes: int = 1
    train: Path | None = None
    valid: Path | None = None
    resume: Path | None = None
    cache: Path | None = None
    device: str = "auto"  # or several with commas between them: one for each process
    threads: int | None = None
    card: dict[str, Any] = {}
    requests: Path | None = None
    form: str = "merged"
    source: Path | None = None
    filename: str = ""
    package: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Attempt:
        """The attempt of that folder."""
        given = json.loads((folder / "attempt.json").read_text())
        return cls(**given, folder=folder.resolve())

    @cached_property
    def method(self) -> Recipe:
        """Its recipe. Raises Refused for an unknown name."""
        return get(self.recipe or "")

    @cached_property
    def knobs(self) -> Spec:
        """Its spec as the recipe's own type."""
        return self.method.spec.model_validate(self.spec).settled(scratch=bool(self.preset))

    @property
    def artifacts(self) -> Path:
        """Where outputs go; made when asked for."""
        path = self.folder / "artifacts"
        path.mkdir(exist_ok=True)
        return path

    @property
    def media(self) -> Path:
        """Where pictures and sounds of samples go; made when asked for."""
        path = self.folder / "media"
        path.mkdir(exist_ok=True)
        return path


class Stop:
    """Listens for SIGTERM: training ends after its step, anything else where it is; and for SIGUSR1: what was
    trained so far is enough, so that the training is ended properly at this step.
    """

    def __init__(self) -> None:
        self.requested = False
        self.enough = False
        self.patient = False

    def listen(self) -> Stop:
        """Take the signals over; call it in the main thread."""
        signal.signal(signal.SIGTERM, self.heard)
        signal.signal(signal.SIGUSR1, self.heard_enough)
        return self

    @contextmanager
    def later(self) -> Generator[None]:
        """A stop that is asked for inside waits for the end of the block."""
        self.patient = True
        yield
        self.patient = False
        if self.requested:
            sys.exit(STOPPED)

    def heard_enough(self, *_: Any) -> None:
        """The handler of SIGUSR1. Before the first step there is nothing to keep."""
        self.enough = True
        if not self.patient:
            sys.exit(STOPPED)

    def heard(self, *_: Any) -> None:
        """The handler of SIGTERM."""
        self.requested = True
        if not self.patient:
            sys.exit(STOPPED)
