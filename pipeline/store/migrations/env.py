"""What Alembic runs: the migrations, on the connection and within the transaction that it is given."""

from alembic import context

from pipeline.store.database import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
