"""The rows of a dialer's tables that a migration has to decide about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, text

from assignment_workers.adoption.catalogue import Found
from assignment_workers.adoption.findings import Blocker
from assignment_workers.adoption.shapes import (
    AGENT_COLUMNS,
    QUEUE_TABLES,
    STATUSES,
)
from assignment_workers.adoption.sources import agent_expression


def blockers(
    connection: Connection, live: Mapping[str, Found], agents: Found | None
) -> Iterable[Blocker]:
    """What there is of each kind, counted: None for a table that the role may not read."""
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
            yield Blocker(name, what, count)
