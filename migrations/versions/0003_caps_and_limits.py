"""Caps, limits and requests: what teams may occupy, how long a job may run, who sees to the workers

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Programs of the release before go on: every column has a default. The first person is an operator."""
    op.create_table(
        "caps",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=True),
        sa.Column(
            "slot",
            sa.Enum(
                "compute", "light", name="slot_values", native_enum=False, create_constraint=True, length=32
            ),
            nullable=False,
        ),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_caps_team_id"), "caps", ["team_id"])
    op.create_index(
        "caps_of_team",
        "caps",
        ["slot", "team_id"],
        unique=True,
        postgresql_where=sa.text("team_id IS NOT NULL"),
    )
    op.create_index("caps_of_all", "caps", ["slot"], unique=True, postgresql_where=sa.text("team_id IS NULL"))
    op.add_column("teams", sa.Column("max_run_seconds", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("max_run_seconds", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("stop_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("resume_checkpoint_id", sa.String(), nullable=True))
    op.add_column("workers", sa.Column("cpus", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column(
        "users", sa.Column("operator", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.execute(
        "UPDATE users SET operator = true WHERE id = (SELECT id FROM users ORDER BY created_at, id LIMIT 1)"
    )


def downgrade() -> None:
    """Everything that the upgrade brought."""
    op.drop_column("users", "operator")
    op.drop_column("workers", "cpus")
    for name in ("resume_checkpoint_id", "stop_requested_at", "max_run_seconds"):
        op.drop_column("jobs", name)
    op.drop_column("teams", "max_run_seconds")
    op.drop_table("caps")
