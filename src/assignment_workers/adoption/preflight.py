"""Find everything that would interrupt a migration, before its first change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Connection, text

from assignment_workers.adoption.catalogue import Found
from assignment_workers.adoption.findings import Inspected, Obstacle, TableVerdict
from assignment_workers.adoption.shapes import KEPT, MADE, QUEUE_TABLES
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.dialer_schema import in_schema, is_named, schema_of
from assignment_workers.schema.migrate import FIRST_TABLE, VERSION_TABLE

OLDEST_SERVER = 15
"""The oldest major version of PostgreSQL that supports all statements of the migration."""
WRITTEN = ("user_call_scores", "callbacks", "conversions")
"""Tables of the dialer to which this system adds rows."""
OUR_INDEXES = {
    "uq_callbacks_pending_user": "callbacks",
    "ix_callbacks_pending": "callbacks",
    "uq_missed_calls_pending_call": "missed_calls",
    "ix_missed_calls_pending": "missed_calls",
    "ix_missed_calls_pending_user": "missed_calls",
    "ix_missed_calls_twilio_call_sid": "missed_calls",
    "uq_conversions_episode": "conversions",
}


def obstacles(
    connection: Connection, tables: Sequence[Inspected], relations: Mapping[str, Found]
) -> list[Obstacle]:
    """Return the reasons for which a migration by this connection's role would refuse to begin.

    Only reads. `tables`: the inspected tables. `relations`: the same tables by name, as
    `catalogue.relations_of` returns them. A table that lacks one of our unique indexes is read
    once, to count duplicates.
    """
    own = [
        each.table
        for each in tables
        if each.needed and each.verdict not in (TableVerdict.ABSENT, TableVerdict.UNKNOWN)
    ]
    found = [
        _unlike(each) for each in tables if each.needed and each.verdict is TableVerdict.UNKNOWN
    ]
    found += _of_place(connection)
    found += _of_server(connection)
    found += _of_role(connection, own)
    found += _of_names(connection, relations)
    found += _of_tables(connection, own)
    found += _duplicates(connection, tables, relations)
    schema = schema_of(connection)
    return [Obstacle(in_schema(one.what, schema), in_schema(one.remedy, schema)) for one in found]


def _unlike(table: Inspected) -> Obstacle:
    first = next((one for one in table.differences if one.aspect != "index"), None)
    about = f" ({first.aspect} {first.what})" if first else ""
    return Obstacle(
        f"the table public.{table.table} is of no schema that is known{about}",
        "rename it, or bring it to one of the two by hand",
    )


def _of_place(connection: Connection) -> Iterator[Obstacle]:
    """Yield an obstacle for each schema in the `search_path` that hides the dialer's tables.

    Such a schema has tables with the same names. It precedes the dialer's schema in the
    `search_path`, or the dialer's schema is not in the `search_path` at all. There is no obstacle
    if the database address names the dialer's schema, because the `search_path` is not used then.
    """
    if is_named(connection):
        return
    names = [*QUEUE_TABLES.values(), "agents", "user_call_scores", "callbacks", "conversions"]
    for row in connection.execute(_ELSEWHERE, {"names": names}):
        yield Obstacle(
            f"the search_path leads to the dialer's tables in the schema {row.schema}:"
            f" {row.tables}",
            f"this system works on those in the schema {schema_of(connection)}: take the setting"
            " from the role or the database, or name the schema by `?schema=` in the address",
        )


def _of_server(connection: Connection) -> Iterator[Obstacle]:
    row = connection.execute(_SERVER).one()
    if row.version < OLDEST_SERVER * 10_000:
        yield Obstacle(f"this is PostgreSQL {row.shown}", f"{OLDEST_SERVER} or later is needed")
    if row.is_standby:
        yield Obstacle(
            "this server is a standby, which takes no writes", "give the primary's address"
        )
    elif row.read_only == "on":
        yield Obstacle(
            "default_transaction_read_only is on for this role or database",
            "use a role that may write",
        )
    if row.replicating != "origin":
        yield Obstacle(
            f"session_replication_role is {row.replicating}: no trigger fires",
            "take the setting from the role",
        )


def _of_role(connection: Connection, own: Sequence[str]) -> Iterator[Obstacle]:
    for row in connection.execute(_OWNERS, {"names": list(own)}):
        yield Obstacle(
            f"public.{row.name} belongs to {row.owner}, and {row.me} is not a member of that role",
            f"connect as {row.owner}, or GRANT {row.owner} TO {row.me}",
        )
    for row in connection.execute(_RIGHTS):
        if not row.may_create and not row.is_there:
            yield Obstacle(
                f"{row.me} may not create a schema in the database {row.database}",
                f"GRANT CREATE ON DATABASE {row.database} TO {row.me}",
            )
        if row.is_there and not row.may_use:
            yield Obstacle(
                f"the schema assignment belongs to {row.owner}, and {row.me} may not create in it",
                f"connect as {row.owner}",
            )
        if not row.may_create_in_public:
            yield Obstacle(
                f"{row.me} may not create in the schema public",
                f"GRANT CREATE, USAGE ON SCHEMA public TO {row.me}",
            )


def _of_names(connection: Connection, relations: Mapping[str, Found]) -> Iterator[Obstacle]:
    names = [
        f"{table}{ending}"
        for table in QUEUE_TABLES.values()
        if relations.get(table, {}).get("kind") in ("r", "p")
        for ending in (KEPT, MADE)
    ]
    for row in connection.execute(_TAKEN, {"names": names, "indexes": list(OUR_INDEXES)}):
        if row.table is not None and row.table == OUR_INDEXES.get(row.name):
            continue
        yield Obstacle(
            f"the name public.{row.name} is taken by something else",
            f"rename it: ALTER {row.kind} public.{row.name} RENAME TO …",
        )
    for row in connection.execute(_FOREIGN_SCHEMA):
        yield Obstacle(
            f"the schema assignment is there and is not of this system: it has {row.what}",
            "rename it",
        )


def _of_tables(connection: Connection, own: Sequence[str]) -> Iterator[Obstacle]:
    parameters = {"names": list(own), "written": list(WRITTEN), "modelled": _modelled()}
    for row in connection.execute(_REQUIRED, parameters):
        yield Obstacle(
            f"public.{row.name}.{row.column} is not null without a default: rows that this system"
            " adds would be refused",
            f"ALTER TABLE public.{row.name} ALTER COLUMN {row.column} SET DEFAULT …",
        )
    for row in connection.execute(_HIDDEN, parameters):
        yield Obstacle(
            f"row level security of public.{row.name} hides rows from {row.me}",
            f"ALTER TABLE public.{row.name} NO FORCE ROW LEVEL SECURITY, or a role with BYPASSRLS",
        )
    for row in connection.execute(_PARTITIONED, {"names": [*WRITTEN, "missed_calls"]}):
        yield Obstacle(
            f"public.{row.name} is partitioned: its indexes cannot be built while it is in use",
            "take it over once it is one table",
        )


def _modelled() -> list[str]:
    return [
        f"{table.name}.{column.name}"
        for table in Agent.metadata.sorted_tables
        for column in table.columns
    ]


def _duplicates(
    connection: Connection, tables: Sequence[Inspected], relations: Mapping[str, Found]
) -> Iterator[Obstacle]:
    for table in tables:
        if f"public.{table.table}" not in Agent.metadata.tables:
            continue
        for each in table.differences:
            is_lacking = each.aspect == "unique" and each.found is None
            if not is_lacking or not relations[table.table]["readable"]:
                continue
            count = connection.execute(
                text(
                    f"SELECT count(*) FROM (SELECT FROM public.{table.table}"
                    f" GROUP BY {each.what} HAVING count(*) > 1) AS twice"
                )
            ).scalar_one()
            if count:
                yield Obstacle(
                    f"public.{table.table} has {count} values of {each.what} more than once",
                    "keep one row of each: it has to be unique",
                )


_SERVER = text("""
    SELECT current_setting('server_version_num')::integer AS version,
           current_setting('server_version') AS shown, pg_is_in_recovery() AS is_standby,
           current_setting('default_transaction_read_only') AS read_only,
           current_setting('session_replication_role') AS replicating
