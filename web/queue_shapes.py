"""What is asked of the queue over the wire: a job's machine, its place, another try."""

from typing import Any

from pydantic import Field

from shared.resources import MOST_CPUS, MOST_GIGABYTES, MOST_PROCESSES
from web.wire import Request


class Needs(Request):
    """What a job needs of its worker."""

    gpus: int = Field(
        0,
        description="GPUs that the worker must have; with 0 any worker will do.",
        json_schema_extra={"minimum": 0, "maximum": MOST_PROCESSES},
    )
    gpu_memory_gb: int = Field(
        0,
        description="Memory that each of the worker's GPUs must have.",
        json_schema_extra={"minimum": 0, "maximum": MOST_GIGABYTES},
    )
    cpus: int = Field(
        0,
        description="CPU cores that the worker must have.",
        json_schema_extra={"minimum": 0, "maximum": MOST_CPUS},
    )

    @property
    def needs(self) -> dict[str, int]:
        """What it needs besides processes."""
        return self.model_dump(exclude={"processes"}, exclude_defaults=True)


class Resources(Needs):
    """What a training runs on."""

    processes: int = Field(
        1,
        description="Processes that train it together, each on a share of every step; on GPUs, one each.",
        json_schema_extra={"minimum": 1, "maximum": MOST_PROCESSES},
    )


def run_seconds() -> Any:
    """The field for the longest run of a job."""
    return Field(
        None,
        ge=60,
        le=365 * 86_400,
        description="After running for longer it is stopped, with what it has stored kept; the team's where not given.",
    )


class Prioritise(Request):
    """Where a waiting job stands within its team's queue."""

    priority: int = Field(ge=-100, le=100, description="A step is worth ten minutes of waiting.")


class Retry(Request):
    """How an ended job is tried again."""

    checkpoint: str | None = Field(
        None,
        description="Id of one of its checkpoints, to go on from; «last» for the newest; else from the start.",
    )
