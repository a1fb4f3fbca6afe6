"""Maintenance has no head of line: who reads for long keeps neither heartbeats nor builds waiting."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from assignment_workers.assignment.answers import Noted
from assignment_workers.client import Client
from tests.support.processes import Process, Stack, running, wait_until

SECOND = timedelta(seconds=1)
OLD = "SELECT min(id) FROM assignment.generations WHERE queue = 'unsigned_users'"
PURGED = f"SELECT purged_at IS NOT NULL FROM assignment.generations WHERE id = ({OLD})"
GONE = f"SELECT to_regclass('assignment.entries_' || ({OLD})) IS NULL"
PENDING = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


@contextmanager
def long_reader(stack: Stack) -> Iterator[None]:
    """A transaction that has read every entry and goes on, as pg_dump's does."""
    with stack.connection() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        connection.execute(text("SELECT count(*) FROM assignment.entries"))
        yield
        connection.rollback()


def worker(stack: Stack) -> Process:
    return next(each for each in reversed(stack.started) if each.name == "maintenance")


def retired(stack: Stack) -> None:
    """A generation that was retired long ago."""
    client = stack.built(users=200)
    task = client.regenerate("unsigned_users")
    assert isinstance(task, str)
    client.built(task, timeout=20 * SECOND)
    aged = "UPDATE assignment.generations SET retired_at = retired_at - interval '1 day'"
    wait_until(
        lambda: stack.value("SELECT count(*) FROM assignment.generations WHERE state = 'retired'"),
        "a generation to be retired",
    )
    with stack.engine.begin() as connection:
        connection.execute(text(aged))


def purges(stack: Stack, client: Client) -> None:
    """Tend as beat does, time after time, until the old generation is purged."""

    def purged() -> bool:
        client.send_again("generation.tend", [], {}, "maintenance")
        return bool(stack.value(PURGED))

    wait_until(purged, "it to be purged")


def test_a_long_reader_of_entries_keeps_nobody_waiting(stack: Stack) -> None:
    stack.start("sequencer")
    retired(stack)
    client = stack.client()
    with long_reader(stack):
        for _ in range(3):
            client.send_again("generation.tend", [], {}, "maintenance")
        began = time.monotonic()
        assert isinstance(client.heartbeat(1, timeout=9 * SECOND), Noted)
        task = client.regenerate("outstanding_requests")
        assert isinstance(task, str)
        assert isinstance(client.built(task, timeout=20 * SECOND), dict)
        assert time.monotonic() - began < 20
        assert not stack.value(PURGED)
    purges(stack, client)
    assert stack.value(GONE)
    assert stack.value("SELECT count(*) FROM assignment.dead_letters") == 0


def test_a_worker_killed_within_a_detachment_has_it_finished_by_the_next(stack: Stack) -> None:
    stack.start("sequencer")
    retired(stack)
    client = stack.client()
    with long_reader(stack):
        client.send_again("generation.tend", [], {}, "maintenance")
        wait_until(lambda: stack.value(PENDING), "the detachment to begin")
        worker(stack).signal(signal.SIGKILL)
        worker(stack).popen.wait()
    assert not stack.value(GONE)
    stack.start("maintenance")
    purges(stack, client)
    assert (stack.value(GONE), stack.value(PENDING)) == (True, 0)


def test_heartbeats_have_a_worker_of_their_own(stack: Stack) -> None:
    """Whatever the others do: here there are none."""
    stack.start("sequencer")
    stack.built(users=10)
    worker(stack).stop()
    heartbeats = stack.start("heartbeats")
    client = stack.client()
    assert isinstance(client.heartbeat(1, timeout=9 * SECOND), Noted)
    assert heartbeats.stop() == 0
