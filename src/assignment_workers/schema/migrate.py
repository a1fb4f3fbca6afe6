"""Bring a database to the schema of this version, or say what it lacks."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from sqlalchemy.exc import NotSupportedError, OperationalError, ProgrammingError

from assignment_workers.errors import DatabaseUnavailable, SchemaMismatch
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.dialer_schema import in_schema, schema_of
from assignment_workers.schema.engine import KEEPALIVES, bound, connect, driver_url, locate_dialer

VERSION_TABLE = "alembic_version"
MIGRATION = "assignment-workers schema migrate"
"""What a migration's sessions are called in `pg_stat_activity`."""
STATEMENT_AT_MOST = timedelta(minutes=30)
OUR_VIEW = "assignment-workers: a view for the old reader"
"""The comment by which a view of ours in `public` is known."""


def upgrade(
    database_url: str, *, lock_timeout: timedelta | None = None, phone_region: str = "GB"
) -> str:
    """Run every migration that is missing, each in its transaction; returns the revision reached.

    Safe to run twice and from several processes at once: an advisory lock lets one in after the
    other. Raises `DatabaseUnavailable`, and `SchemaMismatch` where something that is not ours
    stands in the way, a view of a table that changes. With `lock_timeout` it waits no longer than
    that for any lock, and raises SQLAlchemy's `OperationalError` where it would have. With
    `phone_region` the phone numbers of older versions are read.
    """
    engine = connect(
        database_url,
        name=MIGRATION,
        statement_timeout=STATEMENT_AT_MOST,
        lock_timeout=timedelta() if lock_timeout is None else lock_timeout,
    )
    try:
        with engine.connect() as connection:
            config = _config(connection)
            config.attributes["phone_region"] = phone_region
            command.upgrade(config, "head")
            return head()
    except (OperationalError, ProgrammingError) as error:
        if lock_timeout is not None and isinstance(error.orig, LockNotAvailable):
            raise
        raise unreachable(error) from error
    except NotSupportedError as error:
        raise SchemaMismatch(f"the schema cannot be changed: {_in_the_way(error)}") from error
    finally:
        engine.dispose()


def plan(database_url: str) -> str:
    """The SQL that `upgrade` would run, without running it; empty when nothing is missing."""
    engine = _engine(database_url)
    output = io.StringIO()
    try:
        with engine.connect() as connection:
            at, schema = revision(connection), schema_of(connection)
            if at == head():
                return ""
            config = _config(None, output=output)
            command.upgrade(config, f"{at or 'base'}:head", sql=True)
    except (OperationalError, ProgrammingError) as error:
        raise unreachable(error) from error
    finally:
        engine.dispose()
    return in_schema(output.getvalue(), schema)


def _engine(database_url: str) -> Engine:
    """An engine for statements that take as long as they need while the server is at work."""
    engine = create_engine(
        driver_url(database_url), connect_args={"connect_timeout": 5, **KEEPALIVES}
    )
    locate_dialer(engine, database_url)
    bound(engine, timedelta(days=1))
    return engine


def check(connection: Connection) -> None:
    """Raise `SchemaMismatch` unless the schema is ours: what is missing, and what mends it."""
    at = revision(connection)
    if at != head():
        found = f"at revision {at}" if at else "not there"
        raise SchemaMismatch(
            f"the schema `assignment` is {found}, this version needs {head()}: "
            "run `assignment-workers schema migrate`"
        )
    check_dialer_tables(connection)
    check_queue_tables(connection)


def check_dialer_tables(connection: Connection) -> None:
    """Raise `SchemaMismatch` for the first table of the dialer that lacks a column we use."""
    inspector, schema = inspect(connection), schema_of(connection)
    for table in Agent.metadata.sorted_tables:
        if not inspector.has_table(table.name, schema=schema):
            raise SchemaMismatch(
                f"the table {schema}.{table.name} is not there: "
                "run `assignment-workers schema migrate`"
            )
        found = {column["name"] for column in inspector.get_columns(table.name, schema=schema)}
        missing = [column.name for column in table.columns if column.name not in found]
        if missing:
            raise SchemaMismatch(
                f"the table {schema}.{table.name} lacks {', '.join(missing)}: "
                "run `assignment-workers schema migrate`; see docs/adopting.md"
            )


def check_queue_tables(connection: Connection) -> None:
    """Raise `SchemaMismatch` where the dialer's own queue tables are still fed: two queues."""
    found = connection.execute(_QUEUE_TABLES, {"comment": OUR_VIEW}).first()
    if found is not None:
        raise SchemaMismatch(
            f"the table {schema_of(connection)}.{found.name} (column {found.column})"
            " is still the dialer's own: "
            "run `assignment-workers schema migrate`, or `schema inspect` to see what is there; "
            "see docs/adopting.md"
        )


_QUEUE_TABLES = text("""
    SELECT c.relname AS name, coalesce(min(a.attname) FILTER (
               WHERE a.attname IN ('assigned_to_agent', 'assigned_to_agent_id')
           ), 'user_id') AS column
    FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
    AND c.relname IN ('unsigned_users_queue', 'outstanding_requests_queue')
    AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND obj_description(c.oid, 'pg_class') IS DISTINCT FROM :comment
    GROUP BY c.relname ORDER BY c.relname LIMIT 1
""")


def revision(connection: Connection) -> str | None:
    """The revision that the database is at; None when it was never migrated."""
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "version_table_schema": "assignment"}
    )
    return context.get_current_revision()


def head() -> str:
    """The revision that this version needs."""
    found = ScriptDirectory.from_config(_config(None)).get_current_head()
    if found is None:
        raise SchemaMismatch("this installation has no migrations: install it again")
    return found


def unreachable(error: OperationalError | ProgrammingError) -> DatabaseUnavailable:
    """One line for a database that does not answer, without its address: that holds a password.

    An address with an option that PostgreSQL does not know is an error of the program to its
    driver; one that a server answered with is raised again.
    """
    if isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", None):
        raise error
    reason = str(error.orig).strip().splitlines()
    return DatabaseUnavailable(f"the database cannot be reached: {reason[0] if reason else error}")


def _in_the_way(error: NotSupportedError) -> str:
    """What stands in the way, in one line, and whose it is."""
    said: Any = error.orig
    return "; ".join(filter(None, (said.diag.message_primary, said.diag.message_detail)))


def _config(connection: Connection | None, *, output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output) if output else Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
