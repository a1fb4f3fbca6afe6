"""Databases of the dialer, in every state that one may be found in (original-dialer section 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

BASE = """
    id uuid PRIMARY KEY, user_id bigint NOT NULL{unique}, claim_id bigint,
    priority_score integer NOT NULL DEFAULT 0, status text NOT NULL DEFAULT 'pending',
    queue_reason text, assigned_at timestamp(3), created_at timestamp(3) NOT NULL DEFAULT now(),
    updated_at timestamp(3) NOT NULL
"""
DEPLOYED = """, queue_position integer NOT NULL,
    available_from timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, assigned_to_agent integer"""
TARGET = """, queue_position integer, available_from timestamp(3),
    assigned_to_agent_id integer REFERENCES agents, callback_id uuid REFERENCES callbacks"""
SIGNATURE = ", signature_missing_since timestamp(3), signature_type text"
REQUIREMENTS = """, total_requirements integer NOT NULL DEFAULT 0,
    pending_requirements integer NOT NULL DEFAULT 0,
    completed_requirements integer NOT NULL DEFAULT 0, oldest_requirement_date timestamp(3)"""
OTHERS = """
CREATE TABLE agents (id serial PRIMARY KEY, email text NOT NULL UNIQUE, first_name text,
    last_name text, role text NOT NULL DEFAULT 'agent', team text,
    allowed_queues json NOT NULL DEFAULT '["unsigned_users", "outstanding_requests"]',
    is_active boolean NOT NULL DEFAULT true, is_ai_agent boolean NOT NULL DEFAULT false,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp(3) NOT NULL);
CREATE TABLE user_call_scores (id uuid PRIMARY KEY, user_id bigint NOT NULL UNIQUE,
    current_score integer NOT NULL DEFAULT 0, next_call_after timestamp(3),
    last_call_at timestamp(3), total_attempts integer NOT NULL DEFAULT 0,
    successful_calls integer NOT NULL DEFAULT 0, last_outcome text,
    base_score integer NOT NULL DEFAULT 0, outcome_penalty_score integer NOT NULL DEFAULT 0,
    time_penalty_score integer NOT NULL DEFAULT 0, is_active boolean NOT NULL DEFAULT true,
    current_queue_type text, last_reset_date timestamp(3), last_queue_check timestamp(3),
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp(3) NOT NULL);
CREATE INDEX ON user_call_scores (next_call_after, current_score);
CREATE TABLE callbacks (id uuid PRIMARY KEY, user_id bigint NOT NULL,
    scheduled_for timestamp(3) NOT NULL, callback_reason text,
    preferred_agent_id integer REFERENCES agents, original_call_session_id uuid NOT NULL,
    status text NOT NULL DEFAULT 'pending', completed_call_session_id uuid,
    queue_type text NOT NULL DEFAULT 'outstanding_requests'{leases},
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp(3) NOT NULL);
"""
LEASES = """, assigned_to_agent_id integer, assigned_at timestamp(3),
    lease_expires_at timestamp(3), completed_at timestamp(3),
    retry_count integer NOT NULL DEFAULT 0, max_retries integer NOT NULL DEFAULT 1,
    last_attempt_at timestamp(3), created_by_agent_id integer,
    created_by_source text NOT NULL DEFAULT 'agent'"""
DEPLOYED_INDEXES = """
CREATE INDEX ON {table} (status, priority_score);
CREATE INDEX ON {table} (available_from);
CREATE INDEX ON {table} (queue_position);
"""
UNSIGNED, OUTSTANDING = "unsigned_users_queue", "outstanding_requests_queue"


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    """A connection as the dialer has it."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def others(connection: psycopg.Connection, *, leases: str = LEASES) -> None:
    connection.execute(OTHERS.replace("{leases}", leases))
    connection.execute(
        "INSERT INTO agents (id, email, updated_at) "
        "SELECT n, 'agent' || n || '@example.com', now() FROM generate_series(1, 50) n"
    )


def deployed_table(connection: psycopg.Connection, table: str) -> None:
    own = SIGNATURE if table == UNSIGNED else REQUIREMENTS
    if table == OUTSTANDING:
        own += ", requirement_types jsonb NOT NULL DEFAULT '[]'"
    connection.execute(f"CREATE TABLE {table} ({BASE.format(unique='')}{DEPLOYED}{own})")
    connection.execute(DEPLOYED_INDEXES.format(table=table))


def target_table(connection: psycopg.Connection, table: str) -> None:
    own = SIGNATURE if table == UNSIGNED else REQUIREMENTS
    own += (
        """, reminders_sent integer NOT NULL DEFAULT 0, last_reminder_at timestamp(3),
        signature_block_reason text, urgent_signature boolean NOT NULL DEFAULT false"""
        if table == UNSIGNED
        else """, requirement_types text[], follow_up_scheduled timestamp(3),
        requirements_priority text, last_document_received timestamp(3),
        document_deadline timestamp(3), escalation_level integer NOT NULL DEFAULT 0"""
    )
    unique = " UNIQUE REFERENCES user_call_scores (user_id)"
    connection.execute(f"CREATE TABLE {table} ({BASE.format(unique=unique)}{TARGET}{own})")


def nothing(_: psycopg.Connection) -> None:
    """An empty database."""


def deployed(connection: psycopg.Connection) -> None:
    others(connection)
    deployed_table(connection, UNSIGNED)
    deployed_table(connection, OUTSTANDING)


def target(connection: psycopg.Connection) -> None:
    others(connection, leases="")
    target_table(connection, UNSIGNED)
    target_table(connection, OUTSTANDING)


def hybrid_by_column(connection: psycopg.Connection) -> None:
    """Somebody began: both agent columns on one table, a unique on the other."""
    deployed(connection)
    connection.execute(f"ALTER TABLE {UNSIGNED} ADD assigned_to_agent_id integer REFERENCES agents")
    connection.execute(f"ALTER TABLE {OUTSTANDING} ADD UNIQUE (user_id)")


def hybrid_by_table(connection: psycopg.Connection) -> None:
    others(connection)
    deployed_table(connection, UNSIGNED)
    target_table(connection, OUTSTANDING)


def someone_elses(connection: psycopg.Connection) -> None:
    others(connection)
    deployed_table(connection, OUTSTANDING)
    connection.execute(f"CREATE TABLE {UNSIGNED} (id serial PRIMARY KEY, who text, at date)")


STATES: dict[str, Callable[[psycopg.Connection], None]] = {
    "nothing": nothing,
    "deployed": deployed,
    "target": target,
    "hybrid by column": hybrid_by_column,
    "hybrid by table": hybrid_by_table,
    "someone else's": someone_elses,
}


def queue(
    connection: psycopg.Connection,
    table: str,
    *rows: tuple[int, int | None, str, int | None],
    agent_column: str = "assigned_to_agent",
) -> None:
    """Rows of (user, position, status, agent)."""
    for user, position, status, agent in rows:
        connection.execute(
            f"INSERT INTO {table} (id, user_id, queue_position, status, {agent_column}, "
            "assigned_at, updated_at) VALUES (gen_random_uuid(), %s, %s, %s, %s, "
            "CASE WHEN %s = 'assigned' THEN now() AT TIME ZONE 'UTC' END, "
            "now() AT TIME ZONE 'UTC')",
            [user, position, status, agent, status],
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
