"""Views of a CRM in our own database, with the table names, columns and ids that rules use.

Views are needed if a person's id in the CRM is not an integer, or if the CRM has other names of
tables or columns. In the views, a person's id is the internal integer id from
`assignment.user_ids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import blake2b

import structlog
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, TextClause, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import ProgrammingError

from assignment_workers.assignment.crm.external_crm import optional_columns
from assignment_workers.assignment.crm.facts import split_name
from assignment_workers.errors import SchemaMismatch
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.facts import FactSource, News
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.roles import GATEWAY, READER, WORKER
from assignment_workers.schema.tables import FACT_SCHEMA
from assignment_workers.settings import Settings

log = structlog.get_logger()

TRANSLATED: dict[str | None, str] = {CrmBase.metadata.schema: FACT_SCHEMA}
"""Value of SQLAlchemy's `schema_translate_map` that makes statements read views of CRM tables.

A statement names the tables of the CRM's schema; the map replaces this schema by that of the views.
"""
_TEMPORARY = "pg_temp"
_LOCK = 0x66616374
"""Key of the advisory lock that a transaction takes to replace the views."""

_quote = postgresql.dialect().identifier_preparer.quote_identifier  # type: ignore[no-untyped-call]


@cache
def are_needed(dialer: Dialer) -> bool:
    """Return True if the dialer's rules need views, because they cannot read the CRM's own tables.

    They need views if the ids of persons are not integers, or if the CRM's name of a table or
    column differs from the name that the rules use.
    """
    return dialer.numbered is not None or any(
        each.of != each.name or any(ours != theirs for ours, theirs in each.columns.items())
        for each in dialer.sources()
    )


def probe(dialer: Dialer) -> TextClause:
    """Return a statement that tests if the CRM in our own database can be read.

    The statement selects the id of one person from the table of persons, or from the view of that
    table if the dialer needs views. The statement fails if the table or the view cannot be read.
    """
    schema = FACT_SCHEMA if are_needed(dialer) else CrmBase.metadata.schema
    return text(f"SELECT id FROM {schema}.{CrmUser.__tablename__} LIMIT 1")  # noqa: S608


def table_of(source: FactSource) -> str:
    """Return the quoted name of the table in the CRM, with its schema, as SQL."""
    schema, name = split_name(source.of)
    return f"{_quote(schema or 'crm')}.{_quote(name)}"


def column_of(source: FactSource, name: str) -> str:
    """Return the CRM's name of a column, quoted for SQL.

    `source`: the table of the column. `name`: the name by which rules refer to the column.
    """
    return str(_quote(source.columns[name]))


def queries(dialer: Dialer, *further: str) -> dict[str, str]:
    """Return the query of each view that the dialer needs, by name; an empty dict if it needs none.

    `further`: the names of columns of the table of persons that the settings need in addition.
    """
    if not are_needed(dialer):
        return {}
    return {each.name: _query(each, dialer.numbered) for each in dialer.sources(*further)}


def persons_of(dialer: Dialer, news: News) -> str | None:
    """Return a SQL query for the persons to whom the rows of a CRM table belong.

    `news`: the table. The query selects, for each row of the table, the CRM's id of the person as
    `id`, and the creation time of the row as `created_at`. Returns None if the table itself has no
    column with the person's id, or none with the creation time of the row. For example, a table may
    refer to the person only through another table.
    """
    source = next(each for each in dialer.sources() if each.name == news.table)
    person, created_at = news.person.name, news.created_at.name
    if person not in source.person_columns or created_at not in source.columns:
        return None
    return (
        f"SELECT c.{column_of(source, person)} AS id, c.{column_of(source, created_at)} AS"  # noqa: S608
        f" created_at FROM {table_of(source)} c"
    )


def _query(source: FactSource, numbered: str | None) -> str:
    persons = sorted(source.person_columns) if numbered else []
    # A row of a fact table may have no person; a person without a number is not read yet.
    join = "JOIN" if "id" in persons else "LEFT JOIN"
    columns = [
        f"i{persons.index(name)}.user_id AS {_quote(name)}"
        if name in persons
        else f"c.{column_of(source, name)} AS {_quote(name)}"
        for name in source.columns
    ]
    joins = [
        f" {join} assignment.user_ids i{number}"
        f" ON i{number}.{numbered} = c.{column_of(source, name)}"
        for number, name in enumerate(persons)
    ]
    return f"SELECT {', '.join(columns)} FROM {table_of(source)} c{''.join(joins)}"  # noqa: S608


def make(connection: Connection, wanted: Mapping[str, str]) -> list[str]:
    """Create missing views, and replace views whose query has changed.

    Returns one list with the names of the created views and of the replaced views. `wanted`: the
    present query of each view, by the view's name. The caller commits. Raises
    `SchemaMismatch` if the database role has no right to create the views, or if the CRM lacks a
    table or column.
    """
    if not wanted:
        return []
    there = {row.name: row.digest for row in connection.execute(_THERE, {"schema": FACT_SCHEMA})}
    changed = [name for name, query in wanted.items() if there.get(name) != _digest(query)]
    try:
        for name in changed:
            _replace(connection, f"{FACT_SCHEMA}.{_quote(name)}", wanted[name])
    except ProgrammingError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            why = str(error.orig).splitlines()[0]
            raise SchemaMismatch(
                f"the views of the CRM's tables are not those of this dialer ({why}):"
                " run `assignment-workers schema migrate`"
            ) from error
        raise _unreadable(error) from error
    return changed


def stand_in(connection: Connection, dialer: Dialer, settings: Settings) -> None:
    """Create temporary views, which this connection then reads in place of the permanent views.

    Use this only for a CRM in our own database; for an external CRM, use `mirror_tables.stand_in`.
    The views are of the CRM's tables: there is a view for each table that `dialer` declares, with
    the columns that `dialer` declares. So the rules of a new dialer can be tried while the
    permanent views, which other connections read, stay as they are. If the dialer needs no views,
    none are created. Raises `SchemaMismatch` if the CRM lacks a declared table or column, and
    `ProgrammingError` if the CRM's table of persons cannot be read.
    """
    wanted = queries(dialer, *optional_columns(settings).values())
    try:
        for name, query in wanted.items():
            statement = f"CREATE TEMPORARY VIEW {_quote(name)} AS {query}"
            connection.exec_driver_sql(statement.replace("%", "%%"))
        if wanted:
            temporary = {CrmBase.metadata.schema: _TEMPORARY}
            connection.execution_options(schema_translate_map=temporary)
    except ProgrammingError as error:
        raise _unreadable(error) from error
    connection.execute(select(CrmUser.id).limit(1))


def _unreadable(error: ProgrammingError) -> SchemaMismatch:
    why = str(error.orig).splitlines()[0]
    return SchemaMismatch(f"the CRM's tables cannot be read as declared: {why}")


def prepare(connection: Connection, dialer: Dialer, settings: Settings) -> None:
    """Create the views that the dialer needs to read a CRM in our own database, and commit.

    No effect with an external CRM. Raises `SchemaMismatch` if the views cannot be created.
    """
    if settings.crm_database_url is None:
        make(connection, queries(dialer, *optional_columns(settings).values()))
        connection.commit()


def prepare_if_possible(connection: Connection, dialer: Dialer, settings: Settings) -> None:
    """Call `prepare`, and only log a warning if the views cannot be created.

    The reason may be that the CRM's tables do not exist yet. The job that discovers users calls
    `prepare` again.
    """
    try:
        prepare(connection, dialer, settings)
    except SchemaMismatch as error:
        connection.rollback()
        log.warning("crm_unreadable", reason=str(error))


def _replace(connection: Connection, view: str, query: str) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    readers = connection.execute(_READERS, {"roles": [WORKER, GATEWAY, READER]}).scalars().all()
    for statement in (
        f"DROP VIEW IF EXISTS {view}",
        f"CREATE VIEW {view} AS {query}",
        f"COMMENT ON VIEW {view} IS '{_digest(query)}'",
        *(f"GRANT SELECT ON {view} TO {role}" for role in readers),
    ):
        connection.exec_driver_sql(statement.replace("%", "%%"))


def _digest(query: str) -> str:
    return blake2b(query.encode(), digest_size=16).hexdigest()


_THERE = text("""
    SELECT c.relname AS name, obj_description(c.oid, 'pg_class') AS digest
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND c.relkind = 'v'
""")
_READERS = text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:roles)")
