"""Every exchange with PostgreSQL ends on our own clock, wherever in a session nothing comes back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from time import monotonic

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import deadline, engine
from assignment_workers.schema.deadline import BoundedConnection, NoAnswer
from assignment_workers.schema.engine import connect
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from tests.support.processes import wait_until
from tests.support.servers import Wire, wire
from tests.support.world import World

BOUND = 1.0
"""Seconds that an exchange may take here."""
CONNECT = 5.0
CONNECTING = 3
"""The last sending of a client that connects: those before it are bounded together."""


@pytest.fixture
def line(world: World, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A wire to the database, and short deadlines."""
    monkeypatch.setattr(engine, "MARGIN_SECONDS", BOUND - 0.5)
    monkeypatch.setattr(BoundedConnection, "exchange_seconds", BOUND)
    with wire(database_url) as made:
        yield made


@contextmanager
def engine_on(line: Wire, statement_timeout: float = 0.5) -> Iterator[Engine]:
    limit = timedelta(seconds=statement_timeout)
    made = connect(line.url, name="deadlines", statement_timeout=limit)
    try:
        yield made
    finally:
        made.dispose()


def transaction(line: Wire, lane: str) -> None:
    """A session whole: connect, set up, a turn of two trips with a commit, a statement, its end."""
    with engine_on(line) as on:
        with TransactionRunner(on, dialer=loaded(), term=1, lane=lane).transaction() as one:
            one.connection.execute(text("SELECT 1"))
            one.record({"kind": "queue_paused", "queue": "unsigned_users"})
        with on.begin() as connection:
            connection.execute(text("SELECT 1"))
    line.cut_after(0)  # nothing was cut: the session has no more points


POINTS = 60
"""More than a session has."""


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("line")
def test_a_session_ends_at_whatever_point_nothing_comes_back(
    world: World, database_url: str
) -> None:
    """All points at the same time, each with a lane of its own: most of it is waiting."""
    # `make waits` cuts the session at each of its points.
    points = range(CONNECTING, POINTS, 1 if "WAITS_POINTS" in os.environ else 2)
    world.execute(
        "INSERT INTO assignment.sequencer (lane, term) SELECT 'point ' || n, 1"
        " FROM generate_series(0, 60) n"
    )

    def cut_at(point: int) -> float | None:
        """The seconds of a session that was cut there; None if it had ended before."""
        with wire(database_url) as each:
            each.cut_after(point)
            began = monotonic()
            try:
                transaction(each, f"point {point}")
            except (psycopg.OperationalError, DBAPIError):
                return monotonic() - began
            return None

    with ThreadPoolExecutor(40) as pool:
        took = dict(zip(points, pool.map(cut_at, points), strict=True))
    cut = {point: seconds for point, seconds in took.items() if seconds is not None}
    assert len(cut) > 5, "the session was cut at each of its points"
    assert took[points[-1]] is None, "it has no more points"
    late = {point: seconds for point, seconds in cut.items() if seconds > CONNECT + 3 * BOUND}
    assert late == {}


def test_a_long_statement_is_waited_for_while_the_server_is_at_work_on_it(
    line: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.3)
    with engine_on(line, statement_timeout=600) as on:
        with on.connect() as connection:
            assert connection.execute(text("SELECT 1 FROM pg_sleep(1.2)")).scalar_one() == 1
            line.freeze()
            began = monotonic()
            with pytest.raises(DBAPIError) as lost:
                connection.execute(text("SELECT pg_sleep(0.4)"))
        assert isinstance(lost.value.orig, NoAnswer)
        assert lost.value.connection_invalidated
        assert monotonic() - began < 5.0
        with on.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1, "over a new connection"


def test_an_answer_that_comes_while_the_server_is_looked_at_is_taken(
    line: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks_late(connection: BoundedConnection) -> bool:
        wait_until(lambda: not deadline.at_work(connection), "the statement to end")
        return False

    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(engine, "at_work", looks_late)
    with engine_on(line, statement_timeout=600) as on, on.connect() as connection:
        assert connection.execute(text("SELECT 1 FROM pg_sleep(0.4)")).scalar_one() == 1


def test_whether_the_server_is_at_work_is_unknown_where_it_cannot_be_asked(line: Wire) -> None:
    with closing(BoundedConnection.connect(line.url)) as connection:
        line.cut()
        began = monotonic()
        assert not deadline.at_work(connection)
        assert monotonic() - began < CONNECT + 1.0
        deadline.drop(connection)
        assert connection.closed
