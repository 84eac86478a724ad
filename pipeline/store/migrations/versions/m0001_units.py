"""Units of work."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade() -> None:
    """Add the table of units."""
    op.create_table(
        "octray_units",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("work", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("record", sa.LargeBinary),
        sa.Column("rank", sa.SmallInteger),
        sa.Column("probability", sa.Double),
        sa.Column("outputs", sa.Text),
        sa.Column("scored_at", sa.Double),
        sqlite_autoincrement=True,
    )
    op.create_index("octray_units_key", "octray_units", ["key", "job"], unique=True)
    op.create_index("octray_units_state", "octray_units", ["job", "state", "position"])


def downgrade() -> None:
    """Remove it."""
    op.drop_table("octray_units")
