"""PostgreSQL roles of least privilege: owner, worker, gateway, reader and purge.

The roles are created without the right to log in. An operator then has two choices. One is to
create logins that are members of a role (`CREATE ROLE … LOGIN IN ROLE …`). The other is to give a
role the right to log in and a password (`ALTER ROLE assignment_worker LOGIN PASSWORD …`); `apply`
does this for each role that it gets a password for.

Roles belong to the whole server, privileges to one database. Applying the roles again repairs what
was changed and covers tables that a later version has added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta

from psycopg.errors import InsufficientPrivilege
from psycopg.pq.abc import PGconn
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from assignment_workers.errors import SchemaMismatch
from assignment_workers.schema.base import Base, DialerBase
from assignment_workers.schema.crm import MIRROR_SCHEMA
from assignment_workers.schema.dialer_schema import PUBLIC, schema_of
from assignment_workers.schema.engine import (
    bound,
    connect_arguments,
    driver_url,
    locate_dialer,
)
from assignment_workers.schema.migrate import VERSION_TABLE, unreachable
from assignment_workers.schema.tables import FACT_SCHEMA

OWNER = "assignment_owner"
WORKER = "assignment_worker"
GATEWAY = "assignment_gateway"
READER = "assignment_reader"
PURGE = "assignment_purge"
ROLES = {
    OWNER: "owns the schema `assignment`; migrations and tokens are its",
    WORKER: "sequencers and maintenance workers",
    GATEWAY: "gateways: reads, writes signs of life, sessions, what operators asked for; erases",
    READER: "reads what is no secret and no message",
    PURGE: "deletes what its retention is over for; workers are members",
}

_ALL = "SELECT, INSERT, UPDATE, DELETE"
_OF_WORKER: dict[str, str] = {
    "events": "SELECT, INSERT",
    "audit_batches": "SELECT, INSERT",
    "audit_anchors": "SELECT",
    "settings": "SELECT, INSERT",
    "user_ids": "SELECT, INSERT",
    "operator_actions": "SELECT",
    "api_tokens": "",
    "access_log": "",
    "dashboard_sessions": "",
    VERSION_TABLE: "SELECT",
}
"""The privileges of the role `assignment_worker` on our tables, where they differ from `_ALL`.

`_ALL`: SELECT, INSERT, UPDATE and DELETE.
"""
_OF_GATEWAY: dict[str, str] = {
    "agents_seen": "SELECT, INSERT, UPDATE",
    "operator_actions": "SELECT, INSERT, UPDATE",
    "dead_letters": "SELECT, UPDATE",
    "dashboard_sessions": "SELECT, INSERT, UPDATE",
    "access_log": "SELECT, INSERT",
    "answer_counts": "SELECT, INSERT, UPDATE",
    "api_tokens": "SELECT, UPDATE (last_used_at)",
    # Needed to erase a person. The gateway must not write the other columns.
    "assignments": "SELECT, UPDATE (notes)",
    "commands": "SELECT, UPDATE (answer, subject)",
    "event_texts": "SELECT, DELETE",
    "forgotten": "SELECT, INSERT",
    "phones": "SELECT, DELETE",
    "suppressions": (
        "SELECT, INSERT, DELETE,"
        " UPDATE (reason, lifted_why, number, phone, plain, tail, unsure, expires_at)"
    ),
    "suppressed_numbers": "SELECT, DELETE",
}
"""The privileges of the role `assignment_gateway` on our tables, where they differ from SELECT."""
_NOT_OF_READER = frozenset(
    {"api_tokens", "dashboard_sessions", "access_log", "dead_letters", "event_texts"}
)
_OF_PURGE: dict[str, str] = {
    **dict.fromkeys(
        (
            *("events", "audit_batches", "requests", "commands", "job_runs", "dead_letters"),
            *("access_log", "answer_counts", "dashboard_sessions", "suspect_messages"),
        ),
        "SELECT, DELETE",
    ),
    # The purge stores the point up to which it has deleted a chain.
    "audit_anchors": "SELECT, INSERT, UPDATE",
}
_OF_DIALER: dict[str, str] = {"agents": "SELECT"}
"""The privileges of the role `assignment_worker` on the dialer's tables, where they differ from
SELECT, INSERT, UPDATE.
"""
_OF_DIALER_ERASED = {
    "user_call_scores": "DELETE",
    "callbacks": "UPDATE (callback_reason, status)",
    "missed_calls": "UPDATE (phone_number, caller_name, status)",
    "conversions": "UPDATE (conversion_reason)",
}
"""The privileges that the role `assignment_gateway` needs on the dialer's tables to erase a person.

