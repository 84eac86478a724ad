"""Jobs that several processes share."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Add the tables of jobs and of the processes that work on them."""
    op.create_table(
        "octray_jobs",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("phase", sa.SmallInteger, nullable=False),
        sa.Column("leader", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
    )
    op.create_table(
        "octray_processes",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Remove them; results stay, and no process may be at work."""
    op.drop_table("octray_processes")
    op.drop_table("octray_jobs")
