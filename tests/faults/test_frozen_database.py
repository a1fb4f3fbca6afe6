"""PostgreSQL answers nothing any more, and a new session would be served: nobody waits for long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.processes import Agents, Keeper, running, wait_until
from tests.support.servers import wire

WITHIN_SECONDS = 10.0
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
        assert gap < WITHIN_SECONDS
        stack.assert_healthy()
