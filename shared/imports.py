"""What an import makes, a dataset version or a base model, and who else needs that it goes on.

The row says whether there is something to import: what is there already is never read once more, and what is
being imported is imported once. A base model without a team is everybody's: several teams' jobs may wait for
the import that one of them began.
"""

from sqlmodel import Session, col, select

from shared.errors import NotFound, Refused
from shared.tables import FINAL, BaseModel, Dataset, DatasetVersion, Job, JobDependency, Kind, Ready

Made = DatasetVersion | BaseModel


def to_make(db: Session, version_id: str | None, base_model_id: str | None) -> Made:
    """The row that an import is to make, locked until the commit. Raises Refused where it is there already."""
    wanted = (DatasetVersion, version_id) if version_id else (BaseModel, base_model_id)
    found = select(wanted[0]).where(col(wanted[0].id) == wanted[1])
    row = db.exec(found.with_for_update().execution_options(populate_existing=True)).first()
    if row is None or is_deleted(db, row):
        raise NotFound("dataset" if version_id else "base model", str(wanted[1]))
    if row.state == Ready.READY:
        raise Refused(there_already(db, row), code="imported_already", param="id", status=409)
    return row


def is_deleted(db: Session, row: Made) -> bool:
    """Whether somebody has taken it away."""
    named = db.get(Dataset, row.dataset_id) if isinstance(row, DatasetVersion) else row
    return named is None or named.deleted_at is not None


def there_already(db: Session, row: Made) -> str:
    """Why it is not imported once more, and what to do instead."""
    if isinstance(row, DatasetVersion):
        return f"{title(db, row)} is there already: its rows never change. Upload a file as a new version instead."
    return f"{title(db, row)} is there already and is used as it is. Upload another model instead."


def title(db: Session, row: Made) -> str:
    """What people call it."""
    if isinstance(row, DatasetVersion):
        return f"«{db.get_one(Dataset, row.dataset_id).name}» v{row.number}"
    return f"«{row.title}»"


def going_on(db: Session, row: Made) -> Job | None:
    """The import of it that is under way, if one is."""
    job = db.get(Job, row.import_job_id) if row.state == Ready.BUILDING and row.import_job_id else None
    return job if job is not None and job.state not in FINAL else None


def made_by(db: Session, job: Job) -> Made | None:
    """What the job imports; None where it is no import."""
    if job.kind != Kind.IMPORT:
        return None
    if job.dataset_version_id:
        return db.get(DatasetVersion, job.dataset_version_id)
    return db.get(BaseModel, job.base_model_id or "")


def may_be_repeated(db: Session, job: Job) -> bool:
    """Whether another try makes sense: of an import only while what it makes is neither there nor on its way."""
    row = made_by(db, job)
    if row is None:
        return job.kind != Kind.IMPORT
    return row.state in (Ready.WAITING, Ready.FAILED) and not is_deleted(db, row)


# --- who else needs it ------------------------------------------------------------------------------


def needed_elsewhere(db: Session, job: Job) -> bool:
    """Whether an unfinished job of another team waits for this import."""
    others = (
        select(Job.id)
        .join(JobDependency, col(JobDependency.job_id) == Job.id)
        .where(JobDependency.waits_for_id == job.id, Job.team_id != job.team_id)
        .where(col(Job.state).not_in(FINAL))
    )
    return job.kind == Kind.IMPORT and db.exec(others.limit(1)).first() is not None


def require_not_needed(db: Session, job: Job) -> None:
    """Refuses to take an import away, whose row is locked, from the jobs of other teams that wait for it."""
    if needed_elsewhere(db, job):
        raise Refused(
            f"Jobs of other teams wait for the import {job.id}, so it goes on. Cancel your own jobs that wait for it.",
            code="import_is_needed",
            status=409,
        )


def require_may_rest(db: Session, job: Job) -> None:
    """Refuses to pause what any team may come to wait for."""
    row = made_by(db, job)
    if isinstance(row, BaseModel) and row.team_id is None:
        raise Refused(
            f"{title(db, row)} is everybody's, and any team's jobs may wait for its import: it is not paused.",
            code="import_is_needed",
            status=409,
        )
