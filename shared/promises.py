"""What the diagram in `shared.jobs` promises of a job's row, held by the database whoever writes it."""

from sqlalchemy import CheckConstraint

PROMISES = {  # constraint: what holds of every job
    "running_is_held": "(state = 'running') = (attempt_id IS NOT NULL)",
    "end_is_timed": "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
    "attempts_are_counted": "attempts >= 0",
    "cancel_is_kept": "cancel_requested_at IS NULL OR state IN ('queued', 'running', 'cancelled')",
    "request_is_to_a_holder": "(pause_requested_at IS NULL AND stop_requested_at IS NULL)"
    " OR state NOT IN ('queued', 'paused')",
    "pause_is_before_a_try": "run_after IS NULL OR state = 'queued'",
    "deleted_is_ended": "deleted_at IS NULL OR finished_at IS NOT NULL",
}


def constraints() -> list[CheckConstraint]:
    """As the table has them."""
    return [CheckConstraint(promise, name=name) for name, promise in PROMISES.items()]
