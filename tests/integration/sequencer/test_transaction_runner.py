"""The line's turns: one after the other, each at an instant of its own, tried again for so long."""

from __future__ import annotations

import threading
from datetime import datetime
from time import monotonic

import pytest
from psycopg import OperationalError as Lost
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from assignment_workers.assignment.answers import Finished
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.errors import DatabaseUnavailable
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from tests.support.processes import wait_until
from tests.support.sessions import WAITING
from tests.support.world import HOUR, SECOND, User, World, opened


def waits(world: World) -> bool:
    return bool(world.column(WAITING))


@pytest.mark.parametrize("changed", [True, False], ids=["commits", "rolls back"])
def test_a_turn_is_later_than_the_one_that_it_waited_for(world: World, *, changed: bool) -> None:
    """A deadline that passes while a turn waits for its place has passed in the turn."""
    instants: list[datetime] = []

    def take_a_turn() -> None:
        with TransactionRunner(world.engine, dialer=loaded(), term=1).transaction() as transaction:
            instants.append(transaction.now)

    waiting = threading.Thread(target=take_a_turn)
    with world.engine.connect() as before:
        before.execute(text("SELECT 1 FROM assignment.sequencer FOR UPDATE"))
        waiting.start()
        wait_until(lambda: waits(world), "the turn to wait")
        if changed:
            before.execute(text("UPDATE assignment.sequencer SET seen_at = clock_timestamp()"))
        ended = before.execute(text("SELECT clock_timestamp()")).scalar_one()
        (before.commit if changed else before.rollback)()
    waiting.join(20)
    assert instants[0] > ended


def test_a_turn_is_tried_again_until_the_deadline_by_the_databases_clock(world: World) -> None:
    line = TransactionRunner(world.engine, dialer=loaded(), term=1)
    tries: list[datetime] = []

    def fail(transaction: FencedTransaction) -> None:
        tries.append(transaction.now)
        raise OperationalError("SELECT", {}, Lost("server closed the connection unexpectedly"))

    line.run(lambda transaction: transaction.now)
    with pytest.raises(DatabaseUnavailable):
        line.run(fail, until=world.now - SECOND)
    assert len(tries) == 1, "too late by this host's clock and by the database's"
    line._seen = world.now + HOUR, monotonic()  # the database's clock is an hour ahead of ours
    with pytest.raises(DatabaseUnavailable):
        line.run(fail, until=world.now + HOUR - SECOND)
    assert len(tries) == 2, "too late by the database's clock"
    line._seen = world.now - HOUR, monotonic()  # and an hour behind
    with pytest.raises(DatabaseUnavailable):
        line.run(fail, until=world.now - HOUR + SECOND)
    assert len(tries) > 3, "in time by the database's clock"


ODD = {
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "lc_numeric": "C",
}


def test_what_a_role_or_a_database_has_set_changes_nothing_for_our_sessions(
    database_url: str,
) -> None:
    name = database_url.rpartition("/")[2]
    with opened(database_url) as admin:
        for setting, value in ODD.items():
            admin.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    with opened(database_url) as world:
        world.add_agents(1)
        world.add_users([User(1), User(2)])
        world.regenerate()
        hold = world.held(1)
        assert abs(hold.claimed_at - world.now) < HOUR
        assert isinstance(world.complete(hold, notes="7 December"), Finished)
        assert world.unhealthy() == []