""")

_ELSEWHERE = text("""
    SELECT n.nspname AS schema, string_agg(c.relname, ', ' ORDER BY c.relname) AS tables
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname <> 'public' AND n.nspname = ANY(current_schemas(false))
    AND coalesce(array_position(current_schemas(false), n.nspname)
        < array_position(current_schemas(false), 'public'), true)
    AND c.relname = ANY(:names) AND c.relkind IN ('r', 'p') GROUP BY 1 ORDER BY 1
""")
_NAMED = """
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(:names)
    AND c.relkind IN ('r', 'p')
"""
_OWNERS = text(f"""
    SELECT c.relname AS name, quote_ident(pg_get_userbyid(c.relowner)) AS owner,
           quote_ident(current_user) AS me
    {_NAMED} AND NOT pg_has_role(current_user, c.relowner, 'USAGE') ORDER BY 1
""")
_RIGHTS = text("""
    SELECT quote_ident(current_user) AS me, quote_ident(current_database()) AS database,
           has_database_privilege(current_database(), 'CREATE') AS may_create,
           n.oid IS NOT NULL AS is_there, quote_ident(pg_get_userbyid(n.nspowner)) AS owner,
           coalesce(has_schema_privilege(n.oid, 'CREATE, USAGE'), true) AS may_use,
           has_schema_privilege('public', 'CREATE') AND has_schema_privilege('public', 'USAGE')
           AS may_create_in_public
    FROM (SELECT) AS one LEFT JOIN pg_namespace n ON n.nspname = 'assignment'
""")
_TAKEN = text("""
    SELECT c.relname AS name, t.relname AS table,
           CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'i' THEN 'INDEX' WHEN 'S' THEN 'SEQUENCE'
           WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END AS kind
    FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
    LEFT JOIN pg_class t ON t.oid = i.indrelid
    WHERE c.relnamespace = 'public'::regnamespace
    AND (c.relname = ANY(:names) OR c.relname = ANY(:indexes)) ORDER BY 1
""")
_FOREIGN_SCHEMA = text(f"""
    SELECT min(c.relname) AS what FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'assignment' AND NOT EXISTS (
        SELECT FROM pg_class ours WHERE ours.relnamespace = n.oid
        AND ours.relname IN ('{FIRST_TABLE}', '{VERSION_TABLE}'))
    HAVING count(*) > 0
""")
_REQUIRED = text(f"""
    SELECT c.relname AS name, a.attname AS column
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.oid IN (SELECT c.oid {_NAMED}) AND c.relname = ANY(:written)
    AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND NOT a.attisdropped
    AND c.relname || '.' || a.attname <> ALL(:modelled) ORDER BY 1, 2
""")
_HIDDEN = text(f"""
    SELECT c.relname AS name, quote_ident(current_user) AS me {_NAMED}
    AND row_security_active(c.oid) ORDER BY 1
""")
_PARTITIONED = text(f"SELECT c.relname AS name {_NAMED} AND c.relkind = 'p' ORDER BY 1")
