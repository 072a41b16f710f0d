"""Every table, enum and index. No behaviour: the verbs live in the file of their noun.

Ids are text, made by `shared.ids.new_id`; times are aware UTC; a row that a team makes carries
`team_id`. Enums are stored as text with a CHECK, by value. (No `from __future__ import
annotations` here: SQLModel reads the annotations.)
"""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Column, Identity, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from shared import promises
from shared.columns import choice, document, ident, moment, ref
from shared.words import (
    FINAL,  # noqa: F401 - offered here with the other words
    EventType,
    Kind,
    LinkKind,
    MailScope,
    Occasion,  # noqa: F401 - likewise
    Outcome,
    Ready,
    Role,
    RunOutcome,
    Sent,
    Slot,
    State,
)


class Team(SQLModel, table=True):
    """People who share datasets, jobs and checkpoints; nothing is shared between teams."""

    __tablename__ = "teams"
    id: str = ident("team-")
    name: str = Field(unique=True)
    max_run_seconds: int | None = None  # of its jobs that name none themselves
    keep_best: int | None = 2  # checkpoints of an ended job, beside the last and those in use; None: all
    created_at: datetime = moment(made=True)


class Cap(SQLModel, table=True):
    """The most slots of a class that a team, or without a team everybody together, may occupy at once."""

    __tablename__ = "caps"
    __table_args__ = (
        Index("caps_of_team", "slot", "team_id", unique=True, postgresql_where=text("team_id IS NOT NULL")),
        Index("caps_of_all", "slot", unique=True, postgresql_where=text("team_id IS NULL")),
    )
    id: str = ident("cap-")
    team_id: str | None = ref("teams", nullable=True, cascade=True)
    slot: Slot = choice(Slot)
    slots: int


class User(SQLModel, table=True):
    """A person. `must_change_password` is true while the one-time password stands; an operator also sees to
    workers and caps, which all teams share.
    """

    __tablename__ = "users"
    id: str = ident("user-")
    email: str = Field(unique=True)  # lower case
    password_hash: str  # argon2id
    must_change_password: bool = False
    operator: bool = Field(False, sa_column_kwargs={"server_default": text("false")})
    disabled_at: datetime | None = moment()
    created_at: datetime = moment(made=True)


class Membership(SQLModel, table=True):
    """A person's role in a team, and which of its jobs they hear of by e-mail."""

    __tablename__ = "memberships"
    team_id: str = Field(foreign_key="teams.id", primary_key=True, ondelete="CASCADE")
    user_id: str = Field(foreign_key="users.id", primary_key=True, ondelete="CASCADE", index=True)
    role: Role = choice(Role)
    mail_scope: MailScope = choice(MailScope, MailScope.NOTHING, server_default="nothing")
    mail_occasions: list = document(list, server_default="[]")
    created_at: datetime = moment(made=True)


class BrowserSession(SQLModel, table=True):
    """A signed-in browser. The cookie holds the secret, the row its SHA-256."""

    __tablename__ = "browser_sessions"
    id_hash: str = Field(primary_key=True)
    user_id: str = ref("users", cascade=True)
    team_id: str | None = ref("teams", nullable=True, cascade=True, index=False)  # the one looked at
    user_agent: str = ""
    created_at: datetime = moment(made=True)
    seen_at: datetime = moment(made=True)
    expires_at: datetime = moment(made=True)


class Link(SQLModel, table=True):
    """A single-use link: an invitation to a team, or a password reset."""

    __tablename__ = "links"
    id: str = ident("link-")
    token_hash: str = Field(unique=True)
    kind: LinkKind = choice(LinkKind)
    team_id: str = ref("teams", cascade=True)
    user_id: str | None = ref("users", nullable=True, cascade=True, index=False)  # whose password
    role: Role | None = choice(Role, nullable=True)
    email: str = ""
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)
    expires_at: datetime = moment(made=True)
    used_at: datetime | None = moment()


