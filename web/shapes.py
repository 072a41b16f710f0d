"""The objects of the API as they go over the wire: OpenAI's fields, ours with the prefix `x_`."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from web.queue_shapes import Needs, Prioritise, Resources, Retry, run_seconds
from web.wire import Paging, Request

__all__ = ["Prioritise", "Retry"]  # an API's shapes, from here too

Order = Literal["asc", "desc"]
Labels = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]
LABELS = Field(
    None, max_length=16, description="Up to 16 pairs of your own; keys of 64, values of 512 characters."
)


class Shape(BaseModel):
    """An answer."""

    model_config = ConfigDict(protected_namespaces=())


T = TypeVar("T", bound=Shape)


class Page(Shape, Generic[T]):
    """A part of a list, newest first. Ask on with `after` = `last_id` while `has_more`."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


class Fault(Shape):
    """What is wrong and which parameter it is."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Shape):
    """Every answer from 400 up."""

    error: Fault


class Deleted(Shape):
    """Gone."""

    id: str
    object: str
    deleted: Literal[True] = True


class FileObject(Shape):
    """Stored bytes: an upload, or a result."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None
    expires_at: int | None = None
    x_sha256: str
    x_rows: int | None = Field(None, description="Rows that the importer read.")
    x_findings: list[dict[str, Any]] = Field(
        [], description="What the importer found: row, column, message, fatal."
    )


class FilesAsked(Paging):
    """Which files."""

    limit: int = Field(10_000, ge=1, le=10_000)
    order: Order = "desc"
    purpose: str | None = None


class CreateJob(Request):
    """A fine-tuning job. `method` names the recipe; without one it is `supervised`."""

    model: str = Field(description="A base model's id, a fine-tuned model's name or a checkpoint's id.")
    training_file: str = Field(description="Id of an uploaded file; also of a dataset or dataset version.")
    validation_file: str | None = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = Field(
        None, description="Those of the recipe, where `method` has none."
    )
    suffix: str | None = Field(
        None, max_length=64, description="Becomes part of the fine-tuned model's name."
    )
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: Labels | None = LABELS
    integrations: list[Any] | None = Field(None, max_length=0, description="None are supported.")
    x_columns: dict[str, str] | None = Field(
        None, description="{the recipe's column: the dataset's column}, where the names differ."
    )
    x_priority: int = Field(0, ge=-100, le=100)
    x_max_run_seconds: int | None = run_seconds()
    resources: Resources | None = None


class QueueFacts(Shape):
    """Why a waiting job waits, and for how long still."""

    reason: str
    ahead: list[str] = Field(description="Who goes first and why, in sentences; other teams only by number.")
    expected_start: int | None = Field(description="About when it starts; null: not known yet.")


class JobsAsked(Paging):
    """Which jobs; `metadata[key]=value` filters by label."""


class JobError(Shape):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class FineTuningJob(Shape):
    """A training job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    model: str
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    error: JobError | None
    metadata: Labels | None
    integrations: list[Any] = []
    user_provided_suffix: str | None
    x_state: str = Field(description="Finer than `status`: also cancelling, stopping, pausing, or the stage.")
    x_progress: dict[str, Any] = Field(
        description="step, total_steps, epoch, loss, tokens_per_second, eta_seconds."
    )
    x_queue_position: int | None
    x_queue: QueueFacts | None = Field(None, description="Only of a waiting job that is asked for by itself.")
    x_priority: int
    x_max_run_seconds: int | None
    x_retry_of: str | None = Field(description="The job that this one repeats or goes on with.")
    x_scores: dict[str, Any] = Field(description="The recipe's metrics on held-out rows: base and tuned.")
    x_columns: dict[str, str]
    x_resources: dict[str, int] = Field(description="processes, and what else it needs of a worker.")
    x_page: str = Field(description="Address of the job's page.")


class EventsAsked(Paging):
    """Which events."""

    limit: int = Field(20, ge=1, le=1000)


class JobEvent(Shape):
    """A line of a job's history."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class CheckpointsAsked(Paging):
    """Which checkpoints."""

    limit: int = Field(10, ge=1, le=100)


class JobCheckpoint(Shape):
    """A stored checkpoint; the last step comes first."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any] = Field(description="step, train_loss and the recipe's metrics as valid_<name>.")
    step_number: int
    x_best: bool
    x_bytes: int
    x_pinned: bool = Field(description="Kept, whatever the team's rule says.")


class FormAsked(BaseModel):
    """In which form: as trained (an adapter or the full model), `merged` into a full model, or one `gguf` file
    for llama.cpp (Llama-type models).
    """

    form: Literal["merged", "gguf"] | None = None


class CheckpointFile(Shape):
    """A file of a checkpoint; `name` is relative to the folder that `from_pretrained` takes."""

    name: str
    bytes: int
    sha256: str
    url: str = Field(description="Absolute, signed, good without a token for 15 minutes, resumable by Range.")


class CheckpointFiles(Shape):
    """The files, or, while a merged model is being made, none yet."""

    object: Literal["list"] = "list"
    data: list[CheckpointFile]
    has_more: Literal[False] = False
    x_status: Literal["building", "ready", "failed"]
    x_error: str | None = None
    x_agreement: str | None = Field(
        None, description="What comparing an export with the trained model found."
    )
    x_zip: str | None = Field(None, description="All files as one zip.")


class Model(Shape):
    """A base model, or a checkpoint of the team's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    x_title: str
    x_state: str = Field(description="waiting: imported when first used.")
    x_licence: str = ""
    x_facts: dict[str, Any] = {}
    x_job: str | None = None


