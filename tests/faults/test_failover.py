"""PostgreSQL fails over to its standby under agents: service is back in seconds, and what holds holds.

`make failover` does so twenty times, at random moments, under 64 agents.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.history.lost import LostEvent, lost
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.assignment.reports.durability import Commits, durability
from assignment_workers.client import Refused, Unavailable
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.runtime.home import Home
from assignment_workers.schema.engine import connect
from assignment_workers.schema.hosts import LOOKING
from assignment_workers.schema.migrate import upgrade
from tests.support.processes import Agents, Keeper, Stack, running, wait_until
from tests.support.replicas import Replicas, replicas

WITHIN_SECONDS = 10.0
"""Service is back, where a server is left to serve."""
FIRST = int(os.environ.get("FAILOVER_SEED", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("FAILOVER_ROUNDS", "2")))
AGENTS = int(os.environ.get("FAILOVER_AGENTS", "8"))
IN_USE = f"""
SELECT application_name, state, query FROM pg_stat_activity
WHERE application_name LIKE 'assignment-workers%' AND application_name <> '{LOOKING}'
    AND state_change > clock_timestamp() - interval '3 seconds'
"""
"""Our sessions that do anything. Idle ones of a pool end when they are next to be used."""
SEQUENCERS = """
SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'assignment-workers sequencer%'
"""
ASSIGNMENTS = "SELECT id FROM assignment.assignments"
MOVED_BACK = "no term was begun twice: the database has not moved back"
BEGUN_TWICE = """
SELECT term FROM assignment.events WHERE kind = 'term_begun' GROUP BY term HAVING count(*) > 1
"""


@pytest.fixture
def servers(test_home: Home, guardian: Guardian, tmp_path: Path) -> Iterator[Replicas]:
    with replicas(test_home.path / tmp_path.name, guardian) as made:
        upgrade(made.primary.prepared.url)
        yield made


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_failover_loses_nothing_or_names_what_it_lost(
    servers: Replicas, redis_url: str, tmp_path: Path, seed: int
) -> None:
    """By turns with a synchronous standby and one that lags; the primary is frozen or killed.

    It comes back as it was, and still takes writes. Now and then a term has begun of which the
    standby knows nothing, so that its number is given out again.
    """
    chance = Random(seed)
    is_synchronous, freezes = seed % 2 == 0, (seed // 2 + seed) % 2 == 0
    loses_term = seed % 4 == 3
    if is_synchronous:
        servers.commit_synchronously()
    with running(servers.url, redis_url, tmp_path) as stack:
        with Keeper(stack, "sequencer", "sequencer") as sequencers:
            stack.built()
            with stack.connection() as connection:
                found = durability(connection).commits
            assert found == (Commits.SYNCHRONOUS if is_synchronous else Commits.ASYNCHRONOUS)
            with Agents(stack, AGENTS) as agents:
                worked(agents, chance.randrange(AGENTS, AGENTS * 25))
                if not is_synchronous:
                    servers.cut()
                    if loses_term:
                        begin_a_term(stack)
                    worked(agents, chance.randrange(1, AGENTS * 5))
                at = time.monotonic()
                if freezes:
                    servers.primary.freeze()
                else:
                    servers.primary.kill()
                promoted = servers.promote()
                wait_until(lambda: agents.answered[-1][0] > promoted + 0.5, "answers", seconds=60)
                gap = longest_gap([moment for moment, *_ in agents.answered if moment > at - 1])
                if freezes:
                    servers.primary.thaw()
                else:
                    servers.primary.start()
                sequencers.kill_one()
                wait_until(lambda: not servers.primary.run(IN_USE), "the old primary to be left")
                worked(agents, AGENTS * 3)
                wait_until(lambda: not servers.primary.run(IN_USE), "nobody to go back to it")
        stack.engine.dispose()
        gone = agents.told.keys() - {UUID(str(each)) for (each,) in stack.rows(ASSIGNMENTS)}
        print(
            f"seed {seed}: {'synchronous' if is_synchronous else 'asynchronous'}"
            f" {'frozen' if freezes else 'killed'}: {gap:.1f} s without an answer,"
            f" {len(agents.told)} assignments, {len(gone)} lost"
        )
        assert gap < WITHIN_SECONDS
        assert not (is_synchronous and gone)
        named = {each.assignment_id for each in named_as_lost(servers, stack)}
        assert gone <= named
        assert not named & agents.told.keys() - gone, "nothing is named that is there"
        for each in agents.unanswered:
            assert isinstance(each, Unavailable) or is_plain(each, gone), each
        assert stack.rows(BEGUN_TWICE) == []
        assert_healthy(stack, moved_back=loses_term)


def worked(agents: Agents, count: int) -> None:
    """So many more answers have come."""
    seen = len(agents.answered)
    wait_until(lambda: len(agents.answered) >= seen + count, f"{count} answers", seconds=60)


def assert_healthy(stack: Stack, *, moved_back: bool) -> None:
    """Nothing is wrong, but perhaps that a term was begun in both histories, which is named."""
    if not moved_back:
        stack.assert_healthy()
        return
    with stack.connection() as connection:
        broken = [each.check for each in examine(connection, loaded()) if not each.ok]
    assert broken == [MOVED_BACK]


def begin_a_term(stack: Stack) -> None:
    """Kill the leader, and wait until another leads and there is a standby again."""
    ((pid, term),) = stack.rows("SELECT leader_pid, term FROM assignment.sequencer")
    os.kill(pid, signal.SIGKILL)
    stack.wait_for_leader(after=term)
    wait_until(lambda: stack.value(SEQUENCERS) == 2, "a standby")


def longest_gap(moments: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(moments))


def named_as_lost(servers: Replicas, stack: Stack) -> list[LostEvent]:
    """What the comparison of both servers names."""
    old = connect(
        servers.primary.prepared.url, name="test", statement_timeout=timedelta(seconds=60)
    )
    try:
        with old.connect() as there, stack.connection() as here:
            return [each for each in lost(there, here) if each.kind == "assigned"]
    finally:
        old.dispose()


def is_plain(answer: object, gone: set[UUID]) -> bool:
    """An agent was told in words that the assignment is gone, and it is."""
    return (
        isinstance(answer, Refused)
        and answer.code == Code.UNKNOWN_ASSIGNMENT
        and "lost it" in answer.reason
        and any(str(each) in answer.reason for each in gone)
    )
