"""A random text for each job."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("octray_jobs", recreate="auto") as table:
        table.add_column(sa.Column("salt", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Remove it; hashes that were made with it find nothing any more."""
    with op.batch_alter_table("octray_jobs") as table:
        table.drop_column("salt")