class ApiToken(SQLModel, table=True):
    """A bearer token of a team, shown once; the row holds its SHA-256 and its first characters."""

    __tablename__ = "api_tokens"
    id: str = ident("token-")
    team_id: str = ref("teams", cascade=True)
    name: str = ""
    role: Role = choice(Role)
    token_hash: str = Field(unique=True)
    shown: str = ""  # the first characters, to tell tokens apart
    operator: bool = Field(
        False, sa_column_kwargs={"server_default": text("false")}
    )  # its maker's rights as one
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)
    last_used_at: datetime | None = moment()
    expires_at: datetime | None = moment()
    revoked_at: datetime | None = moment()


class File(SQLModel, table=True):
    """Stored bytes as the API names them: what was uploaded, or an artifact of one file."""

    __tablename__ = "files"
    id: str = ident("file-")
    team_id: str = ref("teams", cascade=True)
    purpose: str  # fine-tune, batch, base-model, fine-tune-results, batch_output, evaluation_output
    filename: str
    bytes: int = Field(sa_type=BigInteger)
    sha256: str
    key: str  # in the store
    status: str = "uploaded"  # uploaded, processed, error
    status_details: str | None = None
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)
    expires_at: datetime | None = moment()
    deleted_at: datetime | None = moment()


class Dataset(SQLModel, table=True):
    """A name for rows that change over time; its versions never change."""

    __tablename__ = "datasets"
    __table_args__ = (
        Index(
            "datasets_team_name",
            "team_id",
            "name",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )
    id: str = ident("ds-")
    team_id: str = ref("teams", cascade=True)
    name: str
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)
    deleted_at: datetime | None = moment()


class DatasetVersion(SQLModel, table=True):
    """Immutable rows as Parquet. `report` is what the importer found: see `shared.datasets`."""

    __tablename__ = "dataset_versions"
    __table_args__ = (UniqueConstraint("dataset_id", "number"),)
    id: str = ident("dsv-")
    team_id: str = ref("teams", cascade=True)
    dataset_id: str = ref("datasets", cascade=True)
    number: int
    file_id: str = ref("files")
    state: Ready = choice(Ready, Ready.BUILDING)
    import_job_id: str | None = Field(None, index=True)
    content_hash: str | None = None  # SHA-256 of the canonical Parquet file
    key: str | None = None  # of that file
    rows: int = Field(0, sa_type=BigInteger)
    bytes: int = Field(0, sa_type=BigInteger)
    report: dict = document()
    error: str | None = None
    created_at: datetime = moment(made=True)


class BaseModel(SQLModel, table=True):
    """Pretrained weights and tokenizer at one revision. Without a team it is everybody's."""

    __tablename__ = "base_models"
    id: str = ident("base-")
    team_id: str | None = ref("teams", nullable=True, cascade=True)
    title: str
    source: str  # package:<name>, file:<file id>, hub:<id>
    revision: str = ""
    licence: str = ""
    state: Ready = choice(Ready, Ready.WAITING)
    import_job_id: str | None = Field(None, index=True)
    content_hash: str | None = None  # SHA-256 of the manifest
    prefix: str | None = None  # base/<hash>/ in the store
    manifest: list = document(list)  # [{name, bytes, sha256}]
    facts: dict = document()  # architecture, parameters, max_length, vocab_size, chat, heads
    error: str | None = None
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)
    deleted_at: datetime | None = moment()


class Worker(SQLModel, table=True):
    """A worker process and what it offers."""

    __tablename__ = "workers"
    id: str = ident("worker-")
    host: str
    pid: int
    version: str
    slots: dict = document()  # {"compute": 1, "light": 1}
    devices: list = document(list)  # [{name, memory_bytes}]
    cpus: int = Field(0, sa_column_kwargs={"server_default": text("0")})  # 0: an older worker, not told
    sandbox: dict = document()  # which walls stand around a trainer
    disk: dict = Field(  # {free, floor, total, room} in bytes: see shared.room; {}: not told
        default_factory=dict, sa_column=Column(JSONB, nullable=False, server_default=text("'{}'"))
    )
    note: str = ""  # why it claims nothing just now, if so
    started_at: datetime = moment(made=True)
    heartbeat_at: datetime = moment(made=True)
    draining_at: datetime | None = moment()
    stopped_at: datetime | None = moment()


