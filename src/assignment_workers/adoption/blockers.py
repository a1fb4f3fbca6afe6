"""Finds rows of the old dialer's tables that a migration cannot take over as they are.

Examples: a user who is in both queues, or an assignment to an agent who does not exist. Someone has
to decide what becomes of them. They are counted by kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, text

from assignment_workers.adoption.catalogue import Found
from assignment_workers.adoption.findings import UndecidedRows
from assignment_workers.adoption.shapes import (
    AGENT_COLUMNS,
    QUEUE_TABLES,
    STATUSES,
)
from assignment_workers.adoption.sources import agent_expression
from assignment_workers.schema.times import EARLIEST, LATEST


def blockers(
    connection: Connection, live: Mapping[str, Found], relations: Mapping[str, Found]
) -> Iterable[UndecidedRows]:
    """Count the rows that a migration cannot take over as they are, by table and kind.

    The count is None for a table that the database role has no right to read. `relations` has all
    tables by name, and `live` the queue tables among them that no migration has taken over yet.
    """
    agents = relations.get("agents")
    counts: dict[str, dict[str, str]] = defaultdict(dict)
    for name, found in live.items():
        columns = found["shape"].columns
        agent = agent_expression(columns, "q")
        there = (
            f"NOT EXISTS (SELECT FROM public.agents a WHERE a.id = {agent})"
            if agents is not None and agents["readable"]
            else "true"
        )
        statuses = ", ".join(f"'{status}'" for status in STATUSES)
        rows = f"SELECT count(*) FROM public.{name} q WHERE"
        counts[name] = {
            "users twice in this queue": (
                f"SELECT count(*) FROM (SELECT FROM public.{name} "
                "GROUP BY user_id HAVING count(*) > 1) twice"
            ),
            "assigned with no agent": f"{rows} q.status = 'assigned' AND {agent} IS NULL",
            "agents that do not exist": f"{rows} {agent} IS NOT NULL AND {there}",
            "statuses outside the vocabulary": (
                f"{rows} (q.status IS NULL OR q.status NOT IN ({statuses}))"
            ),
            "positions missing": f"{rows} q.status = 'pending' AND q.queue_position IS NULL",
        }
        if all(column in columns for column in AGENT_COLUMNS):
            one, other = AGENT_COLUMNS
            counts[name]["agent columns that disagree"] = f"{rows} q.{one} <> q.{other}"
    if len(live) == len(QUEUE_TABLES):
        one, other = live
        counts[one]["users in both queues"] = (
            f"SELECT count(DISTINCT q.user_id) FROM public.{one} q "
            f"WHERE EXISTS (SELECT FROM public.{other} o WHERE o.user_id = q.user_id)"
        )
    for name, each in counts.items():
        for what, sql in each.items():
            readable = live[name]["readable"] and (
                what != "users in both queues" or all(other["readable"] for other in live.values())
            )
            count = connection.execute(text(sql)).scalar_one() if readable else None
            yield UndecidedRows(name, what, count)
    for name in [*live, *SHARED]:
        if name in relations and relations[name]["kind"] in ("r", "p"):
            yield from _in_rows(connection, name, relations[name])


def _in_rows(connection: Connection, name: str, found: Found) -> Iterable[UndecidedRows]:
    """Count two kinds of rows of the table `name` that a migration has to decide about.

    The kinds are rows with a time outside the accepted range, and callbacks or missed calls that
    the dialer has handed to an agent (see `STUCK`). A kind without rows is omitted. The table is
    read once. The count is None if the role has no right to read the table.
    """
    columns = found["shape"].columns
    times = [f'"{each}"' for each in columns if columns[each].type.startswith("timestamp")]
    conditions = {}
    if times:
        out = " OR ".join(f"{each} NOT BETWEEN '{FIRST}' AND '{LAST}'" for each in times)
        conditions["times out of range"] = out
    if name in STUCK and {"status", "assigned_to_agent_id"} <= columns.keys():
        conditions["promises that an agent of the dialer has"] = STUCK[name]
    if not conditions:
        return
    counted = ", ".join(f"count(*) FILTER (WHERE {each})" for each in conditions.values())
    counts: Iterable[int | None] = [None] * len(conditions)
    if found["readable"]:
        counts = connection.execute(text(f"SELECT {counted} FROM public.{name}")).one()
    for what, count in zip(conditions, counts, strict=True):
        if count or (count is None):
            yield UndecidedRows(name, what, count)


SHARED = ("agents", "user_call_scores", "callbacks", "missed_calls", "conversions")
STUCK = {
    "callbacks": "status IN ('assigned', 'accepted')",
    "missed_calls": "status = 'assigned'",
}
"""Maps a table to the SQL condition for its rows (callbacks or missed calls) that the dialer has
handed to an agent. The dialer never takes them back from the agent.
"""
FIRST, LAST = EARLIEST.strftime("%Y-%m-%d"), LATEST.strftime("%Y-%m-%d")