class CreateModel(Request):
    """A base model of the team's own: `file`, a zip of a safetensors folder uploaded with the purpose
    «base-model», or `hub`, where the server may fetch from one.
    """

    file: str | None = None
    hub: str | None = Field(None, description="owner/name")
    revision: str = ""
    title: str = Field("", max_length=100)


class ModelList(Shape):
    """Base models first, then the team's, newest first."""

    object: Literal["list"] = "list"
    data: list[Model]


class CreateBatch(Request):
    """Many requests in one file, answered in one job."""

    input_file_id: str = Field(
        description="Id of a JSONL file with purpose «batch». Knobs of sampling stand in the body of each line."
    )
    endpoint: Literal["/v1/chat/completions", "/v1/predictions"]
    completion_window: Literal["24h"]
    metadata: Labels | None = LABELS
    resources: Needs | None = None
    x_max_run_seconds: int | None = run_seconds()


class BatchFault(Shape):
    """A line of the input file that cannot be answered."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchFaults(Shape):
    """Why a batch failed as a whole."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class Counts(Shape):
    """Requests of a batch."""

    total: int
    completed: int
    failed: int


class Batch(Shape):
    """A batch inference job."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal[
        "validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired"
    ]
    output_file_id: str | None
    error_file_id: str | None
    errors: BatchFaults | None
    request_counts: Counts
    usage: dict[str, Any] | None
    metadata: Labels | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None = None
    cancelling_at: int | None
    cancelled_at: int | None
    x_state: str
    x_progress: dict[str, Any]
    x_resources: dict[str, int] = Field(description="What it needs of a worker.")
    x_max_run_seconds: int | None
    x_page: str


class CreateSchedule(Request):
    """A job that is submitted again and again with the newest version of its dataset."""

    name: str = Field(min_length=1, max_length=100)
    cron: str = Field(description="Five fields: minute, hour, day, month, weekday.", examples=["0 2 * * *"])
    zone: str = Field(
        "UTC", description="Time zone of the cron line, as in the tz database.", examples=["Europe/Berlin"]
    )
    active: bool = True
    dataset: str = Field(description="Id of a dataset; also of one of its versions or files.")
    model: str
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None
    suffix: str | None = Field(None, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**31)
    x_columns: dict[str, str] | None = None
    resources: Resources | None = None


class UpdateSchedule(Request):
    """What is to change; the rest stays."""

    name: str | None = Field(None, min_length=1, max_length=100)
    cron: str | None = None
    zone: str | None = None
    active: bool | None = None


class Schedule(Shape):
    """A recurring submission."""

    id: str
    object: Literal["schedule"] = "schedule"
    created_at: int
    name: str
    cron: str
    zone: str
    active: bool
    dataset: str
    next_at: int | None
    model: str | None
    method: dict[str, Any]
    suffix: str | None
    seed: int | None
    x_resources: dict[str, int]
    x_page: str


class ScheduleRun(Shape):
    """One nominal time of a schedule, and what became of it."""

    id: str
    object: Literal["schedule.run"] = "schedule.run"
    schedule_id: str
    nominal: str = Field(description="Local time of the schedule's zone.")
    due_at: int
    outcome: Literal["submitted", "skipped", "missed", "refused"]
    reason: str
    job_id: str | None


class CreateEvaluation(Request):
    """Models that are judged on the rows of a dataset, by the metrics of the recipe that trained them."""

    model: str | None = Field(
        None, description="A base model's id, a fine-tuned model's name or a checkpoint's id."
    )
    models: list[str] | None = Field(
        None, min_length=1, max_length=8, description="Several, which are then compared: one evaluation each."
    )
    dataset: str = Field(description="Id of an uploaded file; also of a dataset or dataset version.")
    recipe: str | None = Field(
        None, description="By whose metrics a base model is judged; chat's where none is named."
    )
    columns: dict[str, str] | None = Field(
        None, description="{the recipe's column: the dataset's column}, where the names differ."
    )
    name: str | None = Field(None, max_length=200)
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: Labels | None = LABELS
    resources: Needs | None = None
    x_max_run_seconds: int | None = run_seconds()


class Comparison(Shape):
    """Evaluations that were asked for together."""

    id: str
    evaluations: list[str] = Field(description="Their ids, in the order of the models.")
    x_page: str = Field(description="Address of the page that shows them side by side.")


class LeftOut(Shape):
    """Rows that could not be used."""

    count: int
    rows: list[dict[str, Any]] = Field(description="The first hundred: row and reason.")


class Evaluation(Shape):
    """A model judged on the rows of a dataset."""

    id: str
    object: Literal["evaluation"] = "evaluation"
    created_at: int
    finished_at: int | None
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    name: str | None
    model: str
    recipe: str
    dataset: str = Field(description="Id of the file that the dataset version was read from.")
    columns: dict[str, str]
    seed: int
    metrics: dict[str, float | None] | None = Field(description="The recipe's metrics over all rows.")
    intervals: dict[str, list[float]] | None = Field(
        description="{metric: [low, high]}: 95 % of the bootstrap's resamples."
    )
    resamples: int | None
    rows: int | None = Field(description="How many rows were judged.")
    left_out: LeftOut | None
    result_files: list[str] = Field(
        description="results.jsonl, one line a row, and report.json with detail, worst and best rows, resamples."
    )
    comparison: Comparison | None
    error: JobError | None
    metadata: Labels | None
    x_state: str = Field(description="Finer than `status`: also cancelling, or the stage.")
    x_progress: dict[str, Any] = Field(description="detail, done, total.")
    x_queue_position: int | None
    x_resources: dict[str, int] = Field(description="What it needs of a worker.")
    x_max_run_seconds: int | None
    x_page: str
