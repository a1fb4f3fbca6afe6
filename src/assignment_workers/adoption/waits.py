"""Report the database sessions whose locks a migration waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from assignment_workers.adoption.backfill import Tell
from assignment_workers.errors import UsageError
from assignment_workers.schema.engine import connect
from assignment_workers.schema.migrate import MIGRATION

LOOK_SECONDS = 0.1
AGAIN_SECONDS = 5.0
"""The shortest time, in seconds, between two reports about the same database session.

The session holds a lock that the migration waits for.
"""


@contextmanager
def telling_of_waits(database_url: str, tell: Tell) -> Iterator[None]:
    """Report each database session whose lock the migration waits for, while the block runs.

    A thread calls `tell` with one line for each report.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(database_url, tell, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def open_transactions(connection: Connection) -> Iterator[str]:
    """Yield a line about each transaction that a migration would wait for.

    Only transactions that have been open for `OPEN_FOR_SECONDS` are reported.
    """
    for row in connection.execute(_OPEN, {"seconds": OPEN_FOR_SECONDS}):
        yield (
            f"session {row.pid} of {row.role} ({row.program or 'no name'}) is in a transaction for"
            f" {row.seconds:.0f} s ({row.state}): an index that `schema migrate` builds, and the"
            " switch if it has read the queue tables, wait until that transaction ends"
        )


OPEN_FOR_SECONDS = 30
_OPEN = text("""
    SELECT pid, coalesce(usename, '?') AS role, application_name AS program, state,
           extract(epoch FROM clock_timestamp() - xact_start) AS seconds
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend'
    AND xact_start < clock_timestamp() - make_interval(secs => :seconds) ORDER BY xact_start
""")


def _look(database_url: str, tell: Tell, over: threading.Event) -> None:
    engine = connect(
        database_url,
        name="assignment-workers schema migrate: waits",
        statement_timeout=timedelta(seconds=5),
    )
    said: dict[int, float] = {}
    try:
        while not over.wait(LOOK_SECONDS):
            try:
                with engine.connect() as connection:
                    rows = connection.execute(_BLOCKING, {"name": MIGRATION}).all()
            except (DBAPIError, UsageError):
                continue  # the migration itself reports problems of the database
            for row in rows:
                if monotonic() - said.get(row.pid, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                    said[row.pid] = monotonic()
                    tell(
                        f"waits for {row.mode}: session {row.pid} of {row.role}"
                        f" ({row.program or 'no name'}) is in a transaction for"
                        f" {row.seconds:.0f} s: {row.query}"
                    )
    finally:
        engine.dispose()


_BLOCKING = text("""
    SELECT DISTINCT ON (b.pid) b.pid, coalesce(b.usename, '?') AS role,
           b.application_name AS program, w.mode,
           extract(epoch FROM clock_timestamp() - coalesce(b.xact_start, b.backend_start))
           AS seconds,
           left(regexp_replace(coalesce(b.query, ''), '\\s+', ' ', 'g'), 80) AS query
    FROM pg_stat_activity a
    JOIN LATERAL (
        SELECT mode || coalesce(' on ' || relation::regclass::text, '') AS mode FROM pg_locks
        WHERE pid = a.pid AND NOT granted LIMIT 1) AS w ON true
    JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS blocking(pid) ON true
    JOIN pg_stat_activity b ON b.pid = blocking.pid
    WHERE a.application_name = :name AND a.datname = current_database() ORDER BY b.pid
""")
