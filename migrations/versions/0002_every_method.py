"""Every method: what a job needs of a machine, and events that tell of a finished shard

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BEFORE = ("stage", "step", "eval", "sample", "checkpoint", "log", "error")
AFTER = ("stage", "step", "eval", "sample", "checkpoint", "shard", "log", "error")


def upgrade() -> None:
    """The column is empty for older jobs, which take one process."""
    op.add_column(
        "jobs",
        sa.Column(
            "resources",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
    )
    op.alter_column("jobs", "resources", server_default=None)
    limit_types(AFTER)


def downgrade() -> None:
    """Events of the newer type are told again by the attempts that follow."""
    op.execute("DELETE FROM events WHERE type = 'shard'")
    limit_types(BEFORE)
    op.drop_column("jobs", "resources")


def limit_types(known: tuple[str, ...]) -> None:
    """The types that an event may have."""
    listed = ", ".join(f"'{name}'" for name in known)
    op.drop_constraint("eventtype_values", "events", type_="check")
    op.create_check_constraint("eventtype_values", "events", f"type IN ({listed})")
