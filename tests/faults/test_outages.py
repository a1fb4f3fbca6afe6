"""Redis, PostgreSQL and the network fail under a busy call centre: callers are told, nothing breaks."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.transport import redis as kombu_redis
from sqlalchemy import text

from assignment_workers.client import Unavailable
from assignment_workers.client.wire.message import message
from assignment_workers.devstack import postgres, valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.runtime.home import Home
from assignment_workers.schema.migrate import upgrade
from assignment_workers.tasks.maintenance import send_publish
from tests.support.celery_programs import dialer_program
from tests.support.processes import Agents, Keeper, running, wait_until
from tests.support.servers import OwnServer, wire
from tests.support.sessions import END
from tests.support.world import UNSIGNED

NUMBERS = itertools.count(1)


@pytest.fixture
def own_valkey(test_home: Home, guardian: Guardian) -> Iterator[OwnServer]:
    directory = test_home.path / f"valkey-{next(NUMBERS)}"
    made = OwnServer(partial(valkey.prepare, fsync=False), directory, guardian)
    yield made
    made.stop()


@pytest.fixture
def own_postgres(test_home: Home, guardian: Guardian) -> Iterator[OwnServer]:
    directory = test_home.path / f"postgres-{next(NUMBERS)}"
    made = OwnServer(partial(postgres.prepare, fsync=False), directory, guardian)
    upgrade(made.url)
    yield made
    made.stop()


def served_again(agents: Agents, *, within: float) -> None:
    """Three different agents are answered from now on."""
    seen = len(agents.answered)
    wait_until(
        lambda: len({agent for _, agent, _ in agents.answered[seen:]}) >= 3,
        "answers after the outage",
        seconds=within,
    )


@pytest.mark.parametrize("keeps_its_data", [True, False])
def test_redis_is_killed_and_comes_back(
    own_valkey: OwnServer, database_url: str, tmp_path: Path, keeps_its_data: bool
) -> None:
    with running(database_url, own_valkey.url, tmp_path) as stack:
        with Keeper(stack, "sequencer", "sequencer"):
            stack.built()
            with Agents(stack, 16) as agents:
                served_again(agents, within=10)
                for _ in range(2):
                    own_valkey.kill()
                    if not keeps_its_data:
                        own_valkey.lose_data()
                    time.sleep(2)  # how long it is away
                    own_valkey.start()
                    served_again(agents, within=30)
        assert all(isinstance(each, Unavailable) for each in agents.unanswered)
        stack.assert_healthy()


def test_what_a_job_sends_while_redis_is_away_waits_until_it_is_back(own_valkey: OwnServer) -> None:
    """A job that had built for minutes would have failed, and its message been a dead letter."""
    with dialer_program(own_valkey.url) as app:
        send_publish(app, 1, UNSIGNED)  # over a connection that is there
        own_valkey.kill()
        coming_back = threading.Timer(3, own_valkey.start)
        coming_back.start()
        send_publish(app, 2, UNSIGNED)
        coming_back.join()
        with redis.Redis.from_url(own_valkey.url) as broker:
            newest = json.loads(broker.lrange("assignment", 0, 0)[0])
    assert json.loads(base64.b64decode(newest["body"]))[0] == [2]


def test_hazard_d8_every_database_connection_is_cut_each_second(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with running(database_url, redis_url, tmp_path) as stack:
        with Keeper(stack, "sequencer", "sequencer"):
            stack.built()
            with Agents(stack, 16) as agents:
                served_again(agents, within=10)
                for _ in range(5):
                    time.sleep(1)  # between one cut and the next
                    with stack.connection() as connection:
                        connection.execute(text(f"{END} AND backend_type = 'client backend'"))
                served_again(agents, within=30)
        assert all(isinstance(each, Unavailable) for each in agents.unanswered)
        stack.assert_healthy()


def test_hazard_b6_postgresql_is_away_for_ten_seconds(
    own_postgres: OwnServer, redis_url: str, tmp_path: Path
) -> None:
    with running(own_postgres.url, redis_url, tmp_path) as stack:
        with Keeper(stack, "sequencer", "sequencer"):
            stack.built()
            with Agents(stack, 16) as agents:
                served_again(agents, within=10)
                own_postgres.kill()
                time.sleep(10)  # how long it is away
                own_postgres.start()
                stack.engine.dispose()
                served_again(agents, within=30)
        assert all(isinstance(each, Unavailable) for each in agents.unanswered)
        stack.assert_healthy()


def test_a_leader_whose_broker_connection_is_a_black_hole_is_followed(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with running(database_url, redis_url, tmp_path) as stack, wire(redis_url) as leaders_wire:
        stack.redis_url = leaders_wire.url
        leader = stack.start("sequencer")
        term = stack.wait_for_leader()
        stack.redis_url = redis_url
        stack.start("sequencer")
        stack.built()
        with Agents(stack, 16) as agents:
            served_again(agents, within=10)
            leaders_wire.cut()
            at = time.monotonic()
            wait_until(lambda: stack.term() > term, "the standby to lead", seconds=15)
            served_again(agents, within=15 - (time.monotonic() - at))
        assert leader.popen.wait(20) != 0, "it knows that it is over"
        assert agents.unanswered == []
        stack.assert_healthy()


def test_hazard_b9_every_message_is_delivered_twice(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = kombu_redis.Channel._put

    def put_twice(self: Any, queue: str, message: Any, **options: Any) -> None:
        put(self, queue, message, **options)
        message["properties"]["delivery_tag"] += "-again"
        put(self, queue, message, **options)

    with running(database_url, redis_url, tmp_path) as stack:
        stack.start("sequencer")
        stack.built()
        monkeypatch.setattr(kombu_redis.Channel, "_put", put_twice)
        with Agents(stack, 16) as agents:
            wait_until(lambda: len(agents.answered) > 500, "500 answers")
        assert agents.unanswered == []
        asked = stack.value("SELECT count(*) FROM assignment.requests")
        made = stack.value("SELECT count(*) FROM assignment.assignments")
        assert asked == made >= 500
        stack.assert_healthy()


@pytest.mark.timeout(200)
def test_thousands_of_requests_that_waited_are_served_in_their_order(
    own_postgres: OwnServer, own_valkey: OwnServer, tmp_path: Path
) -> None:
    waiting = 2_000
    with running(own_postgres.url, own_valkey.url, tmp_path) as stack:
        first = stack.start("sequencer")
        stack.built(users=waiting + 2_000)
        with stack.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO agents (id, email, first_name, last_name, created_at, updated_at)"
                    " SELECT n, 'more' || n, 'A', n::text, now(), now()"
                    " FROM generate_series(101, :last) n"
                ),
                {"last": waiting},
            )
        first.stop()
        send(own_valkey.url, range(1, waiting + 1))
        own_valkey.kill()
        own_postgres.kill()
        own_valkey.start()
        own_postgres.start()
        stack.engine.dispose()
        stack.start("sequencer")
        sql = "SELECT count(*) FROM assignment.assignments"
        wait_until(lambda: stack.value(sql) == waiting, "every request to be met", seconds=120)
        order = [
            int(row.request_id)
            for row in stack.rows(
                "SELECT request_id FROM assignment.events WHERE kind = 'assigned' ORDER BY id"
            )
        ]
        assert order == list(range(1, waiting + 1))
        stack.assert_healthy()


def send(redis_url: str, agents: Iterable[int]) -> None:
    """Each agent asks, in this order; nobody waits for the answers."""
    with redis.Redis.from_url(redis_url) as broker, broker.pipeline(transaction=False) as pipe:
        for number in agents:
            said = {"agent_id": number, "queue": "unsigned_users", "request_id": str(number)}
            task = "assignment.request"
            data = message(
                task, [], said, task_id=str(number), celery_queue="assignment", expires=None
            )
            pipe.lpush("assignment", json.dumps(data))
        pipe.execute()
