"""Notifications: webhooks, which e-mails a person wants, and the deliveries of both

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Programs of the release before go on: every new column of an old table has a default."""
    op.add_column("memberships", words("mail_scope", "mailscope", "nothing", "mine", "team"))
    op.add_column("memberships", listed("mail_occasions", server_default="[]"))
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        listed("occasions"),
        listed("kinds"),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("old_salt", sa.String(), nullable=False),
        moment("old_until", nullable=True),
        moment("failing_since", nullable=True),
        sa.Column("off_reason", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=True),
        moment("created_at"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_webhooks_team_id"), "webhooks", ["team_id"])
    create_deliveries()


def create_deliveries() -> None:
    """The outbox."""
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("team_id", sa.String(), nullable=False),
        sa.Column("webhook_id", sa.String(), nullable=True),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        words("state", "sent", None, "waiting", "delivered", "given_up"),
        sa.Column("tries", sa.Integer(), nullable=False),
        moment("due_at"),
        moment("sending_until", nullable=True),
        listed("log"),
        moment("created_at"),
        sa.CheckConstraint("(webhook_id IS NULL) <> (user_id IS NULL)", name="one_receiver"),
        *(
            sa.ForeignKeyConstraint([column], [f"{table}.id"], ondelete="CASCADE")
            for column, table in (
                ("team_id", "teams"),
                ("webhook_id", "webhooks"),
                ("user_id", "users"),
                ("job_id", "jobs"),
            )
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    for column in ("team_id", "webhook_id", "user_id"):
        op.create_index(op.f(f"ix_deliveries_{column}"), "deliveries", [column])
    waiting, ended = sa.text("state = 'waiting'"), sa.text("state <> 'waiting'")
    op.create_index("deliveries_due", "deliveries", ["due_at"], postgresql_where=waiting)
    op.create_index("deliveries_ended", "deliveries", ["created_at"], postgresql_where=ended)


def words(name: str, kind: str, default: str | None, *known: str) -> sa.Column:
    """A column of one of these words; with a default it is the first of them."""
    known = (default, *known) if default else known
    values = sa.Enum(*known, name=f"{kind}_values", native_enum=False, create_constraint=True, length=32)
    return sa.Column(name, values, server_default=default, nullable=False)


def listed(name: str, server_default: str | None = None) -> sa.Column:
    """A column of a JSON list."""
    kind = postgresql.JSONB(astext_type=sa.Text())
    return sa.Column(name, kind, server_default=server_default, nullable=False)


def moment(name: str, *, nullable: bool = False) -> sa.Column:
    """A column of an aware time."""
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def downgrade() -> None:
    """Everything that the upgrade brought."""
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.drop_column("memberships", "mail_occasions")
    op.drop_column("memberships", "mail_scope")
