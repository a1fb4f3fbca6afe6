"""Estimate the duration of a `schema` command over a dialer's tables, before it begins."""

from __future__ import annotations

from sqlalchemy import Connection, text

from assignment_workers.adoption.shapes import KEPT, QUEUE_TABLES
from assignment_workers.schema.dialer import Agent

SECONDS_A_MILLION_ROWS = {
    "inspect": 2.0,
    "compare": 5.0,
    "migrate --dry-run": 2.6,
    "migrate": 16.0,
    "rollback": 0.9,
}
"""Maps a `schema` command of the CLI to its duration, in seconds per million rows.

`benchmarks.adopt` measured the durations on two cores; docs/adopting.md has the measurements.
"""
BYTES_A_ROW = 150
"""The assumed size of a row, in bytes, in a table without statistics."""


def expected_seconds(connection: Connection, command: str) -> float:
    """Return an estimate of the seconds that a `schema` command takes. Reads only the catalogue."""
    parameters = {"bytes": BYTES_A_ROW, "names": _NAMES}
    rows = connection.execute(_ROWS, parameters).scalar_one()
    return float(rows) / 1_000_000 * SECONDS_A_MILLION_ROWS[command]


_NAMES = [
    *(f"{table}{suffix}" for table in QUEUE_TABLES.values() for suffix in ("", KEPT)),
    *(table.name for table in Agent.metadata.sorted_tables),
]
_ROWS = text("""
    SELECT coalesce(sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples
                        ELSE pg_relation_size(c.oid) / :bytes END), 0)::bigint
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relkind = 'r' AND c.relname = ANY(:names)
""")