It has them in addition to SELECT.
"""
_WORKED_BY_OWNERS = ("entries", "suppressed_numbers")
"""The tables that the role `assignment_worker` owns, because only the owner of a table can attach
and detach partitions.
"""


def apply(database_url: str, *, passwords: Mapping[str, str] | None = None) -> list[str]:
    """Create the missing database roles and grant their privileges; return the executed statements.

    `passwords`: by role; a role with a password may log in from then on. The server receives only
    the encrypted form of a password, and the statement that sets it is not returned. Run as a
    superuser, or as an owner of the schema who may create roles. Raises `DatabaseUnavailable` if no
    server answers. Raises `SchemaMismatch` if the connection's own role lacks a privilege, with the
    statement that somebody with more privileges must run.
    """
    url = driver_url(database_url)
    engine = create_engine(url, connect_args=connect_arguments(url.query))
    bound(engine, timedelta(minutes=1))
    locate_dialer(engine, database_url)
    try:
        with engine.begin() as connection:
            done = [_run(connection, statement) for statement in _statements(connection)]
            for role, password in (passwords or {}).items():
                _run(connection, f"ALTER ROLE {role} LOGIN PASSWORD '{{}}'", password, role)
            return done
    except (OperationalError, ProgrammingError) as error:
        raise unreachable(error) from error
    finally:
        engine.dispose()


def _run(connection: Connection, statement: str, password: str = "", role: str = "") -> str:
    try:
        if password:
            server: PGconn = connection.connection.driver_connection.pgconn  # type: ignore[union-attr]
            stored = server.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
            connection.exec_driver_sql(statement.format(stored.decode()))
        else:
            connection.exec_driver_sql(statement)
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        why = str(error.orig).splitlines()[0]
        raise SchemaMismatch(f"somebody who may has to run `{statement}`: {why}") from error
    return statement


def _statements(connection: Connection) -> list[str]:
    """Return the SQL statements that set up the roles, in order.

    A statement that needs special privileges is left out if it would change nothing.
    """
    there = set(connection.execute(text("SELECT rolname FROM pg_roles")).scalars())
    made = [f"CREATE ROLE {role} NOLOGIN" for role in ROLES if role not in there]
    # A role that may create roles must be a member of the roles that it gives tables to.
    members = [
        f"GRANT {role} TO CURRENT_USER"
        for role in (OWNER, WORKER)
        if role not in there or not _is_member(connection, "current_user", role)
    ]
    members += [
        f"GRANT {role} TO {member}"
        for role, member in (
            (WORKER, OWNER),
            (PURGE, WORKER),
            ("pg_read_all_stats", WORKER),
            ("pg_read_all_stats", GATEWAY),
        )
        if member not in there or role not in there or not _is_member(connection, member, role)
    ]
    return [*made, *members, *_owned(connection), *_granted(connection)]


def _is_member(connection: Connection, member: str, role: str) -> bool:
    who = member if member == "current_user" else f"'{member}'"
    found = connection.execute(text(f"SELECT pg_has_role({who}, '{role}', 'USAGE')"))
    return bool(found.scalar_one())


def _owned(connection: Connection) -> list[str]:
    owned = [f"GRANT USAGE, CREATE ON SCHEMA assignment TO {OWNER}, {WORKER}"]
    for name, kind, owner in connection.execute(_RELATIONS):
        wanted = WORKER if _PARTITIONED.fullmatch(name) else OWNER
        if owner != wanted:
            owned.append(f"ALTER {kind} assignment.{name} OWNER TO {wanted}")
    # The worker owns the mirror, because reading the CRM truncates and analyses its tables.
    owned.append(f"GRANT USAGE, CREATE ON SCHEMA {MIRROR_SCHEMA} TO {OWNER}, {WORKER}")
    for name, owner in connection.execute(_MIRRORS, {"schema": MIRROR_SCHEMA}):
        if owner != WORKER:
            owned.append(f"ALTER TABLE {MIRROR_SCHEMA}.{name} OWNER TO {WORKER}")
    return owned


_PARTITIONED = re.compile(rf"({'|'.join(_WORKED_BY_OWNERS)})(_[0-9]+)?")
_MIRRORS = text(
    "SELECT quote_ident(tablename), tableowner FROM pg_tables WHERE schemaname = :schema"
    " ORDER BY tablename"
)


# Partitions and their indexes are listed by name. Sequences of identity columns go with them.
_RELATIONS = text("""
    SELECT quote_ident(c.relname),
           CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
           pg_get_userbyid(c.relowner)
    FROM pg_class c
    WHERE c.relnamespace = 'assignment'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('i', 'a')
                    AND c.relkind = 'S')
    ORDER BY c.relkind = 'v', c.relname
""")


# A person is erased from the tables that adoption put aside as from ours.
_KEPT_BY_ADOPTION = text("""
    SELECT format('public.%I', relname) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    AND relname LIKE '%\\_before\\_adoption' ORDER BY relname
