"""Callbacks and missed calls that the dialer had handed out and never ended.

The dialer takes none back, so they would stay with an agent who left long ago.
"""

from __future__ import annotations

from sqlalchemy import Engine, text

from assignment_workers.adoption.backfill import TRY_SECONDS, Tell
from assignment_workers.schema.retry import patiently

AT_A_TIME = 2_000
"""The number of callbacks or missed calls about which one transaction decides."""
OLD = "7 days"
"""A callback or missed call that is overdue by more than this is left to an operator."""
LATELY = "10 minutes"
"""An agent may still be working on a missed call that was handed out within this time."""

DUE_AGAIN = "handed out by the dialer and not ended: due again"
FOR_OPERATOR = "handed out by the dialer and not ended, due long ago or at no time: for an operator"
HELD = "an agent of the dialer is at work on it: a hold of ours"

_NOW = "timezone('UTC', clock_timestamp())"
_KINDS = {
    "callbacks": (
        "callback",
        "status IN ('assigned', 'accepted')",
        "scheduled_for",
        "(lease_expires_at > {now} AND lease_expires_at < {now} + interval '1 day')",
        "queue_type",
        "lease_expires_at AT TIME ZONE 'UTC'",
    ),
    "missed_calls": (
        "missed_call",
        "status = 'assigned'",
        "missed_at",
        f"(assigned_at > {{now}} - interval '{LATELY}' AND assigned_at <= {{now}})",
        "NULL",
        "NULL",
    ),
}


def settle(engine: Engine, tell: Tell) -> None:
    """Decide about each callback or missed call that the dialer has handed out and not ended.

    Each decision is stored in `adoption_decisions`. A callback with a lease that is in force and
    ends within a day, and a missed call that was handed out within `LATELY`, become assignments if
    user and agent are known and free. Of the others, those that became due within the last `OLD`
    become pending again; the rest are left unchanged, for an operator. If a user would then have
    several pending callbacks, all but the latest are cancelled. A repeated call leaves
    unchanged what is left to an operator, and what is an active assignment. `tell` is called with a
    line for each kind of decision.
    """
    for table in _KINDS:
        counts = {DUE_AGAIN: 0, FOR_OPERATOR: 0, HELD: 0}
        while rows := patiently(lambda table=table: _some(engine, table), seconds=TRY_SECONDS):  # type: ignore[misc]
            for rule, count in rows:
                counts[rule] += count
        for rule, count in counts.items():
            if count:
                tell(f"contract: {table}: {count} {rule}")


def _some(engine: Engine, table: str) -> list[tuple[str, int]]:
    """Decide about the next callbacks or missed calls of a table in one transaction.

    Returns each decision with the number of rows; empty if nothing is left to decide.
    """
    source, taken, due, live, queue, lease = _KINDS[table]
    live = live.format(now=_NOW)
    with engine.begin() as connection:
        return [
            (row.rule, row.rows)
            for row in connection.execute(
                text(f"""
                WITH stuck AS MATERIALIZED (
                    SELECT id, user_id, assigned_to_agent_id AS agent,
                           CASE WHEN coalesce({live}, false) AND user_id IS NOT NULL
                                AND assigned_to_agent_id IS NOT NULL
                                AND assignment.hold_for_dialer('{source}', id, user_id,
                                    assigned_to_agent_id, {queue}, {lease})
                                THEN '{HELD}'
                                WHEN {due} BETWEEN {_NOW} - interval '{OLD}' AND {_NOW}
                                THEN '{DUE_AGAIN}' ELSE '{FOR_OPERATOR}' END AS rule
                    FROM public.{table} q
                    WHERE {taken} AND NOT EXISTS (
                        SELECT FROM assignment.adoption_decisions d
                        WHERE d.found_in = '{table}' AND d.row_id = q.id
                        AND d.rule = '{FOR_OPERATOR}')
                    AND NOT EXISTS (SELECT FROM assignment.assignments a
                        WHERE a.state = 'active' AND a.source_id = q.id)
                    ORDER BY id LIMIT {AT_A_TIME} FOR UPDATE SKIP LOCKED
                ), again AS (
                    UPDATE public.{table} q SET status = 'pending', assigned_to_agent_id = NULL,
                           assigned_at = NULL, updated_at = {_NOW}
                    FROM stuck WHERE stuck.id = q.id AND stuck.rule = '{DUE_AGAIN}'
                ), decided AS (
                    INSERT INTO assignment.adoption_decisions
                        (at, found_in, row_id, user_id, agent_id, rule)
                    SELECT clock_timestamp(), '{table}', id, user_id, agent, rule FROM stuck
                    ON CONFLICT DO NOTHING
                )
                SELECT rule, count(*) AS rows FROM stuck GROUP BY rule""")
            )
        ]
