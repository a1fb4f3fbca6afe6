"""Changes of the dialer's rows, made while the dialer is at work on them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest

from assignment_workers.schema.online import cancel_statement
from tests.support.processes import wait_until

IDS = [UUID(int=1), UUID(int=2)]
WAITS = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s"
TOUCH = "UPDATE promises SET updated_at = now() WHERE id = %s"


@pytest.mark.parametrize("order", [IDS, IDS[::-1]], ids=["up", "down"])
def test_rows_that_the_dialer_locks_in_any_order_are_cancelled_without_a_deadlock(
    empty_database_url: str, order: list[UUID]
) -> None:
    with (
        psycopg.connect(empty_database_url, autocommit=True) as ours,
        psycopg.connect(empty_database_url, autocommit=True) as looking,
        psycopg.connect(empty_database_url) as dialer,
        ThreadPoolExecutor(1) as pool,
    ):
        ours.execute("CREATE TABLE promises (id uuid PRIMARY KEY, status text, updated_at date)")
        ours.cursor().executemany(
            "INSERT INTO promises VALUES (%s, 'pending')", [[each] for each in IDS]
        )
        dialer.execute(TOUCH, [order[0]])
        statement = cancel_statement("promises", "SELECT id FROM public.promises")
        cancelling = pool.submit(ours.execute, statement.encode())
        wait_until(lambda: looking.execute(WAITS, [ours.info.backend_pid]).fetchone(), "a wait")
        dialer.execute(TOUCH, [order[1]])
        dialer.commit()
        cancelling.result()
        found = looking.execute("SELECT DISTINCT status FROM promises").fetchall()
        assert found == [("cancelled",)]
