"""The table of dialer queues, with a row for each dialer queue of the dialer."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, exists, select
from sqlalchemy.dialects.postgresql import insert

from assignment_workers.schema.tables import Assignment, DialerQueue, Generation


def store_names(connection: Connection, queues: Collection[str]) -> None:
    """Store the names of the dialer's `queues`, and delete unused rows with other names.

    A row with another name stays if the queue has a generation or an assignment, because records
    refer to the row. Idempotent; a process calls this before its first build or claim. The caller
    commits.
    """
    stored = set(connection.execute(select(DialerQueue.name)).scalars())
    if missing := [{"name": name} for name in queues if name not in stored]:
        connection.execute(insert(DialerQueue).on_conflict_do_nothing(), missing)
    if unknown := [name for name in stored if name not in queues]:
        connection.execute(
            delete(DialerQueue).where(
                DialerQueue.name.in_(unknown),
                ~exists().where(Generation.queue == DialerQueue.name),
                ~exists().where(Assignment.queue == DialerQueue.name),
            )
        )
