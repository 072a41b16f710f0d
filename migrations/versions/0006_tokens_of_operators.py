"""Tokens that act as an operator, where their maker has said so

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No token that exists is one."""
    op.add_column(
        "api_tokens", sa.Column("operator", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )


def downgrade() -> None:
    """Everything that the upgrade brought."""
    op.drop_column("api_tokens", "operator")
