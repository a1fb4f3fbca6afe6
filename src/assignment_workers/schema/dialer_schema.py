"""The PostgreSQL schema of the dialer's tables: `public`, or the one that an existing dialer uses.

The SQL of this package names that schema `public`. On a connection to a database whose dialer is in
another schema, the name is replaced in every statement before it is sent, including function
bodies. Parameters are never changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import psycopg
from psycopg.abc import Params, Query
from psycopg.sql import SQL, Literal
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from assignment_workers.errors import UsageError
from assignment_workers.schema.deadline import BoundedConnection

PUBLIC = "public"
MARK = "assignment-workers: the tables of the dialer are in the schema "
"""The beginning of the comment on the schema `assignment`, written if the dialer's tables are not
in `public`. The name of their schema follows it.
"""
_PUBLIC = re.compile(r"\bpublic\b")
_PLAIN = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def checked(name: str) -> str:
    """Return the schema name `name` if SQL needs no quotes for it.

    Raises `UsageError` otherwise.
    """
    if not _PLAIN.fullmatch(name):
        raise UsageError(
            f"the database's address: schema={name}: the schema's name has to be of small letters,"
            " digits and underscores; rename it, or leave the parameter out for `public`"
        )
    return name


def in_schema(sql: str, schema: str) -> str:
    """Return the text `sql` with `schema` in place of the schema name `public`.

    `sql` is SQL, the name of a table, or a message to a person that names tables.
    """
    return sql if schema == PUBLIC else _PUBLIC.sub(schema, sql)


def schema_of(connection: Connection) -> str:
    """Return the schema of the dialer's tables, as found when the connection was opened.

    `public` if `locate` was not called for the connection's engine.
    """
    return str(getattr(connection.connection.driver_connection, "dialer_schema", PUBLIC))


def is_named(connection: Connection) -> bool:
    """Return True if the database address names the schema of the dialer's tables.

    If it does, the schema is not looked up in the search path.
    """
    return bool(getattr(connection.connection.driver_connection, "dialer_schema_named", False))


def marking(connection: Connection) -> str | None:
    """Return the statement that records the dialer's schema in a comment on our schema.

    None if the dialer's schema is `public`.
    """
    schema = schema_of(connection)
    return None if schema == PUBLIC else f"COMMENT ON SCHEMA assignment IS '{MARK}{schema}'"


def locate(engine: Engine, named: str | None) -> None:
    """Determine the schema of the dialer's tables on each new connection of the engine.

    Statements on the connection then use that schema in place of `public`. The schema is the first
    of these that is known: the one recorded when the dialer's tables were taken over; `named`, from
    the database's address; the first schema of the search path that has the dialer's tables;
    `public`. Opening a connection raises `UsageError` if `named` differs from the recorded schema,
    or does not exist.
    """

    def connected(_: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        to = cast("BoundedConnection", record.driver_connection)
        try:
            to.dialer_schema = _found(to, named)
            to.dialer_schema_named = named is not None
            to.rollback()
        except (psycopg.Error, UsageError):
            to.close()  # the pool never had it, and would leave it open
            raise
        if to.dialer_schema != PUBLIC:
            to.cursor_factory = _Cursor

    event.listen(engine, "connect", connected)


def _found(connection: psycopg.Connection[Any], named: str | None) -> str:
    row = connection.execute(_FIND, [named]).fetchone()
    marked, is_ours, on_path, is_there = row or (None, False, None, True)
    if not is_there:
        raise UsageError(
            f"the database's address: schema={named}: there is no such schema in this database"
        )
    taken_over = marked or (PUBLIC if is_ours else None)
    if named is not None and taken_over is not None and named != taken_over:
        raise UsageError(
            f"the database's address: schema={named}: this database was taken over with the"
            f" dialer's tables in the schema {taken_over}: name that one, or none"
        )
    return checked(str(taken_over or named or on_path or PUBLIC))


class _Cursor(psycopg.Cursor[Any]):
    """A cursor that sends each statement with the dialer's schema in place of `public`."""

    def execute(self, query: Query, *given: Any, **options: Any) -> _Cursor:  # noqa: ANN401 - psycopg's
        return super().execute(self._in_schema(query), *given, **options)

    def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        super().executemany(self._in_schema(query), params_seq, returning=returning)

    def _in_schema(self, query: Query) -> Query:
        schema = cast("BoundedConnection", self.connection).dialer_schema
        return cast("Query", in_schema(query, schema)) if isinstance(query, str) else query


_FIND = SQL("""
    SELECT substring(obj_description(to_regnamespace('assignment'), 'pg_namespace') FROM {mark}),
           EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'assignment'
                   AND c.relname IN ('alembic_version', 'schema_revision')),
           (SELECT n.nspname
            FROM unnest(current_schemas(false)) WITH ORDINALITY AS path(name, place)
            JOIN pg_namespace n ON n.nspname = path.name
            WHERE EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid
                AND c.relkind IN ('r', 'p') AND c.relname IN ('unsigned_users_queue',
                    'outstanding_requests_queue', 'user_call_scores', 'callbacks'))
            ORDER BY place LIMIT 1),
           to_regnamespace(coalesce(%s, 'pg_catalog')) IS NOT NULL
""").format(mark=Literal(f"^{MARK}(.*)$"))
