"""PostgreSQL answers nothing any more, and a new session would be served: nobody waits for long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from assignment_workers.assignment.reports.durability import Commits
from assignment_workers.assignment.reports.status import status
from assignment_workers.client import Assigned, Unavailable
from assignment_workers.devstack import postgres
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.runtime.home import Home
from assignment_workers.schema.migrate import upgrade
from assignment_workers.sequencer.term import APPLICATION, SILENCE
from assignment_workers.settings import Settings
from tests.support.processes import Agents, Keeper, running, wait_until
from tests.support.servers import OwnServer, wire

WITHIN_SECONDS = 10.0
SLACK = 2.5
"""Seconds that a busy machine may take on top."""
"""Service is back, where a server is left to serve."""


@pytest.mark.timeout(180)
def test_sessions_that_nothing_comes_back_over_are_given_up_and_work_goes_on(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """As where the primary hangs and a standby is promoted: old sessions are silent, new ones not."""
    with running(database_url, redis_url, tmp_path) as stack, wire(database_url) as primary:
        direct, stack.database_url = stack.database_url, primary.url
        with Keeper(stack, "sequencer", "sequencer"):
            stack.database_url = direct
            stack.built()
            with Agents(stack, 8) as agents:
                wait_until(lambda: len(agents.answered) > 50, "work to go on")
                stack.database_url = primary.url
                frozen = time.monotonic()
                primary.freeze()
                wait_until(lambda: agents.answered[-1][0] > frozen + 0.5, "an answer", seconds=60)
                gap = agents.answered[-1][0] - frozen
        assert gap < WITHIN_SECONDS + SLACK
        stack.assert_healthy()


@contextmanager
def commits_waiting(data: Path, server: int) -> Iterator[None]:
    """Each COMMIT waits for a standby that is away; `server` is the process on these data."""
    file = data / "postgresql.auto.conf"
    usual = file.read_text()
    file.write_text(f"{usual}synchronous_standby_names = 'away'\n")
    os.kill(server, signal.SIGHUP)
    try:
        yield
    finally:
        file.write_text(usual)
        os.kill(server, signal.SIGHUP)


@pytest.mark.timeout(180)
def test_nobody_takes_over_while_commits_wait_for_a_standby_and_everybody_says_so(
    test_home: Home, guardian: Guardian, redis_url: str, tmp_path: Path
) -> None:
    """A session that is ended while its COMMIT waits commits without the standby."""
    directory = test_home.path / "postgres-awaited"
    own = OwnServer(partial(postgres.prepare, fsync=False), directory, guardian)
    try:
        upgrade(own.url)
        with running(own.url, redis_url, tmp_path) as stack:
            sequencers = [stack.start("sequencer"), stack.start("sequencer")]
            client = stack.built(users=200)
            term = stack.term()
            with commits_waiting(directory / "data", own.pid):
                answer = client.request_next(1, timeout=timedelta(seconds=2))
                assert isinstance(answer, Unavailable)
                ends = time.monotonic() + SILENCE.total_seconds() + 6
                wait_until(lambda: time.monotonic() > ends, "a silence to be noticed")
                with stack.connection() as connection:
                    found = status(
                        connection,
                        loaded(),
                        None,
                        application=APPLICATION,
                        settings=Settings.from_environment({}),
                    )
                assert found.durability.commits == Commits.WAITING
                assert any("commits wait for a synchronous" in each.said() for each in sequencers)
            wait_until(
                lambda: isinstance(client.request_next(1, timeout=timedelta(seconds=1)), Assigned),
                "an agent to be served again",
                seconds=WITHIN_SECONDS,
            )
            assert stack.term() == term
            assert [each.popen.poll() for each in sequencers] == [None, None]
            assert not any("deposing" in each.said() for each in sequencers)
            stack.assert_healthy()
            stack.engine.dispose()
    finally:
        own.stop()
