"""What a failed job opens on: what happened, why, what to do, and the one button that does it.

`shared.stories` tells what a reason code means. A button posts (`fields` is not None) or leads to a form or page
that is filled in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from sqlmodel import Session, col, select

from shared import checkpoints, imports, orders
from shared.errors import Refused
from shared.orders import Order
from shared.recipe import recipes
from shared.stories import story
from shared.tables import (
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetVersion,
    Job,
    JobDependency,
    Kind,
    State,
)
from web.words import count, figure


@dataclass(frozen=True)
class Button:
    """The way on: a form that posts these fields, or a link where there are none to post."""

    label: str
    address: str
    fields: dict[str, str] | None = None


@dataclass(frozen=True)
class Case:
    """A failed job with what its button may need."""

    job: Job
    resumable: Checkpoint | None = None  # the newest that a training can go on from
    cause: Button | None = None  # leads to what it waited for and did not get
    source: Button | None = None  # leads to what it was made for: a dataset, a model, a training
    again: bool = True  # another try makes sense

    @property
    def at(self) -> str:
        """The job's address."""
        return f"/jobs/{self.job.id}"


Remedy = Callable[[Case], Button]


@dataclass(frozen=True)
class Card:
    """A story told of one job."""

    title: str
    why: str
    advice: str
    button: Button
    where: str = ""


# --- what a button does -----------------------------------------------------------------------------


def try_again(case: Case) -> Button:
    """The same order once more; where that makes no sense, what it was to make."""
    if not case.again and case.source:
        return case.source
    return Button("Try again", f"{case.at}/retry", {})


def go_on(case: Case) -> Button:
    """From the newest checkpoint, where there is one."""
    if case.resumable is None:
        return try_again(case)
    said = f"Resume from step {count(case.resumable.step)}"
    return Button(said, f"{case.at}/retry", {"checkpoint": case.resumable.id})


def change(case: Case) -> Button:
    """With the knobs that the reason calls for; where none does, the form."""
    told = changes(case.job)
    if not told:
        return mend(case)
    ((knob, value),) = told.items()
    return Button(CHANGED[knob].format(value=shown(value)), f"{case.at}/mend", {})


def mend(case: Case) -> Button:
    """The form that made it, filled in, at the field that is wrong."""
    job = case.job
    if job.kind is Kind.TRAIN:
        return Button(wrong_field(job), f"/jobs/new?{urlencode({'from': job.id, 'mend': 1})}")
    if job.kind in (Kind.EVALUATE, Kind.INFER) and job.dataset_version_id:
        page = "evaluations" if job.kind is Kind.EVALUATE else "batches"
        filled = {"model": job.checkpoint_id or job.base_model_id, "dataset": job.dataset_version_id}
        return Button("Change the settings", f"/{page}/new?{urlencode(filled)}")
    return case.source or try_again(case)


def to_cause(case: Case) -> Button:
    """To the job, dataset or model that it waited for."""
    return case.cause or try_again(case)


def to_source(case: Case) -> Button:
    """To what an import or export was made for."""
    return case.source or mend(case)


CHANGED = {  # knob: the button's words
    "batch_size": "Retry with half the batch ({value})",
    "max_length": "Retry with rows half as long ({value} tokens)",
    "learning_rate": "Retry with a third of the learning rate ({value})",
}
FIELDS = {  # the parameter that is wrong: the button's words
    "columns": "Choose other columns",
    "training_file": "Choose another dataset",
    "validation_file": "Choose another validation set",
    "dataset": "Choose another dataset",
    "model": "Choose another model",
}
SHORTEST_ROW = 16
SAME_STEPS = {"learning_rate"}  # knobs that leave the steps of a training what they were


def wrong_field(job: Job) -> str:
    """A button's words for the field that the reason names."""
    param, recipe = (job.reason_param or "").rsplit(".", 1)[-1], recipes().get(job.recipe or "")
    if recipe and any(param == column.name for column in recipe.columns):
        return f"Choose another column for «{param}»"
    if recipe and (knob := recipe.spec.model_fields.get(param)):
        return f"Change «{knob.title or param}»"
    return FIELDS.get(param, "Change the settings")


