"""Undo a takeover: put the dialer's queue tables back, with present assignments and outcomes."""

from __future__ import annotations

from sqlalchemy import Engine, select, text

from assignment_workers.adoption.backfill import TRY_SECONDS
from assignment_workers.adoption.changes import drop_index
from assignment_workers.adoption.dependents import definitions, follow
from assignment_workers.adoption.guards import remove
from assignment_workers.adoption.migrate import (
    SHOWS_CALL_QUEUE,
    locked_turn,
    opened,
)
from assignment_workers.adoption.shapes import AGENT_COLUMNS, KEPT, MADE, QUEUE_TABLES
from assignment_workers.adoption.sources import SourceTable, agent_expression, found_sources
from assignment_workers.adoption.views import CALL_QUEUE
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Owner, Release
from assignment_workers.assignment.locks import try_lock
from assignment_workers.errors import UsageError
from assignment_workers.schema.dialer_schema import schema_of
from assignment_workers.schema.migrate import OUR_VIEW
from assignment_workers.schema.retry import patiently
from assignment_workers.schema.tables import LaneTerm


def rollback(database_url: str) -> list[str]:
    """Put the dialer's queue tables back in one transaction; return their full names.

    Users whose assignment was completed or skipped since the migration get that status in the
    tables. Active assignments become assigned rows of the dialer and are released in our tables.
    The schema `assignment` and its records stay. Raises `UsageError` while a sequencer runs, or if
    no dialer was taken over.
    """
    with opened(database_url) as engine:
        return patiently(lambda: _roll_back(engine), seconds=TRY_SECONDS)


def _roll_back(engine: Engine) -> list[str]:
    with engine.begin() as connection:
        kept = [
            (queue, table)
            for queue, table in QUEUE_TABLES.items()
            if connection.execute(text(f"SELECT to_regclass('public.{table}{KEPT}')")).scalar()
        ]
        if not kept:
            raise UsageError("nothing was taken over here: there are no tables to put back")
        lanes = connection.execute(select(LaneTerm.lane)).scalars().all()
        if not all(try_lock(connection, f"sequencer {lane}") for lane in lanes):
            raise UsageError("a sequencer is running: stop every process of this system first")
        transaction = locked_turn(connection)
        if connection.execute(SHOWS_CALL_QUEUE, {"comment": OUR_VIEW}).scalar():
            connection.execute(text(f"DROP VIEW public.{CALL_QUEUE}"))
        for _, table in kept:
            theirs = definitions(connection, table)
            connection.execute(text(f"ALTER VIEW public.{table} RENAME TO {table}{MADE}"))
            connection.execute(text(f"ALTER TABLE public.{table}{KEPT} RENAME TO {table}"))
            follow(connection, theirs)
            connection.execute(text(f"DROP VIEW public.{table}{MADE}"))
        for source in found_sources(connection):
            for sql in _statements(source):
                connection.execute(text(sql), {"queue": source.queue})
        active = connection.execute(
            text("SELECT id, agent_id FROM assignment.assignments WHERE state = 'active'")
        )
        finish(transaction, [Release(Owner(row.id, row.agent_id)) for row in active])
        remove(connection)
        for _, table in kept:
            drop_index(connection, table)
        return [f"{schema_of(connection)}.{table}" for _, table in kept]


def _statements(source: SourceTable) -> list[str]:
    """Return the SQL that writes our records back into a dialer's queue table.

    First the outcomes of ended assignments are written to the pending and assigned rows of their
    users. Then the active assignments are written as assigned rows: of several rows of a user, only
    the row with the best position becomes assigned, and a user without a row gets a new one.
    """
    agents = [name for name in AGENT_COLUMNS if name in source.types]
    cleared = ", ".join(f"{name} = NULL" for name in agents)
    given = ", ".join(f"{name} = a.agent_id" for name in agents)
    table = f"public.{source.table}"
    now = "(clock_timestamp() AT TIME ZONE 'UTC')"
    agent = agent_expression(source.types, "q")
    return [
        (
            f"UPDATE {table} q SET status = coalesce((SELECT CASE a.state WHEN 'completed' THEN "
            "'completed' WHEN 'skipped' THEN 'skipped' ELSE 'pending' END"
            " FROM assignment.assignments a WHERE a.user_id = q.user_id AND a.queue = :queue"
            " AND a.claimed_at >= s.switched_at ORDER BY a.claimed_at DESC LIMIT 1), 'pending'),"
            f" {cleared}, assigned_at = NULL, updated_at = {now} FROM assignment.adoptions s"
            " WHERE s.queue = :queue AND (q.status = 'assigned' OR (q.status = 'pending' AND EXISTS"
            " (SELECT FROM assignment.assignments a WHERE a.user_id = q.user_id"
            " AND a.queue = :queue AND a.state IN ('completed', 'skipped')"
            " AND a.claimed_at >= s.switched_at)))"
        ),
        (
            f"UPDATE {table} q SET status = 'assigned', {given},"
            " assigned_at = a.claimed_at AT TIME ZONE 'UTC',"
            f" updated_at = {now} FROM assignment.assignments a WHERE a.state = 'active'"
            f" AND a.queue = :queue AND q.id = (SELECT o.id FROM {table} o"
            " WHERE o.user_id = a.user_id ORDER BY o.queue_position NULLS LAST, o.created_at, o.id"
            " LIMIT 1)"
        ),
        (
            f"INSERT INTO {table} (id, user_id, priority_score, queue_position, status,"
            f" queue_reason, {', '.join(agents)}, assigned_at, updated_at)"
            " SELECT gen_random_uuid(), a.user_id, a.score, a.rank, 'assigned', a.reason,"
            f" {', '.join('a.agent_id' for _ in agents)}, a.claimed_at AT TIME ZONE 'UTC', {now}"
            " FROM assignment.assignments a WHERE a.state = 'active' AND a.queue = :queue"
            f" AND NOT EXISTS (SELECT FROM {table} q WHERE q.user_id = a.user_id"
            f" AND q.status = 'assigned' AND {agent} = a.agent_id)"
        ),
    ]
