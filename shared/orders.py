"""An order: what is asked of a job, before it is one. Everything is checked here, once."""

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlmodel import Session, select

from shared import base_models, checkpoints, datasets, resources, sampling
from shared import recipe as recipes
from shared.errors import Refused
from shared.ids import new_id
from shared.spec import Spec, resolve
from shared.tables import BaseModel, Checkpoint, DatasetVersion, File, Job, Kind, Ready, Slot

PREFIXES = {
    Kind.TRAIN: "ftjob-",
    Kind.INFER: "batch_",
    Kind.EXPORT: "export-",
    Kind.IMPORT: "import-",
    Kind.EVALUATE: "evaluate-",
}
LIGHT = (Kind.IMPORT, Kind.EXPORT)
HIGHEST_PRIORITY = 100
LONGEST_NAME = 200
SHORTEST_RUN, LONGEST_RUN = 60, 365 * 86_400  # seconds
NEWER = ("needs", "max_run_seconds", "resume_checkpoint_id")  # fields that older fingerprints lack
CHAT = "/v1/chat/completions"

ImportNeeded = Callable[[BaseModel], Job]


@dataclass(kw_only=True)
class Order:
    """What a form, an API call, a schedule or a command asks for. Ids are the team's own.

    `model` is a base model's id, an `ft:` name or a checkpoint's id; `param` goes before the names of
    hyperparameters in errors (`method.supervised.hyperparameters.`); `asked` is kept as it came.
    """

    team_id: str
    kind: Kind = Kind.TRAIN
    recipe: str | None = None
    model: str | None = None
    dataset_version_id: str | None = None
    valid_version_id: str | None = None
    file_id: str | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] | None = None
    name: str = ""
    seed: int | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    created_by: str | None = None
    actor: str = ""
    schedule_id: str | None = None
    retry_of: str | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    needs: dict[str, int] = field(default_factory=dict)  # gpus, gpu_memory_gb, cpus: see shared.resources
    max_run_seconds: int | None = None  # the team's where none is given
    resume_checkpoint_id: str | None = None  # another job's, whose training it goes on with
    param: str = ""


@dataclass
class Accepted:
    """A job's row, not stored yet, and the ids of the jobs that it waits for."""

    job: Job
    waits_for: set[str] = field(default_factory=set)


def fingerprint(order: Order) -> str:
    """SHA-256 of what is asked, whoever asks: the same key with another fingerprint is refused."""
    body = {k: v for k, v in asdict(order).items() if k not in ("created_by", "actor", "param")}
    body = {k: v for k, v in body.items() if v or k not in NEWER}
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def accept(db: Session, order: Order, import_needed: ImportNeeded) -> Accepted:
    """Checks the order against recipe, base model and data. Raises Refused with the field.

    `import_needed` is asked for an import job where the base model has never been imported.
    """
    job = blank(order)
    if order.kind == Kind.TRAIN:
        return accept_training(db, order, job, import_needed)
    if order.kind == Kind.INFER:
        return accept_inference(db, order, job, import_needed)
    if order.kind == Kind.EVALUATE:
        return accept_evaluation(db, order, job, import_needed)
    raise Refused(f"Jobs of the kind «{order.kind}» cannot be submitted this way.", param="kind")


def blank(order: Order) -> Job:
    """A job with what every kind has."""
    require_priority(order.priority)
    require_run_time(order.max_run_seconds)
    if len(order.name) > LONGEST_NAME:
        raise Refused(
            f"The name has {len(order.name)} characters; {LONGEST_NAME} are the most.", param="name"
        )
    if order.seed is not None and not 0 <= order.seed < 2**31:
        raise Refused("The seed is a whole number from 0 to 2147483647.", param="seed")
    return Job(
        id=new_id(PREFIXES[order.kind]),
        team_id=order.team_id,
        kind=order.kind,
        slot=Slot.LIGHT if order.kind in LIGHT else Slot.COMPUTE,
        name=order.name,
        asked=order.asked,
        seed=secrets.randbelow(2**31) if order.seed is None else order.seed,
        labels=order.labels,
        priority=order.priority,
        resources=resources.checked(order.needs | {"processes": order.processes}),
        max_run_seconds=order.max_run_seconds,
        resume_checkpoint_id=order.resume_checkpoint_id,
        schedule_id=order.schedule_id,
        retry_of=order.retry_of,
        created_by=order.created_by,
    )


