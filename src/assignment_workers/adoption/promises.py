"""Settle the callbacks and missed calls of the old dialer that are still with an agent.

The old dialer handed each of them to an agent, who has not completed it. It never takes one back,
even if the agent left long ago. Each becomes an assignment, becomes pending again, or is left to an
operator.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from sqlalchemy import Engine, text

from assignment_workers.adoption.backfill import TRY_SECONDS, Tell
from assignment_workers.schema.engine import PLANS_WITHOUT_INDEX
from assignment_workers.schema.retry import patiently

AT_A_TIME = 100
"""Maximum number of callbacks or missed calls that one transaction settles.

A statement of the dialer may wait until the transaction ends: if it changes one of these rows, or
reports the same missed call again.
"""
OLD = "7 days"
"""Maximum lateness of a callback or missed call that becomes pending again.

The lateness is the time since the callback or missed call was due. If it is greater, the callback
or missed call is left to an operator.
"""
LATELY = "10 minutes"
"""The time after the hand-out of a missed call in which its agent may still be working on it.

Within this time, the migration turns the missed call into an assignment.
"""

DUE_AGAIN = "handed out by the dialer and not ended: due again"
FOR_OPERATOR = "handed out by the dialer and not ended, due long ago or at no time: for an operator"
HELD = "an agent of the dialer is at work on it: a hold of ours"

_BY_INDEX = "SELECT " + ", ".join(
    f"set_config('enable_{way}', 'off', true)" for way in (*PLANS_WITHOUT_INDEX, "sort")
)
"""SQL that makes the transaction read tables by their indexes, even if a table's statistics are
wrong.
"""
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
    """Settle each callback or missed call that the dialer has handed to an agent and not ended.

    A callback becomes an assignment if the lease that the dialer gave it (the column
    `lease_expires_at`) is in force and ends within a day. A missed call becomes an assignment if it
    was handed out within the last 10 minutes (`LATELY`). In both cases the row must name a user and
    an agent, neither of whom has an assignment. Any other callback or missed call becomes pending
    again if it became due within the last 7 days (`OLD`); otherwise it is left unchanged, for an
    operator. If a user would then have several pending callbacks, all but the latest are cancelled.

    Each decision is stored in `adoption_decisions`, and `tell` is called with a line for each kind
    of decision. The migration may be repeated, and then runs this function again. A repeated run
    leaves two kinds of rows unchanged: those that an earlier run left to an operator, and those for
    which an active assignment exists. Cost: each table is read in repeated passes, until a pass has
    decided about no row. A row that was locked during one pass can be decided in the next.
    """
    for table in _KINDS:
        counts: Counter[str] = Counter()
        while decided := _decide_in_one_pass(engine, table):
            counts += decided
        for rule in (DUE_AGAIN, FOR_OPERATOR, HELD):
            if counts[rule]:
                tell(f"contract: {table}: {counts[rule]} {rule}")


def _decide_in_one_pass(engine: Engine, table: str) -> Counter[str]:
    """Settle the callbacks or missed calls in `table` that the dialer has handed to an agent.

    Each row becomes an assignment, becomes pending again, or is left to an operator; `settle` has
    the rules. The table is read once, in batches. A row that another transaction has locked is
    skipped. Returns the number of rows by decision.
    """
    counts: Counter[str] = Counter()
    after: object = None
    while True:
        decide = partial(_decide_batch, engine, table, after)
        rows: list[tuple[str | None, int, object]] = patiently(decide, seconds=TRY_SECONDS)
        if not rows:
            return +counts
        for rule, count, last in rows:
            counts[rule or ""] += count
            after = last


def _decide_batch(
    engine: Engine, table: str, after: object
) -> list[tuple[str | None, int, object]]:
    """Settle the next batch of callbacks or missed calls that the dialer has handed to an agent.

    Each becomes an assignment, becomes pending again, or is left to an operator, as `settle`
    describes; the whole batch is one transaction. `table`: the table of callbacks or of missed
    calls. `after`: the last id of the previous batch; None: begin with the first row. Returns one
    tuple for each kind of decision: the decision, the number of its rows, and the last id of this
    batch. The decision is None, with 0 rows, if no row of the batch needs one. The list is empty at
    the end of the table. Cost: index reads in proportion to the batch, however large the tables
    are.
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
