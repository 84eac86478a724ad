"""The tables of a ledger, on SQLite and on PostgreSQL."""

from sqlalchemy import BigInteger, Column, Double, Index, Integer, LargeBinary, MetaData, SmallInteger, Table, Text

VERSION = 2
PENDING, HELD, FINISHED, FAILED = 0, 1, 2, 3

metadata = MetaData()

about = Table("octray_ledger", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

studies = Table(
    "octray_studies",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("run", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("work", LargeBinary, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("record", LargeBinary),
    Column("rank", SmallInteger),
    Column("probability", Double),
    Column("outputs", Text),
    Column("scored_at", Double),
    Index("octray_studies_key", "key", "run", unique=True),  # the run last: by it alone, the index below is the one to use
    Index("octray_studies_state", "run", "state", "position"),
    sqlite_autoincrement=True,  # an id is never used again, so that a late outcome finds no other study
)