def require_priority(priority: int) -> None:
    """Refuses a priority out of bounds."""
    if not -HIGHEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise Refused(f"The priority goes from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}.", param="priority")


def require_run_time(seconds: int | None) -> None:
    """Refuses a longest run time out of bounds."""
    if seconds is not None and not SHORTEST_RUN <= seconds <= LONGEST_RUN:
        raise Refused("The longest run time goes from one minute to 365 days.", param="max_run_seconds")


def accept_training(db: Session, order: Order, job: Job, import_needed: ImportNeeded) -> Accepted:
    """A training job: the recipe's Spec, a base model that fits it, data that it can read."""
    recipe = recipes.get(order.recipe or "")
    accepted = Accepted(job)
    base = use_model(db, accepted, order.model or recipe.default_base_model, import_needed)
    scratch = base_models.is_scratch(base) and job.checkpoint_id is None
    spec = resolve(recipe, order.hyperparameters, order.param, scratch=scratch)
    require_head(recipe, base)
    require_weights(recipe, base, job.checkpoint_id)
    require_weights_below(spec, base, job.checkpoint_id, order.param)
    if order.dataset_version_id is None:
        raise Refused(
            "Choose a dataset to train on.", param="training_file", code="missing_required_parameter"
        )
    job.recipe, job.spec = recipe.name, spec.model_dump(mode="json")
    job.columns = use_version(db, accepted, order.dataset_version_id, recipe, order.columns, "training_file")
    job.dataset_version_id = order.dataset_version_id
    if order.valid_version_id:
        use_version(
            db, accepted, order.valid_version_id, recipe, job.columns or order.columns, "validation_file"
        )
        job.valid_version_id = order.valid_version_id
    return accepted


def accept_inference(db: Session, order: Order, job: Job, import_needed: ImportNeeded) -> Accepted:
    """Answers to a batch file or to the rows of a dataset version, by a base model or checkpoint.

    The recipe is that of the checkpoint's job; a bare base model answers as chat.
    """
    accepted = Accepted(job)
    recipe = use_answering(db, accepted, order, import_needed)
    endpoint = order.asked.get("endpoint") or recipe.endpoint
    if endpoint != recipe.endpoint:
        raise Refused(f"«{order.model}» answers at {recipe.endpoint}, not at {endpoint}.", param="endpoint")
    job.recipe = recipe.name
    sampled = sampling.checked(order.hyperparameters, recipe.samples_with, order.param)
    job.spec = {"endpoint": endpoint, "sampling": sampled}
    if order.file_id:
        job.file_id = use_file(db, order)
    elif order.dataset_version_id:
        version = version_row(db, order.team_id, order.dataset_version_id, "dataset")
        wait_for_version(accepted, version, "dataset")
        job.dataset_version_id, job.columns = version.id, order.columns or {}
    else:
        raise Refused(
            "Choose a dataset or a batch file.", param="input_file_id", code="missing_required_parameter"
        )
    return accepted


def accept_evaluation(db: Session, order: Order, job: Job, import_needed: ImportNeeded) -> Accepted:
    """A base model or checkpoint judged on the rows of a dataset version, by the metrics of the recipe that it
    was trained by; a base model by those of the recipe that is named, else of chat.
    """
    accepted = Accepted(job)
    try:
        wanted = recipes.get(order.recipe) if order.recipe else None
    except Refused as unknown:
        raise Refused(unknown.message, param="recipe") from None
    recipe = use_answering(db, accepted, order, import_needed)
    if wanted not in (None, recipe):
        raise Refused(
            f"«{order.model}» was trained by «{recipe.title}» and is judged by its metrics, not by those of"
            f" «{wanted.title}».",
            param="recipe",
        )
    if not order.dataset_version_id:
        raise Refused(
            "Choose the dataset whose rows are judged.", param="dataset", code="missing_required_parameter"
        )
    job.recipe, job.spec = recipe.name, recipe.spec().model_dump(mode="json")
    if trained := trained_by(db, job.checkpoint_id):
        job.spec = trained.spec
    job.columns = use_version(db, accepted, order.dataset_version_id, recipe, order.columns, "dataset")
    job.dataset_version_id = order.dataset_version_id
    return accepted


