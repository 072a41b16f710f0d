"""Jobs that wait for another or rest stand apart from those that may be claimed

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

IN_LINE = sa.text("state = 'queued' AND ready")


def upgrade() -> None:
    """What programs of the release before submit is called ready: the claim looks at what it waits for, too."""
    op.add_column("jobs", sa.Column("ready", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.execute("""
        UPDATE jobs j SET ready = false
         WHERE j.state = 'queued' AND (j.run_after > clock_timestamp() OR EXISTS (
               SELECT FROM job_dependencies d JOIN jobs o ON o.id = d.waits_for_id
                WHERE d.job_id = j.id AND o.state <> 'succeeded'))""")
    op.drop_index("jobs_claim", "jobs")
    by_needs = ["slot", "team_id", "resources", sa.text("coalesce(disk_bytes, 0)"), "rank_at", "id"]
    op.create_index("jobs_claim", "jobs", by_needs, postgresql_where=IN_LINE)
    op.create_index("jobs_in_line", "jobs", ["slot", "team_id", "rank_at", "id"], postgresql_where=IN_LINE)
    resting = sa.text("state = 'queued' AND NOT ready")
    op.create_index("jobs_rest", "jobs", ["slot", "run_after"], postgresql_where=resting)


def downgrade() -> None:
    """Everything that the upgrade brought."""
    op.drop_index("jobs_rest", "jobs")
    op.drop_index("jobs_in_line", "jobs")
    op.drop_index("jobs_claim", "jobs")
    queued = sa.text("state = 'queued'")
    op.create_index("jobs_claim", "jobs", ["slot", "team_id", "rank_at", "id"], postgresql_where=queued)
    op.drop_column("jobs", "ready")
