"""Callbacks and missed calls that the dialer had handed out and never ended.

The dialer takes none back, so they would stay with an agent who left long ago.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from sqlalchemy import Engine, text

from assignment_workers.adoption.backfill import TRY_SECONDS, Tell
from assignment_workers.schema.engine import PLANS_WITHOUT_INDEX
from assignment_workers.schema.retry import patiently

AT_A_TIME = 500
"""The number of callbacks or missed calls about which one transaction decides.

A statement of the dialer may wait for the whole transaction, if both concern the same row.
"""
OLD = "7 days"
"""A callback or missed call that is overdue by more than this is left to an operator."""
LATELY = "10 minutes"
"""An agent may still be working on a missed call that was handed out within this time."""

DUE_AGAIN = "handed out by the dialer and not ended: due again"
FOR_OPERATOR = "handed out by the dialer and not ended, due long ago or at no time: for an operator"
HELD = "an agent of the dialer is at work on it: a hold of ours"

_BY_INDEX = "SELECT " + ", ".join(
    f"set_config('enable_{way}', 'off', true)" for way in (*PLANS_WITHOUT_INDEX, "sort")
)
"""Makes the transaction read by indexes, whatever the statistics of a table in use say."""
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
    line for each kind of decision. Cost: each pass over a table reads it once, in the order of its
    ids, and the last pass finds nothing; a second one decides about rows that were locked.
    """
    for table in _KINDS:
        counts: Counter[str] = Counter()
        while decided := _pass(engine, table):
            counts += decided
        for rule in (DUE_AGAIN, FOR_OPERATOR, HELD):
            if counts[rule]:
                tell(f"contract: {table}: {counts[rule]} {rule}")


def _pass(engine: Engine, table: str) -> Counter[str]:
    """Decide about the rows of a table once, batch by batch; return each decision's number of rows.

    A row that another transaction has locked is passed over.
    """
    counts: Counter[str] = Counter()
    after: object = None
    while True:
        decide = partial(_some, engine, table, after)
        rows: list[tuple[str | None, int, object]] = patiently(decide, seconds=TRY_SECONDS)
        if not rows:
            return +counts
        for rule, count, last in rows:
            counts[rule or ""] += count
            after = last


def _some(engine: Engine, table: str, after: object) -> list[tuple[str | None, int, object]]:
    """Decide about the next callbacks or missed calls of a table in one transaction.

    `after`: the id after which they begin; None: at the first one. Returns each decision with the
    number of rows and with the last id of the batch, None with no rows if the batch needs no
    decision, and an empty list at the end of the table. Cost: one index read for each row of the
    batch and for each look-up, however large the tables are.
    """
    source, taken, due, live, queue, lease = _KINDS[table]
    live = live.format(now=_NOW)
    with engine.begin() as connection:
        connection.execute(text(_BY_INDEX))
        return [
            (row.rule, row.rows, row.last)
            for row in connection.execute(
                text(f"""
                WITH next AS MATERIALIZED (
                    SELECT * FROM public.{table}
                    WHERE {taken}{"" if after is None else " AND id > :after"}
                    ORDER BY id LIMIT {AT_A_TIME} FOR UPDATE SKIP LOCKED
                ), stuck AS MATERIALIZED (
                    SELECT id, user_id, assigned_to_agent_id AS agent,
                           CASE WHEN coalesce({live}, false) AND user_id IS NOT NULL
                                AND assigned_to_agent_id IS NOT NULL
                                AND assignment.hold_for_dialer('{source}', id, user_id,
                                    assigned_to_agent_id, {queue}, {lease})
                                THEN '{HELD}'
                                WHEN {due} BETWEEN {_NOW} - interval '{OLD}' AND {_NOW}
                                THEN '{DUE_AGAIN}' ELSE '{FOR_OPERATOR}' END AS rule
                    FROM next
                    WHERE NOT EXISTS (
                        SELECT FROM assignment.adoption_decisions d
                        WHERE d.found_in = '{table}' AND d.row_id = next.id
                        AND d.rule = '{FOR_OPERATOR}')
                    AND NOT EXISTS (SELECT FROM assignment.assignments a
                        WHERE a.state = 'active' AND a.source_id = next.id)
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
                SELECT stuck.rule, count(stuck.id) AS rows, ends.id AS last
                FROM (SELECT id FROM next ORDER BY id DESC LIMIT 1) AS ends LEFT JOIN stuck ON true
                GROUP BY 1, 3"""),
                {} if after is None else {"after": after},
            )
        ]