def use_answering(
    db: Session, accepted: Accepted, order: Order, import_needed: ImportNeeded
) -> recipes.Recipe:
    """The recipe by which the order's model answers. Raises Refused where it cannot answer yet."""
    if not order.model:
        raise Refused("Choose a model.", param="model", code="missing_required_parameter")
    base = use_model(db, accepted, order.model, import_needed)
    checkpoint_id = accepted.job.checkpoint_id
    recipe = recipe_of_answers(db, order, checkpoint_id)
    require_head(recipe, base)
    if base_models.is_scratch(base) and checkpoint_id is None:
        raise Refused(
            f"«{base.id}» has no weights yet. Train it, then choose one of that job's checkpoints.",
            param="model",
        )
    if recipe.needs_facts and checkpoint_id is None:
        raise Refused(
            f"«{order.model}» has not been trained for «{recipe.title}» yet. Choose a checkpoint of such a job.",
            param="model",
        )
    return recipe


def use_model(db: Session, accepted: Accepted, name: str, import_needed: ImportNeeded) -> BaseModel:
    """Resolves the model; where it was never imported, the job waits for its import."""
    weights = base_models.find(db, accepted.job.team_id, name)
    if weights.checkpoint and not checkpoints.hold(db, weights.checkpoint.id):
        raise base_models.unknown(name)
    base = held_model(db, weights.base_model.id)
    accepted.job.base_model_id = base.id
    accepted.job.checkpoint_id = weights.checkpoint.id if weights.checkpoint else None
    if base.state == Ready.READY:
        return base
    if base.state == Ready.FAILED and base.source.startswith("file:"):
        raise Refused(f"The base model «{name}» could not be imported: {base.error}", param="model")
    if base.state == Ready.BUILDING and base.import_job_id:
        accepted.waits_for.add(base.import_job_id)
    else:
        accepted.waits_for.add(import_needed(base).id)
    return base


def held_model(db: Session, base_model_id: str) -> BaseModel:
    """The base model, locked until the commit: against its end alone where it is ready, so that orders for the same
    one wait for nobody; else for the one order that asks for its import.
    """
    row = select(BaseModel).where(BaseModel.id == base_model_id).execution_options(populate_existing=True)
    ready = db.exec(row.where(BaseModel.state == Ready.READY).with_for_update(read=True)).first()
    return ready or db.exec(row.with_for_update()).one()


def use_version(
    db: Session,
    accepted: Accepted,
    version_id: str,
    recipe: recipes.Recipe,
    columns: dict[str, str] | None,
    param: str,
) -> dict[str, str]:
    """The mapping of columns; empty while the import runs, which the job then waits for."""
    version = version_row(db, accepted.job.team_id, version_id, param)
    if version.state == Ready.READY:
        return datasets.check(version, recipe, columns, param=param)
    wait_for_version(accepted, version, param)
    return columns or {}


def version_row(db: Session, team_id: str, version_id: str, param: str) -> DatasetVersion:
    """The team's dataset version. Raises Refused 404."""
    version = db.get(DatasetVersion, version_id)
    if version is None or version.team_id != team_id:
        raise Refused(f"No dataset «{version_id}» in this team.", param=param, code="not_found", status=404)
    return version


def wait_for_version(accepted: Accepted, version: DatasetVersion, param: str) -> None:
    """The job waits for the import of that version. Raises Refused where it has failed."""
    if version.state == Ready.FAILED:
        raise Refused(
            f"This dataset could not be read: {version.error}", param=param, code="invalid_training_file"
        )
    if version.state != Ready.READY and version.import_job_id:
        accepted.waits_for.add(version.import_job_id)


