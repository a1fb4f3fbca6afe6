"""Run our migrations on a given connection, or print them as SQL text for `--dry-run`."""

from __future__ import annotations

import time
from typing import Any

from alembic import context
from sqlalchemy import Connection, text

from assignment_workers.schema.base import Base
from assignment_workers.schema.dialer_schema import marking
from assignment_workers.schema.migrate import VERSION_TABLE, parting

LOCK = 0x61737369676E
"""The advisory lock under which one process at a time migrates: 'assign' in ASCII."""
TURN_SECONDS = 0.1

options: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "version_table": VERSION_TABLE,
    "version_table_schema": "assignment",
    "include_schemas": True,
    "transaction_per_migration": True,
}


def run_on(connection: Connection) -> None:
    """Migrate the database; only one process at a time does so.

    An advisory lock (`LOCK`) ensures this. The process with the lock first creates the schema
    `assignment`, because the version table is in it.

    A process without the lock tries again every 0.1 seconds, and ends its transaction before each
    pause. The reason: the process with the lock may build an index of a table in use, and the build
    waits for all open transactions. If the process without the lock had an open transaction, the
    two processes would wait for each other.
    """
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}).scalar():
        connection.commit()
        time.sleep(TURN_SECONDS)
    try:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS assignment"))
        mark = marking(connection)
        if mark is not None:
            connection.execute(text(mark))
        for statement in parting(connection):
            connection.execute(text(statement))
        connection.commit()
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
        connection.commit()


given = context.config.attributes.get("connection")
if given is not None:
    run_on(given)
else:
    context.configure(dialect_name="postgresql", **options)
    with context.begin_transaction():
        context.execute("CREATE SCHEMA IF NOT EXISTS assignment")
        context.run_migrations()
