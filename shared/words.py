"""The closed lists of words that rows are made of: kinds, states, outcomes. `shared.tables` offers them too."""

from enum import StrEnum


class Role(StrEnum):
    """What a person may do in a team: look; work; also manage people, tokens and deletion."""

    VIEWER = "viewer"
    MEMBER = "member"
    OWNER = "owner"


class Kind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    INFER = "infer"
    EXPORT = "export"
    IMPORT = "import"


class State(StrEnum):
    """Where a job is in its life; `shared.jobs` has the diagram and is the only writer."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Slot(StrEnum):
    """`compute` for training, evaluation, inference; `light` for imports, exports, previews."""

    COMPUTE = "compute"
    LIGHT = "light"


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the user's to mend: data, spec, out of memory, diverged
    CRASHED = "crashed"  # the trainer died of something unknown
    LOST = "lost"  # the lease ran out
    RELEASED = "released"  # drained, store or database away: not charged
    CANCELLED = "cancelled"


class EventType(StrEnum):
    """What an attempt reports. The data of each is described in docs/architecture.md."""

    STAGE = "stage"
    STEP = "step"
    EVAL = "eval"
    SAMPLE = "sample"
    CHECKPOINT = "checkpoint"
    SHARD = "shard"
    LOG = "log"
    ERROR = "error"


class Ready(StrEnum):
    """The life of a thing that an import or export job makes."""

    WAITING = "waiting"  # nobody has asked for it yet
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


class LinkKind(StrEnum):
    """What a single-use link is for."""

    INVITATION = "invitation"
    PASSWORD_RESET = "password_reset"  # noqa: S105 - a kind of link, not a secret


class RunOutcome(StrEnum):
    """What became of one nominal time of a schedule."""

    SUBMITTED = "submitted"
    SKIPPED = "skipped"
    MISSED = "missed"
    REFUSED = "refused"


class Occasion(StrEnum):
    """What a webhook or e-mail tells of in a job's life: its first attempt, and its end."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Sent(StrEnum):
    """What has become of a delivery."""

    WAITING = "waiting"  # for its first or next try
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class MailScope(StrEnum):
    """Of whose jobs a person hears by e-mail."""

    NOTHING = "nothing"
    MINE = "mine"
    TEAM = "team"
