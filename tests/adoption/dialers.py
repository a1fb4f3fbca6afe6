"""Databases of the dialer, in every state that one may be found in.

The tables are those of `original-schema.tsv`: each column, key, index and foreign key of the schema
that is deployed and of the retired draft (`target`), as PostgreSQL has them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psycopg
from sqlalchemy import make_url

FILE = Path(__file__).with_name("original-schema.tsv")
UNSIGNED, OUTSTANDING = "unsigned_users_queue", "outstanding_requests_queue"
AGENTS = 50


@dataclass(frozen=True)
class Part:
    """A line of the file: a column, a primary key, an index or a foreign key of a table."""

    schema: str
    kind: str
    table: str
    name: str
    type_or_columns: str
    not_null_or_unique: str
    default_or_reference: str

    @property
    def refers_to(self) -> str:
        """The table that a foreign key points at."""
        return self.default_or_reference.partition("(")[0]

    @property
    def sql(self) -> str:
        """Its words in `CREATE TABLE`, or its own statement."""
        if self.kind == "column":
            default = f" DEFAULT {self.default_or_reference}" if self.default_or_reference else ""
            return f"{self.name} {self.type_or_columns} {self.not_null_or_unique}{default}"
        if self.kind == "primary_key":
            return f"CONSTRAINT {self.name} PRIMARY KEY ({self.type_or_columns})"
        if self.kind == "index":
            return (
                f"CREATE {self.not_null_or_unique} INDEX {self.name}"
                f" ON {self.table} ({self.type_or_columns})"
            )
        return (
            f"ALTER TABLE {self.table} ADD CONSTRAINT {self.name}"
            f" FOREIGN KEY ({self.type_or_columns}) REFERENCES {self.default_or_reference}"
        )


@cache
def parts() -> tuple[Part, ...]:
    """Every line of the file."""
    with FILE.open() as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(lines)
        return tuple(Part(*line) for line in lines)


@cache
def tables_of(schema: str) -> tuple[str, ...]:
    """The tables of a schema."""
    return tuple(dict.fromkeys(each.table for each in parts() if each.schema == schema))


def columns_of(schema: str, table: str) -> dict[str, Part]:
    """The columns of a table by their names."""
    return {
        each.name: each
        for each in parts()
        if (each.schema, each.kind, each.table) == (schema, "column", table)
    }


def build(connection: psycopg.Connection, of: Mapping[str, str]) -> None:
    """Create tables, each as the schema that `of` names has it, with the agents 1 to `AGENTS`.

    A foreign key to a table that is not among them is left out.
    """
    mine = [each for each in parts() if of.get(each.table) == each.schema]
    statements = [
        f"CREATE TABLE {table} ("
        + ", ".join(
            each.sql
            for each in mine
            if each.table == table and each.kind in ("column", "primary_key")
        )
        + ")"
        for table in of
    ]
    statements += [each.sql for each in mine if each.kind == "index"]
    statements += [each.sql for each in mine if each.kind == "foreign_key" and each.refers_to in of]
    connection.execute("; ".join(statements).encode())
    if "agents" in of:
        connection.execute(
            "INSERT INTO agents (email, password_hash, first_name, last_name, updated_at)"
            " SELECT 'agent' || n || '@example.com', '', 'Agent', n::text, now()"
            f" FROM generate_series(1, {AGENTS}) n"
        )


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    """A connection as the dialer has it."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def as_role(url: str, role: str) -> str:
    """The address of the same database for another role; `postgres` is a superuser."""
    return make_url(url).set(username=role, password=None).render_as_string()


def all_of(schema: str) -> dict[str, str]:
    return dict.fromkeys(tables_of(schema), schema)


def nothing(_: psycopg.Connection) -> None:
    """An empty database."""


def deployed(connection: psycopg.Connection) -> None:
    build(connection, all_of("deployed"))


def without_call_queue(connection: psycopg.Connection) -> None:
    """Deployed, where somebody has dropped the legacy table."""
    build(
        connection,
        {table: schema for table, schema in all_of("deployed").items() if table != "call_queue"},
    )


def target(connection: psycopg.Connection) -> None:
    build(connection, all_of("target"))


def hybrid_by_column(connection: psycopg.Connection) -> None:
    """Somebody began: both agent columns on one table, a unique on the other."""
    deployed(connection)
    connection.execute(f"ALTER TABLE {UNSIGNED} ADD assigned_to_agent_id integer REFERENCES agents")
    connection.execute(f"ALTER TABLE {OUTSTANDING} ADD UNIQUE (user_id)")


def hybrid_by_table(connection: psycopg.Connection) -> None:
    build(connection, all_of("deployed") | {OUTSTANDING: "target"})


def hybrid_the_other_way(connection: psycopg.Connection) -> None:
    """The draft, but for the tables that the dialer reads most."""
    build(
        connection,
        all_of("target")
        | dict.fromkeys((UNSIGNED, "callbacks", "missed_calls", "conversions"), "deployed"),
    )


