"""Two lanes at full speed on the same agents and users, while everything behind them is rebuilt."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from assignment_workers.assignment.answers import Assigned
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations.pause import pause, resume
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.lifecycle.expire import expire
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete, Owner, Release, Renew, Skip
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.engine import connect
from assignment_workers.sequencer.term import Candidacy
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from tests.support.processes import Agents, running, wait_until
from tests.support.world import OUTSTANDING, UNSIGNED, World, opened, outstanding

SECONDS = 4.0
LEASE = timedelta(seconds=1)
AGENTS = 10
USERS = 60
OTHER = "outstanding"
SETTING = f"{OTHER}={OUTSTANDING}"
SETTINGS = Settings.from_environment(
    {
        "ASSIGNMENT_WORKERS_LANES": SETTING,
        "ASSIGNMENT_WORKERS_LEASE_SECONDS": str(LEASE.total_seconds()),
        "ASSIGNMENT_WORKERS_SKIP_EVERYONE_SECONDS": "0.5",
        "ASSIGNMENT_WORKERS_SKIP_AGENT_SECONDS": "1",
    }
)
LANES = lanes_of(SETTINGS)
TURNED = """
WITH turned AS (
  UPDATE public.user_call_scores SET
    current_queue_type = CASE current_queue_type WHEN 'unsigned_users' THEN 'outstanding_requests'
      ELSE 'unsigned_users' END, next_call_after = NULL
  WHERE user_id = :user RETURNING user_id, current_queue_type
)
UPDATE crm.users SET current_signature_file_id =
  CASE WHEN current_queue_type = 'unsigned_users' THEN NULL ELSE 'file' END
FROM turned WHERE id = turned.user_id
"""
LEASES_THAT_RUN = (
    "SELECT count(*) FROM assignment.assignments"
    " WHERE state = 'active' AND lease_expires_at > clock_timestamp()"
)
ALL_HAPPENED = """
SELECT count(*) FILTER (WHERE queue = 'unsigned_users') > 20
  AND count(*) FILTER (WHERE queue = 'outstanding_requests') > 20
  AND count(DISTINCT user_id) FILTER (WHERE queue = 'unsigned_users' AND user_id IN (
    SELECT user_id FROM assignment.assignments WHERE queue = 'outstanding_requests')) > 5
  AND (SELECT count(*) > 5 FROM assignment.events WHERE kind = 'generation_published')
