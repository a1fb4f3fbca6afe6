"""The tables of the mirror, made from the facts that the dialer declares.

The mirror is the copy of an external CRM in our own database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Index, MetaData, Table, delete, text
from sqlalchemy.dialects import postgresql

from assignment_workers.assignment.crm.external_crm import declared_facts
from assignment_workers.assignment.crm.facts import USERS
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.facts import ExternalFacts, FactSource, stored_type
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import MIRROR_SCHEMA
from assignment_workers.schema.roles import GATEWAY, READER, WORKER
from assignment_workers.schema.tables import CrmRead
from assignment_workers.settings import Settings

INCOMING = "incoming_"
"""The prefix of the names of staging tables, which a read of the CRM fills.

When the read is complete, their rows replace the rows of the mirror (our copy of the CRM).
"""
_LOCK = 0x6D697272
"""Key of the advisory lock that a transaction takes to create the tables of the mirror."""

_TEMPORARY = "pg_temp"

_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
_quote = _dialect.identifier_preparer.quote


def table_of(source: FactSource, *, incoming: bool = False) -> Table:
    """Return the table of the mirror (our copy of the CRM) for this table of the CRM.

    `incoming`: True for the staging table, which a read of the CRM fills.
    """
    metadata = MetaData(schema=MIRROR_SCHEMA, naming_convention=CrmBase.metadata.naming_convention)
    made = Table(
        f"{INCOMING if incoming else ''}{source.name}",
        metadata,
        *(
            Column(name, stored_type(type_), primary_key=name in source.key, autoincrement=False)
            for name, type_ in source.types.items()
        ),
        prefixes=["UNLOGGED"] if incoming else [],
    )
    if not incoming and source.link is not None:
        Index(None, made.c[source.link.column])
    return made


def prepare(connection: Connection, dialer: Dialer, settings: Settings) -> None:
    """Create the tables of our copy of the external CRM of `settings`, if any, and commit."""
    if settings.crm_database_url is not None:
        make(connection, declared_facts(dialer, settings))
        connection.commit()


def make(connection: Connection, declared: ExternalFacts) -> list[str]:
    """Change the tables of the mirror to those in `declared`; return the names of changed tables.

    The mirror is our copy of an external CRM. Missing tables are created. Tables that differ from
    `declared` are dropped and created again. Tables that are not declared are dropped. A new table
    is empty until the next read of the CRM. Therefore, any change deletes the record of the last
    read; without this record, the mirror counts as never filled. The caller commits.
    """
    if not _differing(connection, declared):
        return []
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    changed = _differing(connection, declared)
    made = [
        table_of(source, incoming=incoming)
        for source in declared.sources
        for incoming in (False, True)
    ]
    owner, readers = _roles(connection)
    for name in changed:
        connection.execute(text(f'DROP TABLE IF EXISTS {MIRROR_SCHEMA}."{name}"'))
    for table in made:
        if table.name not in changed:
            continue
        table.create(connection)
        for role, rights in () if table.name.startswith(INCOMING) else readers:
            connection.execute(text(f"GRANT {rights} ON {quoted(table)} TO {role}"))
        if owner is not None:
            connection.execute(text(f"ALTER TABLE {quoted(table)} OWNER TO {owner}"))
    connection.execute(delete(CrmRead))
    return changed


def stand_in(connection: Connection, declared: ExternalFacts) -> None:
    """Create empty temporary tables, which this connection then reads in place of the CRM's tables.

    So the rules of a dialer can be tried before an external CRM is copied for the first time.
    `declared`: the CRM's tables and columns.
    """
    for source in declared.sources:
        table_of(source).to_metadata(MetaData(), schema=_TEMPORARY).create(connection)
    connection.execution_options(schema_translate_map={CrmBase.metadata.schema: _TEMPORARY})


def quoted(of: Table | Column[Any]) -> str:
    """Return the quoted name of a column, or of a table with its schema, as SQL."""
    if isinstance(of, Table):
        return str(_dialect.identifier_preparer.format_table(of))
    return str(_quote(of.name))


def erase(connection: Connection, declared: ExternalFacts, user_id: int) -> dict[str, int]:
    """Delete a user's rows from the mirror, our copy of the CRM; return their number, by table.

    In the result, the name of a table includes its schema. The rows of a table are found by the
    columns that lead from that table to the user. In some cases the columns lead through further
    tables. A table is skipped, and is absent from the result, if no such columns are declared for
    it. It is also skipped if the table itself, one of these columns, or one of the further tables
    does not exist.
    """
    there = {
        (name, column.partition(" ")[0])
        for name, columns in _there(connection).items()
        for column in columns
    }
    counts = {}
    for source in reversed(declared.sources):
        way = list(_way(declared, source))
        if way and set(way) <= there:
            statement = text(f"DELETE FROM {_named(source.name)} WHERE {_of_user(way)}")  # noqa: S608
            rows = connection.execute(statement, {"user": user_id}).rowcount
            counts[f"{MIRROR_SCHEMA}.{source.name}"] = rows
    return counts


def _way(declared: ExternalFacts, source: FactSource) -> Iterator[tuple[str, str]]:
    """Yield the columns by which rows of this table lead to a person, each as (table, column).

    For example, notes that refer to deals, which refer to persons: (notes, deal_id), (deals, id),
    (deals, user_id). The last column has the person's id. For the table of persons, only its column
    `id` is yielded. For another table without a declared link, nothing is yielded.
    """
    if source.name == USERS:
        yield USERS, "id"
    while source.link is not None:
        yield source.name, source.link.column
        if source.link.table == USERS:
            return
        yield source.link.table, source.link.target
        source = declared.source(source.link.table)


def _of_user(way: Sequence[tuple[str, str]]) -> str:
    """Return a SQL condition that is true for the rows of a table that belong to one user.

    The SQL parameter `user` is the user's id. `way`: the columns by which rows of the table lead to
    a person, as `_way` yields them.
    """
    (_, column), *further = way
    if not further:
        return f"{_quote(column)} = :user"
    (table, target), *rest = further
    return (
        f"{_quote(column)} IN (SELECT {_quote(target)} FROM {_named(table)}"  # noqa: S608
        f" WHERE {_of_user(rest)})"
    )


def _named(table: str) -> str:
    return f"{MIRROR_SCHEMA}.{_quote(table)}"


def _differing(connection: Connection, declared: ExternalFacts) -> list[str]:
    """Return the tables of our copy of the CRM that are missing, undeclared or different."""
    wanted = {
        table.name: sorted(_described(table))
        for source in declared.sources
        for table in (table_of(source), table_of(source, incoming=True))
    }
    there = _there(connection)
    return [
        name for name in dict.fromkeys((*wanted, *there)) if wanted.get(name) != there.get(name)
    ]


def _there(connection: Connection) -> dict[str, list[str]]:
    """Return the sorted columns of each existing table of our copy of the CRM, by table.

    Each column is a text: its name, its type and, if it is in the primary key, the word `key`.
    """
    found = connection.execute(_THERE, {"schema": MIRROR_SCHEMA})
    return {row.name: sorted(row.columns) for row in found}


def _described(table: Table) -> Iterable[str]:
    for column in table.columns:
        type_ = column.type.compile(dialect=_dialect).lower()
        yield f"{column.name} {type_}{' key' if column.primary_key else ''}"


def _roles(connection: Connection) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the role that has to own the mirror's tables, and the privileges to grant on them.

    The owner is the worker role; None if the connection's role cannot make it the owner. The list
    has pairs of another role and its privileges as SQL, such as `SELECT`.
    """
    asked = {"roles": [WORKER, GATEWAY, READER], "schema": MIRROR_SCHEMA}
    may_own = {row.name: row.may_own for row in connection.execute(_ROLES, asked)}
    owner = WORKER if may_own.get(WORKER) else None
    readers = {GATEWAY: "SELECT, DELETE", READER: "SELECT"}
    return owner, [(role, rights) for role, rights in readers.items() if role in may_own]


_THERE = text("""
    SELECT c.relname AS name, array_agg(
        a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || CASE WHEN EXISTS (
            SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p'
            AND a.attnum = ANY(k.conkey)
        ) THEN ' key' ELSE '' END
    ) AS columns
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = :schema AND c.relkind = 'r' GROUP BY c.relname
""")
# Roles are of the whole server: one may be there for another database, without rights in this one.
_ROLES = text("""
    SELECT rolname AS name,
           pg_has_role(oid, 'MEMBER') AND has_schema_privilege(oid, :schema, 'CREATE') AS may_own
    FROM pg_roles WHERE rolname = ANY(:roles) AND has_schema_privilege(oid, :schema, 'USAGE')
""")