def widened(connection: psycopg.Connection) -> None:
    """Deployed, with what later changes that only add might have added."""
    deployed(connection)
    connection.execute(WIDER.encode())


def someone_elses(connection: psycopg.Connection) -> None:
    others = {table: schema for table, schema in all_of("deployed").items() if table != UNSIGNED}
    build(connection, others)
    connection.execute(f"CREATE TABLE {UNSIGNED} (id serial PRIMARY KEY, who text, at date)")


WIDER = f"""
ALTER TABLE {UNSIGNED} ADD urgency smallint NOT NULL DEFAULT 3, ADD "Notes für später" text,
  ADD tags text[] DEFAULT '{{}}', ADD CHECK (urgency < 10), ALTER status TYPE varchar(40),
  ALTER priority_score TYPE bigint, ALTER assigned_at TYPE timestamptz USING assigned_at AT TIME ZONE 'UTC';
ALTER TABLE {OUTSTANDING} ADD deadline date, ALTER requirement_types TYPE json;
CREATE INDEX ON {UNSIGNED} (urgency);
ALTER TABLE agents ADD phone text, ADD locale varchar(8) NOT NULL DEFAULT 'en', ALTER id TYPE bigint,
  ALTER allowed_queues TYPE json;
ALTER TABLE user_call_scores ADD score_band text GENERATED ALWAYS AS
  (CASE WHEN current_score < 10 THEN 'red hot' ELSE 'colder' END) STORED;
CREATE INDEX ON user_call_scores (score_band);
ALTER TABLE callbacks ADD channel text DEFAULT 'phone', ADD updated_at timestamp(6),
  ADD CHECK (retry_count >= 0), ALTER status TYPE varchar(30);
ALTER TABLE missed_calls ALTER phone_number TYPE varchar(64), ALTER missed_at TYPE timestamptz
  USING missed_at AT TIME ZONE 'UTC', ADD recording_url text;
ALTER TABLE conversions ADD currency char(3) NOT NULL DEFAULT 'GBP', ADD created_at timestamp(3);
CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER theirs BEFORE INSERT OR UPDATE ON callbacks FOR EACH ROW EXECUTE FUNCTION theirs();
CREATE TRIGGER theirs AFTER UPDATE ON user_call_scores FOR EACH ROW EXECUTE FUNCTION theirs();
ALTER TABLE missed_calls ENABLE ROW LEVEL SECURITY;
CREATE POLICY everybody ON missed_calls USING (true);
"""

STATES: dict[str, Callable[[psycopg.Connection], None]] = {
    "nothing": nothing,
    "deployed": deployed,
    "target": target,
    "hybrid by column": hybrid_by_column,
    "hybrid by table": hybrid_by_table,
    "hybrid the other way": hybrid_the_other_way,
    "widened": widened,
    "someone else's": someone_elses,
}
DIALERS = [name for name in STATES if name not in ("nothing", "someone else's")]
"""The states that are a dialer's: each is taken over."""


def agent_column(connection: psycopg.Connection, table: str) -> str:
    """The column that the dialer writes the agent of a queue row to."""
    has = connection.execute(
        "SELECT 1 FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'assigned_to_agent'",
        [table],
    ).fetchone()
    return "assigned_to_agent" if has else "assigned_to_agent_id"


def queue(
    connection: psycopg.Connection,
    table: str,
    *rows: tuple[int, int | None, str, int | None],
) -> None:
    """Rows of (user, position, status, agent)."""
    agent = agent_column(connection, table)
    for user, position, status, holder in rows:
        connection.execute(
            f"INSERT INTO {table} (id, user_id, queue_position, status, {agent}, "
            "assigned_at, updated_at) VALUES (gen_random_uuid(), %s, %s, %s, %s, "
            "CASE WHEN %s = 'assigned' THEN now() AT TIME ZONE 'UTC' END, "
            "now() AT TIME ZONE 'UTC')",
            [user, position, status, holder, status],
        )


def dirty(connection: psycopg.Connection) -> None:
    """Deployed, with all that its missing constraints let in."""
    deployed(connection)
    queue(
        connection,
        UNSIGNED,
        (1, 5, "pending", None),
        (1, 2, "pending", None),
        (2, 3, "pending", None),
        (3, 4, "assigned", 7),
        (3, 9, "pending", None),
        (4, 6, "assigned", 999),
        (5, 7, "assigned", None),
        (6, 8, "borrowed", None),
        (7, 10, "skipped", None),
        (10, 11, "assigned", 8),
    )
    queue(connection, OUTSTANDING, (2, 1, "pending", None), (3, 2, "assigned", 9))
    queue(connection, OUTSTANDING, (11, 3, "assigned", 8), (12, 4, "pending", None))
    # What was assigned in this table was assigned last.
    connection.execute(f"UPDATE {OUTSTANDING} SET assigned_at = assigned_at + interval '1 s'")