def changes(job: Job) -> dict[str, Any]:
    """{knob: value} that another try should have, by the reason; empty: nobody can say without looking.

    A trainer whose device is too small has already gone down to single rows by itself, so that a smaller
    batch would not help it: shorter rows do, or an adapter. A machine whose kernel kills is helped by both.
    """
    if job.kind is not Kind.TRAIN or job.recipe not in recipes():
        return {}
    spec = job.spec
    if job.reason_code == "diverged" and spec.get("learning_rate"):
        return {"learning_rate": float(f"{spec['learning_rate'] / 3:.2e}")}
    half = {"batch_size": spec["batch_size"] // 2} if (spec.get("batch_size") or 0) > 1 else {}
    shorter = (
        {"max_length": spec["max_length"] // 2} if (spec.get("max_length") or 0) >= 2 * SHORTEST_ROW else {}
    )
    if job.reason_code == "host_out_of_memory":
        return half or shorter
    if job.reason_code == "out_of_memory":
        return shorter or half
    return {}


def mended(job: Job, actor: str, created_by: str | None) -> Order:
    """The order that this failed job was, with what its button changes; where that makes other steps, from the
    first one on. Raises Refused where it changes nothing.
    """
    told = changes(job)
    if job.state is not State.FAILED or not told:
        raise Refused(
            f"Nothing is known to change about {job.id}. Choose its settings by «Clone».", param="id"
        )
    order = orders.again(job, actor, created_by)
    if not told.keys() <= SAME_STEPS:
        order = replace(order, resume_checkpoint_id=None)
    asked = dict(order.asked)
    if isinstance(asked.get("hyperparameters"), dict):
        asked["hyperparameters"] = asked["hyperparameters"] | told
    return replace(order, hyperparameters=order.hyperparameters | told, asked=asked)


def shown(value: Any) -> str:
    """A knob's value on a button."""
    return count(value) if isinstance(value, int) else figure(value) if isinstance(value, float) else value


REMEDIES: dict[str, Remedy] = {
    remedy.__name__: remedy for remedy in (try_again, go_on, change, mend, to_cause, to_source)
}


# --- the card ---------------------------------------------------------------------------------------


def card(db: Session, job: Job, stored: Sequence[Checkpoint]) -> Card | None:
    """The story of this job, whose checkpoints are `stored`, newest first; None while it goes well."""
    if job.state not in (State.FAILED, State.CANCELLED):
        return None
    told, step = story(job.reason_code), job.progress.get("step")
    again = imports.may_be_repeated(db, job)
    case = Case(job, resumable(job, stored), cause(db, job), source(db, job), again)
    return Card(
        title=f"{told.title}, at step {count(step)}" if step and job.kind is Kind.TRAIN else told.title,
        why=job.reason or "No reason was given.",
        advice=told.advice,
        button=REMEDIES[told.remedy](case),
        where=job.reason_param or "",
    )


def resumable(job: Job, stored: Sequence[Checkpoint]) -> Checkpoint | None:
    """The newest checkpoint that a training can go on from."""
    whole = (point for point in stored if checkpoints.is_whole(point))
    return next(whole, None) if job.kind is Kind.TRAIN else None


def cause(db: Session, job: Job) -> Button | None:
    """To what the job that failed before it was to make, or to that job."""
    before = select(Job).join(JobDependency, col(JobDependency.waits_for_id) == Job.id)
    ended = (JobDependency.job_id == job.id, col(Job.state).in_((State.FAILED, State.CANCELLED)))
    other = db.exec(before.where(*ended).order_by(col(Job.id))).first()
    if other is None:
        return None
    return source(db, other) or Button("Open the job that it waited for", f"/jobs/{other.id}")


def source(db: Session, job: Job) -> Button | None:
    """To the dataset or model that an import was to read, or the training that an export was made of."""
    if job.kind is Kind.EXPORT and (point := db.get(Checkpoint, job.checkpoint_id or "")):
        return Button("Open the training's downloads", f"/jobs/{point.job_id}#downloads")
    if job.kind is not Kind.IMPORT:
        return None
    if version := db.get(DatasetVersion, job.dataset_version_id or ""):
        name = db.get_one(Dataset, version.dataset_id).name
        return Button(
            f"Open the dataset «{name}»", f"/datasets/{version.dataset_id}?version={version.number}"
        )
    if base := db.get(BaseModel, job.base_model_id or ""):
        return Button(f"Open the model «{base.title}»", f"/models/{base.id}")
    return None
