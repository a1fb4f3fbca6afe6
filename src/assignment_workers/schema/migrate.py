"""Migrate a database to the schema of this version, or report what it lacks."""

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
from assignment_workers.schema.engine import (
    bound,
    connect,
    connect_arguments,
    driver_url,
    locate_dialer,
)

VERSION_TABLE = "schema_revision"
FIRST_TABLE = "alembic_version"
"""The revision table of release 0.1.

Processes of 0.1 start only if this table has their revision, 0015 (`OF_0_1`). This release stores
its own revision in another table (`VERSION_TABLE`) and leaves revision 0015 in this one. So
processes of 0.1 can run beside those of this release during the upgrade from 0.1, and can be
started again after that upgrade. Release 0.3.0 ends both possibilities: it is to remove what only
processes of 0.1 need.
"""
OF_0_1 = "0015"
MIGRATION = "assignment-workers schema migrate"
"""The application name of a migration's sessions in `pg_stat_activity`."""
STATEMENT_AT_MOST = timedelta(minutes=30)
SERVES_FROM = "0030"
"""The oldest schema revision whose processes may run with the schema of this release.

Each release is made for one schema revision (`head`). The processes of an older release may run
with the schema of this release if the older release was made for revision `SERVES_FROM` or a later
revision. They do so during an upgrade, or after a return to the older release. Release 0.1 does not
read this number; it checks `FIRST_TABLE`.

If a new migration removes something that older releases use, set this constant to the revision of
the oldest release that does not use it.
"""
_SERVES = "Serves versions from revision "
"""The beginning of the comment on the revision table; the oldest supported revision follows it.

An older release reads the comment to find out if it may run with the newer schema (`SERVES_FROM`).
"""
OUR_VIEW = "assignment-workers: a view for the old reader"
"""The comment by which this package recognises the views that it has made in the schema `public`.

Such a view has the name of a table of the replaced dialer, such as `unsigned_users_queue`. It is
for programs that still read that table. A table or view of that name without this comment is not
ours.
"""


def upgrade(
    database_url: str, *, lock_timeout: timedelta | None = None, phone_region: str = "GB"
) -> str:
    """Run every missing migration, each in its own transaction; return the revision reached.

    Safe to repeat, and to run in several processes at once: an advisory lock serialises them.
    `lock_timeout` limits each wait for a lock; a longer wait raises SQLAlchemy's
    `OperationalError`. `phone_region` is the region, such as `GB`, of phone numbers without a
    country code. The migration from release 0.1 uses the region when it parses the phone numbers of
    stored suppressions.

    Raises `DatabaseUnavailable` if the database does not answer. Raises `SchemaMismatch` if the
    schema is that of a newer release. Raises `SchemaMismatch`, too, if an object that is not ours
    prevents a migration: for example, a migration changes a table, and the object is a view of that
    table.
    """
    engine = connect(
        database_url,
        name=MIGRATION,
        statement_timeout=STATEMENT_AT_MOST,
        lock_timeout=timedelta() if lock_timeout is None else lock_timeout,
    )
    try:
        with engine.connect() as connection:
            _refuse_newer(connection)
            config = _config(connection)
            config.attributes["phone_region"] = phone_region
            command.upgrade(config, "head")
            connection.execute(
                text(f"COMMENT ON TABLE assignment.{VERSION_TABLE} IS '{_SERVES}{SERVES_FROM}'")
            )
            connection.commit()
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
    """Return the SQL that `upgrade` would run, without running it. Empty if nothing is missing."""
    engine = _engine(database_url)
    output = io.StringIO()
    try:
        with engine.connect() as connection:
            at, schema = revision(connection), schema_of(connection)
            _refuse_newer(connection)
            if at == head():
                return ""
            output.writelines(f"{each};\n\n" for each in parting(connection))
            config = _config(None, output=output)
            command.upgrade(config, f"{at or 'base'}:head", sql=True)
    except (OperationalError, ProgrammingError) as error:
        raise unreachable(error) from error
    finally:
        engine.dispose()
    return in_schema(output.getvalue(), schema)


def _engine(database_url: str) -> Engine:
    """Return an engine that waits for a statement as long as the server is working on it."""
    engine = create_engine(
        url := driver_url(database_url), connect_args=connect_arguments(url.query)
    )
    locate_dialer(engine, database_url)
    bound(engine, timedelta(days=1))
    return engine