def require_head(recipe: recipes.Recipe, base: BaseModel) -> None:
    """Refuses a base model that lacks the recipe's head. Unknown before its import: then it passes."""
    heads = base.facts.get("heads")
    if heads and recipe.head not in heads:
        raise Refused(
            f"«{recipe.title}» needs a base model that is a {recipe.head}; «{base.id}» is a "
            f"{' and '.join(heads)}. Choose another base model, for example «{recipe.default_base_model}».",
            param="model",
            code="model_does_not_fit",
        )


def require_weights(recipe: recipes.Recipe, base: BaseModel, checkpoint_id: str | None) -> None:
    """Refuses to fine-tune what has no weights."""
    if base_models.is_scratch(base) and checkpoint_id is None and not recipe.from_scratch:
        raise Refused(
            f"«{base.id}» has no weights yet, and «{recipe.title}» does not train from scratch. Pretrain it first"
            " and start from that job's checkpoint, or choose another base model, for example"
            f" «{recipe.default_base_model}».",
            param="model",
            code="model_does_not_fit",
        )


def require_weights_below(spec: Spec, base: BaseModel, checkpoint_id: str | None, param: str) -> None:
    """Refuses an adapter on what has no weights."""
    if base_models.is_scratch(base) and checkpoint_id is None and getattr(spec, "method", "full") == "lora":
        raise Refused(
            f"An adapter stands on trained weights, and «{base.id}» has none yet: choose «full», or another"
            " base model.",
            param=f"{param}method",
        )


def recipe_of_answers(db: Session, order: Order, checkpoint_id: str | None) -> recipes.Recipe:
    """The recipe that answers: the checkpoint's own."""
    trained = trained_by(db, checkpoint_id)
    if trained is not None and trained.recipe:
        return recipes.get(trained.recipe)
    if order.recipe:
        return recipes.get(order.recipe)
    for recipe in recipes.recipes().values():
        if recipe.endpoint == CHAT:
            return recipe
    raise Refused(f"«{order.model}» has not been trained to answer anything yet.", param="model")


def trained_by(db: Session, checkpoint_id: str | None) -> Job | None:
    """The job that made the checkpoint."""
    checkpoint = db.get(Checkpoint, checkpoint_id) if checkpoint_id else None
    return db.get(Job, checkpoint.job_id) if checkpoint else None


def use_file(db: Session, order: Order) -> str:
    """The team's uploaded file. Raises Refused 404."""
    file = db.get(File, order.file_id)
    if file is None or file.team_id != order.team_id or file.deleted_at:
        raise Refused(
            f"No such File object: {order.file_id}", param="input_file_id", code="not_found", status=404
        )
    return file.id


def again(
    job: Job, actor: str, created_by: str | None = None, resume_checkpoint_id: str | None = None
) -> Order:
    """The order that this job was, to be submitted once more with the same seed, as the job of whoever asks now;
    where it goes on with another training, that one too.
    """
    return Order(
        team_id=job.team_id,
        kind=job.kind,
        recipe=job.recipe,
        model=job.checkpoint_id or job.base_model_id,
        dataset_version_id=job.dataset_version_id,
        valid_version_id=job.valid_version_id,
        file_id=job.file_id,
        hyperparameters=job.spec.get("sampling", {}) if job.kind == Kind.INFER else job.spec,
        columns=job.columns or None,
        name=job.name,
        seed=job.seed,
        labels=job.labels,
        priority=job.priority,
        processes=job.resources.get("processes", 1),
        needs={name: value for name, value in job.resources.items() if name != "processes"},
        max_run_seconds=job.max_run_seconds,
        resume_checkpoint_id=resume_checkpoint_id or job.resume_checkpoint_id,
        created_by=created_by,
        actor=actor,
        retry_of=job.id,
        asked=job.asked,
    )
