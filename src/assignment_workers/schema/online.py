"""Change tables in use without blocking anyone, whatever their size.

For migrations. Each change runs outside a transaction (Alembic's `autocommit_block`), so no lock is
held longer than one statement. If the process is killed during a change, the change can be run
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op

BATCH = 5_000
"""Rows changed per transaction. A dialer that writes one of these rows waits for that transaction.
"""
AT_A_TIME = 500
"""The most rows of the dialer's table that one transaction of `cancel` sets to cancelled.

The number is small, because a dialer may have to wait for that transaction in two cases. First, the
dialer writes one of the rows. Second, one of the rows is a callback, and the dialer promises
another callback to the same user. A trigger of this package then cancels the first callback, so it
waits for the row of that callback.
"""


@contextmanager
def alone() -> Iterator[None]:
    """Run each migration statement in this `with` block outside of a transaction (autocommit)."""
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
    """Build an index of `table` on `columns` without blocking reads or writes.

    `where`: the condition of a partial index. Call this function only in a `with alone():` block.
    """
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
    """Yield the statements that build an index of `table` without blocking; run each separately.

    The build waits for the transactions that began before it, and none of them waits for the build,
    so the lock timeout is switched off for that statement. An invalid index left by a killed build
    is dropped first. `where`: the condition of a partial index.
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
    """Set pending rows of the dialer's `table` to cancelled, 500 (`AT_A_TIME`) per transaction.

    `which`: a query that returns the ids of the rows. Call this function only in a `with alone():`
    block.
    """
    op.execute(cancel_statement(table, which))


def cancel_statement(table: str, which: str) -> str:
    """Return the SQL statement by which `cancel` sets rows of the dialer's `table` to cancelled.

    `which`: a query that returns the ids of the rows. Run the statement outside of a transaction.
    The statement never waits for a row while it has locked another row, so it causes no deadlock
    with statements of the dialer, which may lock the same rows in any order.
    """
    return f"""
        DO $cancel$
        DECLARE superseded uuid[]; batch uuid[]; one uuid; first integer := 1;
        BEGIN
            superseded := ARRAY({which});
            WHILE first <= cardinality(superseded) LOOP
                batch := ARRAY(SELECT id FROM public.{table} WHERE status = 'pending'
                    AND id = ANY(superseded[first : first + {AT_A_TIME - 1}])
                    FOR UPDATE SKIP LOCKED);
                UPDATE public.{table} SET status = 'cancelled', updated_at = timezone('UTC', now())
                WHERE id = ANY(batch);
                COMMIT;
                first := first + {AT_A_TIME};
            END LOOP;
            batch := ARRAY(
                SELECT id FROM public.{table} WHERE id = ANY(superseded) AND status = 'pending');
            FOREACH one IN ARRAY batch LOOP
                UPDATE public.{table} SET status = 'cancelled', updated_at = timezone('UTC', now())
                WHERE id = one AND status = 'pending';
                COMMIT;
            END LOOP;
        END $cancel$
    """  # noqa: S608 - every name is ours
