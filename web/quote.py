"""What a training job will take, told before it is submitted: rows, steps, time, the queue, what is missing."""

import math
from dataclasses import dataclass, field

from sqlmodel import Session, col, select

from shared import workers
from shared.columns import now
from shared.recipe import Recipe
from shared.spec import Spec
from shared.tables import DatasetVersion, Job, Kind, Ready, Slot, State
from web import waiting

CHARACTERS_A_TOKEN = 4  # a rough mean over English text; the page says «about»


@dataclass
class Quote:
    """Figures and sentences for the panel beside the form. `missing` keeps the job from starting."""

    rows: int = 0
    trained: int = 0
    held_out: int = 0
    skipped: int = 0
    tokens: int | None = None
    steps: int | None = None
    seconds: tuple[float, float] | None = None
    outlook: waiting.Outlook | None = None
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def quote(
    db: Session,
    team_id: str,
    recipe: Recipe,
    spec: Spec | None,
    version: DatasetVersion | None,
    columns: dict[str, str],
    base_model_id: str | None,
    separate_valid: bool,
) -> Quote:
    """The quote for a draft; whatever is not known yet stays empty."""
    told = Quote()
    if version and version.state is Ready.READY:
        _count_rows(told, recipe, spec, version, columns, separate_valid)
    elif version:
        told.warnings.append("The dataset is still being read; the job waits for it by itself.")
    if spec and told.trained:
        characters = (told.tokens or 0) * CHARACTERS_A_TOKEN
        told.steps = steps(recipe.examples(told.trained, characters, spec), spec)
        told.seconds = past_pace(db, team_id, recipe, base_model_id, told.steps * spec.batch_size)
    _look_at_the_queue(db, team_id, told)
    return told


def steps(examples: int, spec: Spec) -> int:
    """Optimizer steps for that many examples."""
    full = math.ceil(math.ceil(examples / spec.batch_size) * spec.epochs)
    return max(1, min(full, spec.max_steps or full))


def _count_rows(
    told: Quote,
    recipe: Recipe,
    spec: Spec | None,
    version: DatasetVersion,
    columns: dict[str, str],
    separate_valid: bool,
) -> None:
    fit = version.report.get("fits", {}).get(recipe.name, {})
    told.rows, told.skipped = version.rows, fit.get("skipped", 0)
    usable = max(0, told.rows - told.skipped)
    fraction = 0 if separate_valid or spec is None else spec.valid_fraction
    told.held_out = 0 if separate_valid else round(usable * fraction)
    told.trained = usable - told.held_out
    lengths = {c["name"]: c.get("mean_length") or 0 for c in version.report.get("columns", [])}
    characters = sum(lengths.get(name, 0) for name in set(columns.values()))
    told.tokens = round(told.trained * characters / CHARACTERS_A_TOKEN) if characters else None
    if told.skipped:
        told.warnings.append(f"{told.skipped:,} of {told.rows:,} rows do not fit and are left out.")
    if spec and not separate_valid and told.held_out == 0 and told.rows:
        told.warnings.append("No rows are held out: there will be no scores to compare.")


def past_pace(
    db: Session, team_id: str, recipe: Recipe, base_model_id: str | None, examples: int
) -> tuple[float, float] | None:
    """Fastest and slowest guess in seconds, from the team's last five like jobs; None without any."""
    like = (
        select(Job)
        .where(
            Job.team_id == team_id,
            Job.kind == Kind.TRAIN,
            Job.recipe == recipe.name,
            Job.base_model_id == base_model_id,
            Job.state == State.SUCCEEDED,
        )
        .order_by(col(Job.id).desc())
        .limit(5)
    )
    paces = []
    for job in db.exec(like):
        seen = (job.progress.get("total_steps") or 0) * (job.spec.get("batch_size") or 0)
        if seen and job.started_at and job.finished_at:
            paces.append((job.finished_at - job.started_at).total_seconds() / seen)
    return (min(paces) * examples, max(paces) * examples) if paces else None


def _look_at_the_queue(db: Session, team_id: str, told: Quote) -> None:
    """As if the job were submitted now."""
    draft = Job(id="", team_id=team_id, kind=Kind.TRAIN, slot=Slot.COMPUTE, rank_at=now())
    told.outlook = waiting.outlook(db, draft)
    if not any(worker.slots.get(Slot.COMPUTE.value) for worker in workers.alive(db)):
        told.warnings.append("No worker is running just now; the job waits until one is.")