def check(connection: Connection) -> None:
    """Raise `SchemaMismatch` unless this release works with the database's schema.

    It works with the schema of its own revision. It also works with a newer schema if the comment
    on the revision table allows that. The comment names a revision (`SERVES_FROM`): releases with
    that revision or a later one may run with the newer schema. The dialer's tables are checked as
    well. The error names the remedy.
    """
    at, needed = revision(connection), head()
    if at != needed and _is_newer(at):
        serves = connection.execute(_COMMENT, {"table": VERSION_TABLE}).scalar_one_or_none() or ""
        if not serves.startswith(_SERVES) or serves.removeprefix(_SERVES) > needed:
            raise SchemaMismatch(
                f"the schema `assignment` is at revision {at}, of a newer version that no longer"
                f" serves this one ({needed}): start the newer version"
            )
    elif at != needed:
        found = f"at revision {at}" if at else "not there"
        raise SchemaMismatch(
            f"the schema `assignment` is {found}, this version needs {needed}: "
            "run `assignment-workers schema migrate`"
        )
    check_dialer_tables(connection)
    check_queue_tables(connection)


def check_dialer_tables(connection: Connection) -> None:
    """Raise `SchemaMismatch` if a table of the dialer is missing or lacks a column we use."""
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
                "run `assignment-workers schema migrate`"
            )


def check_queue_tables(connection: Connection) -> None:
    """Raise `SchemaMismatch` if the dialer's own queue tables still exist.

    They are `unsigned_users_queue` and `outstanding_requests_queue`. After a migration only this
    package's views may have these names.
    """
    found = connection.execute(_QUEUE_TABLES, {"comment": OUR_VIEW}).first()
    if found is not None:
        raise SchemaMismatch(
            f"the table {schema_of(connection)}.{found.name} (column {found.column})"
            " is still the dialer's own: "
            "run `assignment-workers schema migrate`, or `schema inspect` to see what is there"
        )


_PART = (
    "CREATE TABLE assignment.{ours} (version_num varchar(32) NOT NULL PRIMARY KEY)",
    "INSERT INTO assignment.{ours} SELECT version_num FROM assignment.{first}",
    # A build between the two releases went on in the first table.
    "UPDATE assignment.{first} SET version_num = '{old}' WHERE version_num > '{old}'",
    "COMMENT ON TABLE assignment.{first} IS 'of release 0.1, until 0.3.0'",
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


_COMMENT = text("""
    SELECT obj_description(c.oid, 'pg_class') FROM pg_class c
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'assignment')
    AND c.relname = :table
""")


def _refuse_newer(connection: Connection) -> None:
    at = revision(connection)
    if _is_newer(at):
        raise SchemaMismatch(
            f"the schema `assignment` is at revision {at}, of a newer version than this one"
            f" ({head()}): run `schema migrate` of that version"
        )


def _is_newer(at: str | None) -> bool:
    """Return True if this release does not know the revision `at`.

    Returns False if `at` is None, because the database was then never migrated.
    """
    scripts = ScriptDirectory.from_config(_config(None))
    return at is not None and at not in {each.revision for each in scripts.walk_revisions()}


def revision(connection: Connection) -> str | None:
    """Return the schema revision of the database; None if it was never migrated."""
    return _revision(connection, VERSION_TABLE) or _revision(connection, FIRST_TABLE)


def _revision(connection: Connection, table: str) -> str | None:
    context = MigrationContext.configure(
        connection, opts={"version_table": table, "version_table_schema": "assignment"}
    )
    return context.get_current_revision()


def parting(connection: Connection) -> list[str]:
    """Return the statements that create the revision table of this release, for a schema of 0.1.

    Release 0.1 used another table (`FIRST_TABLE`), which stays. Empty if the new table exists
    already, or if the database was never migrated.
    """
    at = _revision(connection, FIRST_TABLE)
    if at is None or _revision(connection, VERSION_TABLE) is not None:
        return []
    return [each.format(ours=VERSION_TABLE, first=FIRST_TABLE, old=OF_0_1) for each in _PART]


def head() -> str:
    """Return the schema revision that this release needs.

    Raises `SchemaMismatch` if the installation lacks the migration files.
    """
    found = ScriptDirectory.from_config(_config(None)).get_current_head()
    if found is None:
        raise SchemaMismatch("this installation has no migrations: install it again")
    return found


def unreachable(error: OperationalError | ProgrammingError) -> DatabaseUnavailable:
    """Return a one-line error for a database that does not answer, without the address.

    The address is left out because it has a password. A `ProgrammingError` without an SQLSTATE
    comes from the driver, for an address with an unknown option. One with an SQLSTATE came from a
    server, and is raised again.
    """
    if isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", None):
        raise error
    reason = str(error.orig).strip().splitlines()
    return DatabaseUnavailable(f"the database cannot be reached: {reason[0] if reason else error}")


def _in_the_way(error: NotSupportedError) -> str:
    """Return the server's message on the object that prevents a migration, in one line."""
    said: Any = error.orig
    return "; ".join(filter(None, (said.diag.message_primary, said.diag.message_detail)))


def _config(connection: Connection | None, *, output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output) if output else Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
