"""Changes to tables in use that stand in nobody's way, whatever their size.

For migrations, each outside a transaction (Alembic's `autocommit_block`): nothing holds a lock for
longer than its own statement. Each can be run again after a run that was killed in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op

BATCH = 5_000
"""Rows that one transaction changes: a dialer that writes one of them waits for it."""


@contextmanager
def alone() -> Iterator[None]:
    """Each statement in here commits by itself."""
    with op.get_context().autocommit_block():
        yield


def index(
    name: str,
    table: str,
    columns: str,
    *,
    unique: bool = False,
    where: str = "",
    schema: str = "public",
) -> None:
    """Build an index of a table while it is read and written. Within `alone`."""
    for sql in index_statements(name, table, columns, unique=unique, where=where, schema=schema):
        op.execute(sql)


def index_statements(
    name: str,
    table: str,
    columns: str,
    *,
    unique: bool = False,
    where: str = "",
    schema: str = "public",
) -> Iterator[str]:
    """The statements that build an index, each to be run by itself.

    It waits for the transactions that were there before, in which nobody waits for it: no lock
    timeout is to end that. What a build that was killed left is taken away first.
    """
    left = (
        f"IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('{schema}.{name}')"
        f" AND NOT indisvalid) THEN DROP INDEX {schema}.{name}; END IF;"
    )
    yield f"DO $left$ BEGIN {left} END $left$"
    yield (
        "SELECT set_config('assignment.lock_timeout', current_setting('lock_timeout'), false),"
        " set_config('lock_timeout', '0', false)"
    )
    yield (
        f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY IF NOT EXISTS {name}"
        f" ON {schema}.{table} ({columns}){f' WHERE {where}' if where else ''}"
    )
    yield "SELECT set_config('lock_timeout', current_setting('assignment.lock_timeout'), false)"


def cancel(table: str, which: str) -> None:
    """Set the rows that the query `which` gives the ids of to cancelled, `BATCH` at a time.

    Within `alone`. Each batch is a transaction of its own.
    """
    op.execute(cancel_statement(table, which))


def cancel_statement(table: str, which: str) -> str:
    """The statement of `cancel`, to be run by itself."""
    return f"""
        DO $cancel$
        DECLARE superseded uuid[]; first integer := 1;
        BEGIN
            superseded := ARRAY({which});
            WHILE first <= cardinality(superseded) LOOP
                UPDATE public.{table} SET status = 'cancelled', updated_at = timezone('UTC', now())
                WHERE id = ANY(superseded[first : first + {BATCH - 1}]) AND status = 'pending';
                COMMIT;
                first := first + {BATCH};
            END LOOP;
        END $cancel$
    """  # noqa: S608 - every name is ours
