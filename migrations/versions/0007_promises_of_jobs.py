"""Promises of a job's life, held by the table: see the diagram in shared/jobs.py

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MENDED = (  # what the constraints forbid, where a row says it all the same
    "UPDATE jobs SET attempts = 0 WHERE attempts < 0",
    """UPDATE jobs SET finished_at = coalesce((SELECT max(at) FROM transitions WHERE job_id = jobs.id), created_at)
        WHERE state IN ('succeeded', 'failed', 'cancelled') AND finished_at IS NULL""",
    """UPDATE jobs SET finished_at = NULL, deleted_at = NULL
        WHERE state IN ('queued', 'running', 'paused') AND (finished_at IS NOT NULL OR deleted_at IS NOT NULL)""",
    "UPDATE jobs SET attempt_id = NULL WHERE state <> 'running' AND attempt_id IS NOT NULL",
    """UPDATE jobs SET cancel_requested_at = NULL
        WHERE state IN ('paused', 'succeeded', 'failed') AND cancel_requested_at IS NOT NULL""",
    """UPDATE jobs SET pause_requested_at = NULL, stop_requested_at = NULL
        WHERE state IN ('queued', 'paused') AND (pause_requested_at IS NOT NULL OR stop_requested_at IS NOT NULL)""",
    "UPDATE jobs SET run_after = NULL WHERE state <> 'queued' AND run_after IS NOT NULL",
    # looked at while they ran, and not since: what their attempts left was never removed
    "UPDATE jobs SET swept_at = NULL WHERE swept_at < finished_at",
)
PROMISES = {
    "running_is_held": "(state = 'running') = (attempt_id IS NOT NULL)",
    "end_is_timed": "(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
    "attempts_are_counted": "attempts >= 0",
    "cancel_is_kept": "cancel_requested_at IS NULL OR state IN ('queued', 'running', 'cancelled')",
    "request_is_to_a_holder": "(pause_requested_at IS NULL AND stop_requested_at IS NULL)"
    " OR state NOT IN ('queued', 'paused')",
    "pause_is_before_a_try": "run_after IS NULL OR state = 'queued'",
    "deleted_is_ended": "deleted_at IS NULL OR finished_at IS NOT NULL",
}


def upgrade() -> None:
    """Mends the rows, then holds them to it. Stop older workers first: they let go of an attempt and change the
    job's state in two steps, which `running_is_held` refuses.
    """
    for sentence in MENDED:
        op.execute(sentence)
    for name, promise in PROMISES.items():
        op.create_check_constraint(name, "jobs", promise)


def downgrade() -> None:
    """Everything that the upgrade brought."""
    for name in PROMISES:
        op.drop_constraint(name, "jobs", type_="check")
