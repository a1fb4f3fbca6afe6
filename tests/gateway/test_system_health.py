"""A gateway's own part of the health: its counts, and the end of its waits for a dead database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from assignment_workers.gateway.auth import tokens
from assignment_workers.gateway.auth.callers import REMEMBERED_SECONDS, Callers
from assignment_workers.gateway.limits import TokenBucket
from assignment_workers.gateway.problems import Problem
from assignment_workers.gateway.system_health import (
    RECENT_SECONDS,
    WINDOW_SECONDS,
    AnswerWindow,
    DatabaseGuard,
)
from assignment_workers.health.readings import NO_ANSWER, InputReading, Readings
from assignment_workers.health.signs import AnswerCounts
from assignment_workers.schema.engine import ConnectionGate, connect
from tests.support.servers import Wire, wire

SECONDS = 3.0


@pytest.fixture
def line(database_url: str) -> Iterator[Wire]:
    with wire(database_url) as made:
        yield made


@pytest.fixture
def gate() -> ConnectionGate:
    return ConnectionGate()


@pytest.fixture
def engine(line: Wire, gate: ConnectionGate) -> Iterator[Engine]:
    made = connect(
        line.url, name="test", statement_timeout=timedelta(seconds=30), pool_size=2, gate=gate
    )
    yield made
    made.dispose()


def readings(trouble: str | None) -> Readings:
    none: InputReading[None] = InputReading()
    return Readings(datetime.now(UTC), InputReading(trouble=trouble), none, none)  # type: ignore[arg-type]


def test_waits_end_and_new_ones_are_refused_until_the_database_answers(
    engine: Engine, gate: ConnectionGate, line: Wire
) -> None:
    guard = DatabaseGuard(engine, gate)
    began, ended = threading.Event(), threading.Event()
    failed: list[DBAPIError] = []

    def wait() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            began.set()
            try:
                connection.execute(text("SELECT pg_sleep(25)"))
            except DBAPIError as error:
                failed.append(error)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    assert began.wait(10)
    line.cut()
    guard.update(readings(NO_ANSWER))
    assert ended.wait(SECONDS)
    assert failed
    asked = time.monotonic()
    with pytest.raises(DBAPIError, match="does not answer"):
        engine.connect()
    assert time.monotonic() - asked < 1
    line.mend()
    guard.update(readings(None))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_refused_connection_ends_no_wait(engine: Engine, gate: ConnectionGate) -> None:
    """Sessions that are open go on where the server only has no connection left."""
    guard = DatabaseGuard(engine, gate)
    with engine.connect() as connection:
        guard.update(readings("has no free connection"))
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_answers_are_counted_for_a_minute() -> None:
    now = 1000.0
    window = AnswerWindow(clock=lambda: now)
    for unavailable in (True, False, True):
        window.count(unavailable=unavailable)
    now += RECENT_SECONDS
    window.count(unavailable=False)
    found = AnswerCounts(asked=4, unavailable=2, recent_asked=1, recent_unavailable=0)
    assert window.counts() == found
    now += WINDOW_SECONDS - RECENT_SECONDS
    assert window.counts().asked == 1
    now += WINDOW_SECONDS
    window.count(unavailable=True)
    assert window.counts() == AnswerCounts(
        asked=1, unavailable=1, recent_asked=1, recent_unavailable=1
    )


async def _bearer(callers: Callers, token: str, *, outlives: bool) -> object:
    try:
        return (await callers.bearer(token, outlives=outlives)).role
    except Problem as problem:
        return problem.status


def test_a_token_outlives_the_database_to_read_what_is_wrong_and_for_nothing_else(
    engine: Engine, gate: ConnectionGate, line: Wire
) -> None:
    now = 1000.0
    with engine.begin() as connection:
        token = tokens.create(connection, "supervisor")
        other = tokens.create(connection, "supervisor")
    callers = Callers(engine, True, TokenBucket(100), TokenBucket(100), clock=lambda: now)

    def bearer(said: str = token, *, outlives: bool) -> object:
        return asyncio.run(_bearer(callers, said, outlives=outlives))

    assert bearer(outlives=False) == "supervisor"
    line.cut()
    DatabaseGuard(engine, gate).update(readings(NO_ANSWER))
    now += 10
    assert bearer(outlives=True) == "supervisor"
    assert bearer(outlives=False) == 503
    assert bearer(other, outlives=True) == 503
    now += REMEMBERED_SECONDS
    assert bearer(outlives=True) == 503