FROM assignment.assignments
"""


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with opened(database_url) as made:
        yield made


@pytest.mark.timeout(120)
def test_turns_of_two_lanes_side_by_side_break_no_guarantee(
    world: World, database_url: str
) -> None:
    """Whichever lane a message comes to, and whoever stands in both dialer queues."""
    engine = connect(
        database_url, name="lanes", statement_timeout=timedelta(seconds=20), pool_size=AGENTS + 4
    )
    world.settings = SETTINGS
    world.add_agents(*range(1, AGENTS + 1))
    world.add_users([outstanding(each, each % 7) for each in range(1, USERS + 1)])
    with (
        closing(Candidacy(database_url, dialer=loaded(), lanes=LANES)) as first,
        closing(Candidacy(database_url, dialer=loaded(), lane=OTHER, lanes=LANES)) as second,
    ):
        lines = []
        for each in (first, second):
            term = each.try_to_lead()
            assert term is not None
            lines.append(
                TransactionRunner(
                    engine,
                    dialer=loaded(),
                    term=term.number,
                    term_id=term.id,
                    lane=each.lane,
                    lanes=LANES,
                )
            )
        for queue in (UNSIGNED, OUTSTANDING):
            number = world.build(queue)
            lines[0].run(partial(publish, number=number))
        begun = time.monotonic()
        over = threading.Event()
        failed: list[BaseException] = []
        threads = [
            threading.Thread(target=_noticed, args=(failed, work, seed, over))
            for seed, work in enumerate(
                [
                    *(partial(_work, world, lines, agent) for agent in range(1, AGENTS + 1)),
                    partial(_rebuild, world, lines),
                    partial(_turn_users, world),
                    partial(_stop_and_go, lines),
                ]
            )
        ]
        for thread in threads:
            thread.start()
        try:
            wait_until(
                lambda: failed or (time.monotonic() > begun + SECONDS and _all_happened(world)),
                "users handed out of both dialer queues, some from both, and publications",
            )
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        assert failed == []
        wait_until(lambda: not world.value(LEASES_THAT_RUN), "every lease to have lapsed")
        for line in lines:
            line.run(partial(expire, settings=SETTINGS))
    engine.dispose()
    with world.engine.connect() as connection:
        assert (
            check(connection, dialer=loaded(), settings=SETTINGS, bound=timedelta(seconds=30)) == []
        )
    with world.engine.connect() as connection:
        assert [each for each in examine(connection, loaded()) if not each.ok] == []


def _all_happened(world: World) -> bool:
    """Both lanes handed out enough to mean something, some users from both, between rebuilds."""
    return bool(world.value(ALL_HAPPENED))


def _noticed(
    failed: list[BaseException],
    work: Callable[[random.Random, threading.Event], None],
    seed: int,
    over: threading.Event,
) -> None:
    try:
        work(random.Random(seed), over)
    except BaseException as error:
        failed.append(error)
        raise


def _work(
    world: World,
    lines: list[TransactionRunner],
    agent: int,
    chance: random.Random,
    over: threading.Event,
) -> None:
    """Ask and finish, at either lane; now and then the same request goes to both at once."""
    number = 0
    while not over.is_set():
        number += 1
        queue = chance.choice((UNSIGNED, OUTSTANDING, None))
        request = ClaimRequest(agent, f"{agent}-{number}", queue)
        copies = [
            threading.Thread(target=_ask, args=(world, line, request))
            for line in (lines if chance.random() < 0.1 else ())
        ]
        for copy in copies:
            copy.start()
        answer = _ask(world, chance.choice(lines), request)
        for copy in copies:
            copy.join(30)
        if isinstance(answer, Assigned) and answer.assignment.state == "active":
            owner = Owner(answer.assignment.id, agent, answer.assignment.version)
            move = chance.choice(
                (
                    Release(owner),
                    Skip(owner, SETTINGS.skip_everyone),
                    Complete(owner, "no_answer"),
                    Renew(owner, LEASE),
                    None,
                )
            )
            if move is not None:
                chance.choice(lines).run(partial(finish, moves=[move]))
        if chance.random() < 0.1:
            chance.choice(lines).run(partial(expire, settings=SETTINGS))


def _ask(world: World, runner: TransactionRunner, request: ClaimRequest) -> object:
    work = partial(claim, policies=world.policies, settings=SETTINGS)
    while True:
        (answer,) = runner.run(lambda transaction: work(transaction, [request]))
        if answer is not None:
            return answer


def _rebuild(
    world: World, lines: list[TransactionRunner], chance: random.Random, over: threading.Event
) -> None:
    while not over.is_set():
        number = world.build(chance.choice((UNSIGNED, OUTSTANDING)))
        chance.choice(lines).run(partial(publish, number=number))


def _turn_users(world: World, chance: random.Random, over: threading.Event) -> None:
    """Users sign, and their signatures turn out void: they belong to the other dialer queue."""
    while not over.is_set():
        with world.engine.begin() as connection:
            connection.execute(text(TURNED), {"user": chance.randint(1, USERS)})
        over.wait(0.005)


def _stop_and_go(
    lines: list[TransactionRunner], chance: random.Random, over: threading.Event
) -> None:
    while not over.is_set():
        over.wait(0.3)
        queue, line = chance.choice((UNSIGNED, OUTSTANDING)), chance.choice(lines)
        line.run(partial(pause, queue=queue))
        line.run(partial(resume, queue=queue))


@pytest.mark.timeout(120)
def test_one_lane_goes_on_while_anothers_sequencer_is_dead(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with running(database_url, redis_url, tmp_path) as stack:
        stack.seed(users=1000)
        stack.start("sequencer", lanes=SETTING)
        other = stack.start("sequencer", "--lane", OTHER, lanes=SETTING)
        stack.start("maintenance", lanes=SETTING)
        client = stack.client(LANES)
        wait_until(
            lambda: (
                stack.value(
                    "SELECT count(*) FROM assignment.sequencer NATURAL JOIN"
                    " assignment.sequencer_signs WHERE last_probe_at > since"
                )
                == 2
            ),
            "both lanes to be led",
        )
        stack.regenerate(client)
        with Agents(stack, 8, lanes=LANES, queues=(UNSIGNED, OUTSTANDING)) as agents:
            wait_until(lambda: len(agents.answered) > 50, "agents to be served by both")
            other.popen.kill()
            count = len(agents.answered)
            given = client.request_next(50, queue=UNSIGNED, timeout=timedelta(seconds=5))
            assert isinstance(given, Assigned)
            wait_until(lambda: len(agents.answered) > count + 20, "the other lane to go on")
            alone = client.request_next(51, queue=OUTSTANDING, timeout=timedelta(seconds=1))
            assert alone.outcome == "unavailable", "nobody serves its assignment queue"
            stack.start("sequencer", "--lane", OTHER, lanes=SETTING)
            found = client.request_next(52, queue=OUTSTANDING, timeout=timedelta(seconds=30))
            assert isinstance(found, Assigned)
        stack.assert_healthy(lanes=SETTING)
        taken = stack.rows("SELECT DISTINCT queue FROM assignment.assignments ORDER BY 1")
        assert [row[0] for row in taken] == [OUTSTANDING, UNSIGNED]
        assert stack.rows("SELECT task, error FROM assignment.dead_letters") == []