""")


def _rights(table: str) -> dict[str, str]:
    """Return the privileges of each role on one of our tables; a role without any is left out."""
    of = {
        WORKER: _OF_WORKER.get(table, _ALL),
        GATEWAY: _OF_GATEWAY.get(table, "SELECT"),
        READER: "" if table in _NOT_OF_READER else "SELECT",
        PURGE: _OF_PURGE.get(table, ""),
    }
    return {role: rights for role, rights in of.items() if rights}


def ungranted(connection: Connection) -> list[str]:
    """Return the missing privileges on our tables, as `SELECT on events for assignment_worker`.

    `apply` would grant them. Empty if the roles do not exist, or were never granted anything in
    this database. Any role may call this.
    """
    wanted = [
        {"role": role, "name": name, "privilege": privilege, "column": column}
        for name in (*(table.name for table in Base.metadata.sorted_tables), VERSION_TABLE)
        for role, rights in _rights(name).items()
        for privilege, columns in _PRIVILEGE.findall(rights)
        for column in (columns.split(", ") if columns else [None])
    ]
    return [
        f"{row.privilege} on {row.name} for {row.role}"
        for row in connection.execute(_UNGRANTED, {"wanted": json.dumps(wanted)})
    ]


_PRIVILEGE = re.compile(r"([A-Z]+)(?: \(([^)]*)\))?")
_UNGRANTED = text("""
    SELECT role, name, privilege FROM json_to_recordset(CAST(:wanted AS json))
        AS wanted (role text, name text, privilege text, "column" text)
    WHERE CASE
        WHEN to_regrole(role) IS NULL OR to_regclass('assignment.' || name) IS NULL THEN false
        WHEN NOT has_schema_privilege(role, 'assignment', 'USAGE') THEN false
        WHEN "column" IS NULL
        THEN NOT has_table_privilege(role, 'assignment.' || name, privilege)
        ELSE NOT has_column_privilege(role, 'assignment.' || name, "column", privilege) END
    ORDER BY name, role, privilege
""")


def _granted(connection: Connection) -> list[str]:
    everybody = f"{WORKER}, {GATEWAY}, {READER}, {PURGE}"
    granted = [f"GRANT USAGE ON SCHEMA assignment TO {everybody}"]
    tables = [table.name for table in Base.metadata.sorted_tables]
    for name in (*tables, VERSION_TABLE):
        granted.append(f"REVOKE ALL ON assignment.{name} FROM PUBLIC, {everybody}")
        granted += [
            f"GRANT {rights} ON assignment.{name} TO {role}"
            for role, rights in _rights(name).items()
            if not (name in _WORKED_BY_OWNERS and role == WORKER)
        ]
        if name in _WORKED_BY_OWNERS:
            granted.append(f"GRANT ALL ON assignment.{name} TO {WORKER}")
    granted += [f"GRANT SELECT ON assignment.bars TO {WORKER}, {GATEWAY}, {READER}"]
    granted += [f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA assignment TO {WORKER}, {GATEWAY}"]
    if schema_of(connection) != PUBLIC:
        granted.append(f"GRANT USAGE ON SCHEMA {schema_of(connection)} TO {everybody}")
    for table in DialerBase.metadata.sorted_tables:
        rights = _OF_DIALER.get(table.name, "SELECT, INSERT, UPDATE")
        granted.append(f"GRANT {rights} ON {table.fullname} TO {WORKER}")
        granted.append(f"GRANT SELECT ON {table.fullname} TO {GATEWAY}, {READER}")
        if table.name in _OF_DIALER_ERASED:
            erased = _OF_DIALER_ERASED[table.name]
            granted.append(f"GRANT {erased} ON {table.fullname} TO {GATEWAY}")
    granted.append(f"GRANT USAGE ON SCHEMA {MIRROR_SCHEMA} TO {GATEWAY}, {READER}")
    granted.append(f"GRANT USAGE ON SCHEMA {FACT_SCHEMA} TO {WORKER}, {GATEWAY}, {READER}")
    granted.append(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {FACT_SCHEMA} TO {WORKER}, {GATEWAY}, {READER}"
    )
    mirrors = connection.execute(_MIRRORS, {"schema": MIRROR_SCHEMA})
    # Nobody but the worker reads a table that a read of the CRM fills.
    held = [f"{MIRROR_SCHEMA}.{row[0]}" for row in mirrors if not row[0].startswith("incoming_")]
    granted += [f"GRANT SELECT ON {name} TO {READER}" for name in held]
    kept = connection.execute(_KEPT_BY_ADOPTION).scalars()
    granted += [f"GRANT SELECT, DELETE ON {name} TO {GATEWAY}" for name in (*held, *kept)]
    if connection.execute(text("SELECT to_regnamespace('crm') IS NOT NULL")).scalar_one():
        granted.append(f"GRANT USAGE ON SCHEMA crm TO {WORKER}, {GATEWAY}, {READER}")
        granted.append(f"GRANT SELECT ON ALL TABLES IN SCHEMA crm TO {WORKER}, {GATEWAY}, {READER}")
    return granted
