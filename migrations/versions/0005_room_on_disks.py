"""Room: what workers have of disk, what jobs need of it, and which checkpoints are kept

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Programs of the release before go on: every column has a default. Teams that exist keep every checkpoint
    until an owner says otherwise.
    """
    op.add_column("workers", sa.Column("disk", JSONB(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("jobs", sa.Column("disk_bytes", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("teams", sa.Column("keep_best", sa.Integer(), nullable=True))
    op.add_column("checkpoints", sa.Column("pinned_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "jobs_unswept",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text("swept_at IS NULL AND finished_at IS NOT NULL"),
    )
    op.create_index(
        "jobs_resumes",
        "jobs",
        ["resume_checkpoint_id"],
        postgresql_where=sa.text("resume_checkpoint_id IS NOT NULL"),
    )
    op.create_index("jobs_swept", "jobs", ["swept_at"], postgresql_where=sa.text("swept_at IS NOT NULL"))
    op.create_index(
        "checkpoints_to_empty",
        "checkpoints",
        ["id"],
        postgresql_where=sa.text("deleted_at IS NOT NULL AND bytes > 0"),
    )


def downgrade() -> None:
    """Everything that the upgrade brought."""
    op.drop_index("checkpoints_to_empty", "checkpoints")
    op.drop_index("jobs_swept", "jobs")
    op.drop_index("jobs_resumes", "jobs")
    op.drop_index("jobs_unswept", "jobs")
    op.drop_column("checkpoints", "pinned_at")
    op.drop_column("teams", "keep_best")
    op.drop_column("jobs", "swept_at")
    op.drop_column("jobs", "disk_bytes")
    op.drop_column("workers", "disk")
