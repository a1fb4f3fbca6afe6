"""Hosts whose clocks differ: the database's decides, for a client's request and for its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from assignment_workers.client import Assigned, Client, Finished, Unavailable
from tests.support.processes import Stack, running, wait_until

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)

HOST_AHEAD = """
import datetime, runpy, sys
from celery.worker import request

class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) + datetime.timedelta(seconds=4)

request.datetime = Ahead
sys.argv[0] = "assignment-workers"
runpy.run_module("assignment_workers", run_name="__main__")
"""
"""A process on a host whose clock is four seconds ahead, by what Celery makes of it."""


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


@pytest.fixture(params=[-MINUTE, MINUTE], ids=["behind", "ahead"])
def client(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Client]:
    """Of a host whose clock is a minute off."""
    off: timedelta = request.param
    with Client(stack.redis_url, clock=lambda: datetime.now(UTC) + off) as made:
        yield made


def test_a_client_whose_clock_is_off_is_answered(stack: Stack, client: Client) -> None:
    stack.start("sequencer")
    stack.built()
    answer = client.request_next(1, request_id="one", timeout=timedelta(seconds=20))
    assert isinstance(answer, Assigned)
    waited = "SELECT extract(epoch FROM answered_at - received_at) FROM assignment.requests"
    assert 0 <= stack.value(waited) < 20
    left = "SELECT extract(epoch FROM deadline - received_at) FROM assignment.requests"
    assert stack.value(left) == 20


def test_nobody_is_assigned_when_a_client_whose_clock_is_off_has_gone(
    stack: Stack, client: Client
) -> None:
    stack.start("sequencer")
    stack.built()
    with stack.connection() as connection:
        # The line is held up until the client has gone, and a second longer.
        connection.execute(text("SELECT 1 FROM assignment.sequencer FOR UPDATE"))
        answer = client.request_next(1, request_id="one", timeout=SECOND)
        gone_at = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        assert isinstance(answer, Unavailable)
        wait_until(
            lambda: stack.value("SELECT clock_timestamp()") > gone_at + SECOND, "a second to pass"
        )
        connection.rollback()
    outcome = "SELECT outcome FROM assignment.requests WHERE request_id = 'one'"
    assert wait_until(lambda: stack.rows(outcome), "the request to be served")[0][0] == "too_late"
    assert stack.value("SELECT count(*) FROM assignment.assignments") == 0


def test_a_sequencer_whose_clock_is_ahead_drops_no_request_that_is_in_time(stack: Stack) -> None:
    stack.start("sequencer", program=["-c", HOST_AHEAD])
    client = stack.built()
    answers = [client.request_next(1, timeout=timedelta(seconds=3)) for _ in range(3)]
    assert all(isinstance(each, Assigned) for each in answers), answers


OWN_CLOCK = """
CREATE SCHEMA own_clock;
CREATE TABLE own_clock.ahead AS SELECT interval '0' AS by;
CREATE FUNCTION own_clock.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
    AS 'SELECT pg_catalog.clock_timestamp() + by FROM own_clock.ahead';
CREATE FUNCTION own_clock.statement_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
    AS 'SELECT pg_catalog.statement_timestamp() + by FROM own_clock.ahead';
CREATE FUNCTION own_clock.now() RETURNS timestamptz VOLATILE LANGUAGE sql
    AS 'SELECT pg_catalog.now() + by FROM own_clock.ahead';
"""
"""The functions by which everything here reads the database's clock, ahead of it by so much."""


@pytest.fixture
def stepped(stack: Stack) -> Callable[[timedelta], None]:
    """Steps the database's clock, for every session on it."""
    name = stack.database_url.rpartition("/")[2]
    with stack.engine.connect() as connection:
        connection.exec_driver_sql(OWN_CLOCK)
        connection.exec_driver_sql(
            f"ALTER DATABASE {name} SET search_path = own_clock, pg_catalog, public"
        )
        connection.commit()
    stack.engine.dispose()

    def step(by: timedelta) -> None:
        with stack.engine.begin() as connection:
            connection.execute(text("UPDATE own_clock.ahead SET by = by + :by"), {"by": by})

    return step


def test_a_database_whose_clock_steps_is_followed_at_once(
    stack: Stack, stepped: Callable[[timedelta], None]
) -> None:
    """And the step is an event, by which neither the doctor nor the history checker complains."""
    stack.start("sequencer")
    client = stack.built()
    held: dict[int, Assigned] = {}

    def serve(agent: int) -> list[object]:
        """The answers until the agent is served."""
        answers: list[object] = []
        wait_until(lambda: isinstance(_asked(client, agent, answers), Assigned), "an answer")
        answer = answers[-1]
        assert isinstance(answer, Assigned)
        held[agent] = answer
        return answers

    for agent in (1, 2, 3):
        assert len(serve(agent)) == 1
    stepped(timedelta(seconds=30))
    late = serve(4)
    assert len(late) <= 2, late
    assert isinstance(client.release(held[1].assignment.id, 1), Finished)
    assert len(serve(5)) == 1, "the client has corrected itself"
    stepped(timedelta(seconds=-45))
    assert isinstance(client.release(held[2].assignment.id, 2), Finished)
    assert len(serve(2)) == 1
    assert len(serve(6)) == 1
    wait_until(lambda: len(stack.rows(STEPS)) == 2, "both steps to be events")
    forth, back = (row.seconds for row in stack.rows(STEPS))
    assert (round(forth), round(back)) == (30, -45)
    stack.assert_healthy()


STEPS = (
    "SELECT (details->>'seconds')::float8 AS seconds FROM assignment.events"
    " WHERE kind = 'clock_stepped' ORDER BY id"
)


def _asked(client: Client, agent: int, answers: list[object]) -> object:
    answers.append(client.request_next(agent, timeout=timedelta(seconds=5)))
    return answers[-1]