class Job(SQLModel, table=True):
    """What a user asked for, and where it is. Only `shared.jobs` writes `state`."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("team_id", "idempotency_key"),
        *promises.constraints(),
        Index("jobs_claim", "slot", "team_id", "resources", text("coalesce(disk_bytes, 0)"), "rank_at", "id",
              postgresql_where=text("state = 'queued' AND ready")),
        Index("jobs_in_line", "slot", "team_id", "rank_at", "id", postgresql_where=text("state = 'queued' AND ready")),
        Index("jobs_rest", "slot", "run_after", postgresql_where=text("state = 'queued' AND NOT ready")),
        Index("jobs_running", "id", postgresql_where=text("state = 'running'")),
        Index("jobs_team_age", "team_id", "id"),
        Index("jobs_unswept", "finished_at", postgresql_where=text("swept_at IS NULL AND finished_at IS NOT NULL")),
        Index("jobs_resumes", "resume_checkpoint_id", postgresql_where=text("resume_checkpoint_id IS NOT NULL")),
        Index("jobs_swept", "swept_at", postgresql_where=text("swept_at IS NOT NULL")),
    )  # fmt: skip
    id: str = Field(primary_key=True)  # ftjob-, batch_, export-, import- + sortable characters
    team_id: str = ref("teams", cascade=True, index=False)
    kind: Kind = choice(Kind)
    slot: Slot = choice(Slot)
    name: str = ""
    recipe: str | None = None
    spec: dict = document()  # resolved, frozen at submit
    asked: dict = document()  # as it came: what the API answers with and a clone starts from
    seed: int = 0
    labels: dict = document()  # the API's metadata
    columns: dict = document()  # {the recipe's column: the dataset's column}
    resources: dict = document()  # what it needs of a worker: see shared.resources
    disk_bytes: int | None = Field(None, sa_type=BigInteger)  # likewise, once a worker had too little
    base_model_id: str | None = ref("base_models", nullable=True, index=False)
    checkpoint_id: str | None = Field(None, index=True)  # what it starts from, answers with, exports
    resume_checkpoint_id: str | None = None  # another job's, whose training it goes on with
    dataset_version_id: str | None = ref("dataset_versions", nullable=True)
    valid_version_id: str | None = ref("dataset_versions", nullable=True, index=False)
    file_id: str | None = ref("files", nullable=True, index=False)  # what an import or batch reads
    schedule_id: str | None = ref("schedules", nullable=True)
    retry_of: str | None = None  # the job that this one repeats

    state: State = choice(State, State.QUEUED)
    stage: str = ""
    priority: int = 0
    rank_at: datetime = moment(made=True)  # created_at − weight × priority
    run_after: datetime | None = moment()
    ready: bool = Field(
        True, sa_column_kwargs={"server_default": text("true")}
    )  # waits for no other job, nor rests
    attempt_id: str | None = None  # the one that holds it
    attempts: int = 0  # charged ones
    cancel_requested_at: datetime | None = moment()
    pause_requested_at: datetime | None = moment()
    stop_requested_at: datetime | None = moment()
    max_run_seconds: int | None = None  # over all its attempts
    idempotency_key: str | None = None
    body_hash: str | None = None

    progress: dict = document()  # step, total_steps, epoch, tokens_per_second, eta_seconds, loss
    scores: dict = (
        document()
    )  # {"base": {metric: value}, "tuned": {metric: value}, "detail": {...}} and what a kind adds
    trained_tokens: int | None = Field(None, sa_type=BigInteger)
    best_checkpoint_id: str | None = None
    reason_code: str | None = None
    reason: str | None = None
    reason_param: str | None = None
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)
    started_at: datetime | None = moment()
    finished_at: datetime | None = moment()
    swept_at: datetime | None = moment()  # after its end: what needs not be kept was looked for
    deleted_at: datetime | None = moment()


class JobDependency(SQLModel, table=True):
    """`job_id` is not claimed before `waits_for_id` has succeeded."""

    __tablename__ = "job_dependencies"
    job_id: str = Field(foreign_key="jobs.id", primary_key=True, ondelete="CASCADE")
    waits_for_id: str = Field(foreign_key="jobs.id", primary_key=True, ondelete="CASCADE", index=True)


class Transition(SQLModel, table=True):
    """One line of a job's timeline: written with every change of state or request."""

    __tablename__ = "transitions"
    id: int | None = Field(None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    job_id: str = ref("jobs", cascade=True)
    at: datetime = moment(made=True)
    state: State = choice(State)
    actor: str  # a user id, a token id, a worker id, «schedule», «reaper»
    reason: str = ""


class Attempt(SQLModel, table=True):
    """One worker's try at a job. Its lease is renewed by heartbeat and fenced by `lease_id`."""

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("job_id", "number"), Index("attempts_ended", "ended_at"))
    id: str = ident("attempt-")
    job_id: str = ref("jobs", cascade=True, index=False)
    team_id: str = ref("teams", cascade=True, index=False)
    number: int
    worker_id: str = ref("workers")
    slots: list = document(list)
    lease_id: str = Field(unique=True)
    lease_expires_at: datetime = moment(made=True)
    suspect_since: datetime | None = moment()
    start_step: int = 0
    end_step: int | None = None
    outcome: Outcome | None = choice(Outcome, nullable=True)
    reason_code: str | None = None
    reason: str | None = None
    started_at: datetime = moment(made=True)
    ended_at: datetime | None = moment()


