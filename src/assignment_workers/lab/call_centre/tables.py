"""Checks of the tables after a long run: for too much empty space, and for too many dead rows.

A table that is much larger than a new copy of its rows has too much empty space (bloat).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel
from sqlalchemy import Connection, text

from assignment_workers.lab.call_centre.trend import Points

BLOATED = 2.0
"""The ratio above which a table may be bloated: it may have too much empty space.

The ratio is the size of the table, divided by the size of a new copy of the table's rows. `BLOATED`
is well above 1, because some empty space is normal: autovacuum waits until about a fifth of the
rows are dead, and pages are never quite full. A table above this ratio is bloated only if the table
is also larger than the new copy by more than `BLOAT_MB`.
"""
BLOAT_MB = 1.0
"""The size in megabytes by which a table must exceed a new copy of its rows to count as bloated."""
DEAD_TIMES = 2.0
"""The number of dead rows that is allowed, as a multiple of autovacuum's threshold.

It is above 1 because rows continue to die until autovacuum runs.
"""
DEAD_SECONDS = 180.0
"""The longest time in seconds for which a table may have too many dead rows.

Too many means more than twice autovacuum's threshold. Autovacuum checks the tables once a minute.
It therefore has about three occasions to clean a table within this time.
"""

# A generation's table counts with `entries`, attached or not. The
# threshold is autovacuum's own: it goes by `reltuples`.
TABLES = """
SELECT whole.relname AS name, whole.oid::regclass AS whole,
  sum(pg_total_relation_size(c.oid)) AS bytes,
  sum(t.n_dead_tup) / sum(current_setting('autovacuum_vacuum_threshold')::float
    + current_setting('autovacuum_vacuum_scale_factor')::float * greatest(c.reltuples, 0)) AS dead
FROM pg_stat_user_tables t JOIN pg_class c ON c.oid = t.relid
JOIN pg_class whole ON whole.oid = CASE
  WHEN c.relname ~ '^entries_[0-9]+$' THEN 'assignment.entries'::regclass ELSE c.oid END
WHERE whole.relnamespace = 'assignment'::regnamespace AND whole.relname <> 'schema_revision'
  OR whole.oid IN ('public.user_call_scores'::regclass, 'public.callbacks'::regclass,
    'public.conversions'::regclass)
GROUP BY whole.oid, whole.relname
"""
# One copy after another. The indexes are filled row by row, as those of the table were.
WEIGH = f"""
DO $$
DECLARE
  each record;
  counted bigint;
BEGIN
  CREATE TEMP TABLE weights (name text, rows bigint, bytes bigint, anew bigint) ON COMMIT DROP;
  FOR each IN {TABLES} LOOP
    EXECUTE format('CREATE TEMP TABLE anew (LIKE %s INCLUDING INDEXES)', each.whole);
    EXECUTE format('INSERT INTO anew SELECT * FROM %s', each.whole);
    GET DIAGNOSTICS counted = ROW_COUNT;
    INSERT INTO weights
    VALUES (each.name, counted, each.bytes, pg_total_relation_size('pg_temp.anew'));
    DROP TABLE anew;
  END LOOP;
END $$
"""  # noqa: S608 - of nothing but constants
WEIGHTS = "SELECT name, rows, bytes / 1e6 AS mb, anew / 1e6 AS anew_mb FROM weights ORDER BY name"


class Weight(BaseModel):
    """The size of a table (`mb`), and of a new copy of its rows (`anew_mb`), in MB of 10^6 bytes.

    `weighed` really makes the copy, as a temporary table, and drops it after the measurement. Both
    sizes include the indexes.
    """

    name: str
    rows: int
    mb: float
    anew_mb: float

    @property
    def times(self) -> float:
        """The bloat: the table's size divided by the size of a new copy of the table's rows."""
        return self.mb / self.anew_mb

    @property
    def row(self) -> float | None:
        """Bytes per row in the table; None if the table is empty."""
        return self.mb * 1e6 / self.rows if self.rows else None

    @property
    def row_anew(self) -> float | None:
        """Bytes per row in the new copy of the table's rows; None if the table is empty."""
        return self.anew_mb * 1e6 / self.rows if self.rows else None

    def shown(self) -> tuple[str | None, ...]:
        """Return the values of the table's line in a report, as text.

        In order: the number of rows, the size in MB, the bytes per row, the bytes per row in the
        copy that `weighed` made of the rows, and the bloat (`times`). The two numbers of bytes per
        row are None for an empty table.
        """
        bytes_of = [None if each is None else f"{each:,.0f}" for each in (self.row, self.row_anew)]
        return f"{self.rows:,}", f"{self.mb:,.2f}", *bytes_of, f"{self.times:.2f}"

    @property
    def is_bloated(self) -> bool:
        """True if the table has so much empty space that an operator should act."""
        return self.times > BLOATED and self.mb - self.anew_mb > BLOAT_MB


def measured(connection: Connection) -> tuple[dict[str, float], dict[str, float]]:
    """Return two mappings by table name: the size in MB with indexes, and the dead rows.

    The number of dead rows is given as a multiple of autovacuum's threshold.
    """
    rows = connection.execute(text(TABLES)).all()
    return (
        {row.name: float(row.bytes) / 1e6 for row in rows},
        {row.name: float(row.dead) for row in rows},
    )


def weighed(connection: Connection) -> list[Weight]:
    """Compare the size of every table with the size of a new copy of the table's rows.

    PostgreSQL makes the copies as temporary tables, one after another. It measures each copy and
    then drops the copy. Cost: about a second per 100,000 rows.
    """
    connection.execute(text(WEIGH))
    return [
        Weight.model_validate(dict(row)) for row in connection.execute(text(WEIGHTS)).mappings()
    ]


def bloated(weights: Sequence[Weight]) -> list[str]:
    """Return a line for each table that takes much more space than its rows need."""
    return [
        f"bloat of {each.name}: {each.row:,.0f} bytes a row, and {each.row_anew:,.0f} were it"
        f" written anew ({each.times:.1f} times)"
        if each.rows
        else f"bloat of {each.name}: {each.mb:,.1f} MB without a row"
        for each in weights
        if each.is_bloated
    ]


def never_vacuumed(dead: Mapping[str, Points]) -> list[str]:
    """Return a line for each table in which too many rows were dead for too long.

    `dead`: by table, the number of dead rows over time, as a multiple of autovacuum's threshold.
    A crash of PostgreSQL sets its count of dead rows to 0. A period with too many dead rows
    that goes on after a crash therefore counts as two periods.
    """
    found = []
    for name, points in sorted(dead.items()):
        seconds = longest_above(points, DEAD_TIMES)
        if seconds > DEAD_SECONDS:
            found.append(
                f"dead rows of {name}: for {seconds:.0f} s more than {DEAD_TIMES:g} times"
                " autovacuum's threshold"
            )
    return found


def longest_above(points: Points, limit: float) -> float:
    """Return the seconds of the longest period in which every sample was above `limit`."""
    longest, began = 0.0, None
    for at, value in points:
        if value <= limit:
            began = None
        elif began is None:
            began = at
        else:
            longest = max(longest, at - began)
    return longest