class Event(SQLModel, table=True):
    """One line that an attempt reports. Partitioned by hash of the job; `id` orders a job's events."""

    __tablename__ = "events"
    __table_args__ = (
        Index("events_job_order", "job_id", "id"),
        Index("events_job_type", "job_id", "type", "step"),
        {"postgresql_partition_by": "HASH (job_id)"},
    )
    job_id: str = Field(primary_key=True)
    lease_id: str = Field(primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    id: int | None = Field(None, sa_column=Column(BigInteger, Identity(always=True), nullable=False))
    team_id: str
    at: datetime = moment(made=True)
    type: EventType = choice(EventType)
    step: int | None = None
    data: dict = document()


class Checkpoint(SQLModel, table=True):
    """A stored checkpoint. This row is the commit point: what has no row does not exist."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("job_id", "step"),
        Index("checkpoints_to_empty", "id", postgresql_where=text("deleted_at IS NOT NULL AND bytes > 0")),
    )
    id: str = ident("ftckpt_")
    team_id: str = ref("teams", cascade=True)
    job_id: str = ref("jobs", cascade=True, index=False)
    attempt_id: str = ref("attempts", index=False)
    step: int
    epoch: float = 0
    metrics: dict = document()  # train_loss, valid_<metric>
    adapter: bool = False  # its servable part is an adapter on the job's base model
    prefix: str
    manifest: list = document(list)  # [{name, bytes, sha256}]; names begin servable/ or state/
    bytes: int = Field(0, sa_type=BigInteger)
    created_at: datetime = moment(made=True)
    pinned_at: datetime | None = moment()  # somebody wants it kept
    deleted_at: datetime | None = moment()  # it exists no more; its bytes go after


class Artifact(SQLModel, table=True):
    """A stored output of a job: a merged model, predictions, metrics."""

    __tablename__ = "artifacts"
    __table_args__ = (
        Index(
            "artifacts_checkpoint_form",
            "checkpoint_id",
            "form",
            unique=True,
            postgresql_where=text("checkpoint_id IS NOT NULL AND state <> 'failed'"),
        ),
    )
    id: str = ident("artifact-")
    team_id: str = ref("teams", cascade=True)
    job_id: str = ref("jobs", cascade=True)  # that makes it
    checkpoint_id: str | None = ref("checkpoints", nullable=True, cascade=True, index=False)
    form: str  # merged, gguf, predictions, errors, media, metrics, results, report, shard-<number>
    state: Ready = choice(Ready, Ready.BUILDING)
    prefix: str | None = None
    manifest: list = document(list)  # [{name, bytes, sha256}]
    bytes: int = Field(0, sa_type=BigInteger)
    file_id: str | None = ref("files", nullable=True, index=False)  # the same bytes, for the API
    error: str | None = None
    created_at: datetime = moment(made=True)


class Schedule(SQLModel, table=True):
    """A recurring submission: `order` is submitted again with the newest version of the dataset."""

    __tablename__ = "schedules"
    id: str = ident("schedule-")
    team_id: str = ref("teams", cascade=True)
    name: str
    cron: str
    zone: str
    active: bool = True
    dataset_id: str = ref("datasets")
    order: dict = document()  # recipe, base_model, hyperparameters, columns, name, seed
    since: datetime = moment(made=True)  # nominal times before it are none of its business
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)
    deleted_at: datetime | None = moment()


class ScheduleRun(SQLModel, table=True):
    """One nominal time of a schedule: the key makes it run once, however many beats tick."""

    __tablename__ = "schedule_runs"
    schedule_id: str = Field(foreign_key="schedules.id", primary_key=True, ondelete="CASCADE")
    nominal: str = Field(primary_key=True)  # local time, 2026-11-23T02:30
    due_at: datetime = moment(made=True)
    outcome: RunOutcome = choice(RunOutcome)
    reason: str = ""
    job_id: str | None = ref("jobs", nullable=True, index=False)
    created_at: datetime = moment(made=True)


class Webhook(SQLModel, table=True):
    """An address that hears of a team's jobs. Its secret is made of SECRET_KEY and `salt` and stored nowhere."""

    __tablename__ = "webhooks"
    id: str = ident("hook-")
    team_id: str = ref("teams", cascade=True)
    url: str
    occasions: list = document(list)
    kinds: list = document(list)  # of jobs
    active: bool = True
    salt: str
    old_salt: str = ""  # of the secret before, which signs too until then
    old_until: datetime | None = moment()
    failing_since: datetime | None = moment()  # no try has succeeded since
    off_reason: str = ""  # why it was switched off, where nobody did it by hand
    created_by: str | None = ref("users", nullable=True, index=False)
    created_at: datetime = moment(made=True)


class Delivery(SQLModel, table=True):
    """A message to a webhook or a person, written in the transaction of what it tells of: see `shared.outbox`."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint("(webhook_id IS NULL) <> (user_id IS NULL)", name="one_receiver"),
        Index("deliveries_due", "due_at", postgresql_where=text("state = 'waiting'")),
        Index("deliveries_ended", "created_at", postgresql_where=text("state <> 'waiting'")),
    )
    id: str = ident("evt_")
    team_id: str = ref("teams", cascade=True)
    webhook_id: str | None = ref("webhooks", nullable=True, cascade=True)
    user_id: str | None = ref("users", nullable=True, cascade=True)
    job_id: str | None = ref("jobs", nullable=True, cascade=True, index=False)  # none: a test
    type: str  # fine_tuning.job.succeeded
    subject: str = ""  # of an e-mail
    body: str  # as it is signed and sent
    state: Sent = choice(Sent, Sent.WAITING)
    tries: int = 0  # of this round
    due_at: datetime = moment(made=True)
    sending_until: datetime | None = moment()  # somebody's who sends it now; theirs by this very value
    log: list = document(list)  # [{at, status, seconds, said}], the newest last
    created_at: datetime = moment(made=True)
