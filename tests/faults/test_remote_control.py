"""Celery's remote control: each command of its registry against each process, on both brokers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.worker.control import Panel

from assignment_workers.client import Assigned
from assignment_workers.sequencer.remote_control import OBSERVING
from tests.support.celery_programs import celery_program
from tests.support.poison import FORMS, deep, envelope, publish, push
from tests.support.processes import Stack, running, wait_until

ARGUMENTS: dict[str, dict[str, Any]] = {
    "add_consumer": {"queue": "assignment"},
    "cancel_consumer": {"queue": "assignment"},
    "rate_limit": {"task_name": "assignment.request_many", "rate_limit": "1/h"},
    "time_limit": {"task_name": "assignment.request_many", "hard": 0.001, "soft": 0.001},
    "query_task": {"ids": ["unknown"]},
    "revoke": {"task_id": "not-sent-yet"},
    "terminate": {"signal": "KILL", "task_id": "not-sent-yet"},
    "revoke_by_stamped_headers": {"headers": {"a": ["b"]}, "terminate": True},
    "hello": {"from_node": "another", "revoked": ["all-of-them"]},
    "election": {"id": "1", "topic": "t", "action": "shutdown"},
}
SILENT = {"heartbeat"}
"""Commands that observe and answer nothing."""


@pytest.fixture(params=["redis", "rabbitmq"])
def stack(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, tmp_path: Path
) -> Iterator[Stack]:
    with ExitStack() as keep:
        made = keep.enter_context(running(database_url, redis_url, tmp_path))
        if request.param == "rabbitmq":
            rabbit = request.getfixturevalue("rabbit")
            made.broker_url = rabbit.url
            keep.enter_context(rabbit.queues())
        yield made


def celery(stack: Stack) -> Any:
    return celery_program(stack.broker_url or stack.redis_url, stack.redis_url)


def replies(app: Celery, command: str, arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """What each worker answers."""
    found: Any = app.control.broadcast(
        command, arguments=arguments, reply=True, limit=count, timeout=20
    )
    return {name: said for each in found for name, said in each.items()}


def asked_alone(stack: Stack, command: str) -> dict[str, Any]:
    """What each of three workers answers to a program of its own."""
    with celery(stack) as app:
        return replies(app, command, ARGUMENTS.get(command, {}), 3)


def test_each_command_is_answered_or_refused_by_each_process_and_changes_none(
    stack: Stack,
) -> None:
    stack.start("sequencer")
    client = stack.built()
    standby = stack.start("sequencer")
    wait_until(lambda: "standing_by" in standby.said(), "the second to stand by")
    with celery(stack) as app:
        wait_until(lambda: len(replies(app, "ping", {}, 3)) == 3, "three workers")
        before = replies(app, "active_queues", {}, 3)
        commands = sorted(Panel.data)
        if stack.broker_url is None and "EVERY_ROW" not in os.environ:
            commands = commands[4::5]  # over Redis a worker reads one in a second
        with ThreadPoolExecutor(6) as pool:
            asked = {command: pool.submit(asked_alone, stack, command) for command in commands}
        for command, future in asked.items():
            answers = future.result()
            assert len(answers) == 3, f"{command}: {answers}"
            for answer in answers.values():
                if command in OBSERVING | {"revoke"}:
                    assert "error" not in (answer or {}), f"{command}: {answer}"
                    assert answer is not None or command in SILENT
                else:
                    assert command in answer["error"], command
                    assert "is refused" in answer["error"]
        assert replies(app, "active_queues", {}, 3) == before
        assert isinstance(client.request_next(26), Assigned)
        stack.regenerate(client)
    assert all(each.popen.poll() is None for each in stack.started)
    stack.assert_healthy()


def test_a_task_that_waits_is_revoked_and_its_caller_told(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    send = publish if stack.broker_url else push
    sent = [envelope(kwargs={"agent_id": agent}) for agent in (30, 31)]
    with celery(stack) as app:
        first, second = (app.AsyncResult(each["headers"]["id"]) for each in sent)
        said = {"task_id": [second.id], "terminate": True}
        wait_until(lambda: len(replies(app, "ping", {}, 2)) == 2, "both workers")
        assert len(replies(app, "revoke", said, 2)) == 2, "both workers know"
        assert second.state == "PENDING", "who comes to it tells, and nobody before"
        for each in sent:
            send(stack, "assignment", each)
        assert "revoked" in str(second.get(timeout=20, propagate=False))
        assert first.get(timeout=20)["outcome"] == "assigned"
    assert isinstance(client.request_next(26), Assigned)
    assert stack.value("SELECT count(*) FROM assignment.assignments WHERE agent_id = 31") == 0


def test_a_broadcast_that_cannot_be_read_changes_nothing(stack: Stack) -> None:
    sequencer = stack.start("sequencer")
    client = stack.built()
    calls: list[Any] = [
        *({}, [], "x", 7, None, {"method": ["x"]}, {"method": "no_such_command"}),
        {"method": "ping", "destination": 7},
        {"method": "ping", "pattern": "(a+)+$", "matcher": "pcre"},
        {"method": "ping", "arguments": ["x"]},
        {"method": "ping", "arguments": {"state": "x"}},
        {"method": "query_task", "arguments": {"ids": {"a": [1]}}},
        {"method": "revoke", "arguments": {"task_id": [["x"]]}},
        {"method": "ping", "reply_to": {"exchange": "", "routing_key": "assignment"}},
        {"method": "ping", "reply_to": "x", "ticket": "y"},
    ]
    with celery(stack) as app, app.connection_for_write() as connection:
        wait_until(lambda: len(replies(app, "ping", {}, 2)) == 2, "both workers")
        producer = connection.Producer()
        control: Any = app.control
        for call in calls:
            producer.publish(
                call,
                exchange=control.mailbox.exchange,
                serializer="json",
                headers={"clock": "never"},
            )
        if stack.broker_url is None:
            with redis.Redis.from_url(stack.redis_url) as broker:
                number = broker.connection_pool.connection_kwargs["db"]
                sent = [b"{", b"[]", b"{}", b'{"properties": {}}', deep(5_000), b"\xff", b"7"]
                sent += [json.dumps(form(envelope())).encode() for form in FORMS.values()]
                for each in sent:
                    broker.publish(f"/{number}.celery.pidbox", each)
        assert isinstance(client.request_next(27), Assigned)
        assert len(replies(app, "ping", {}, 2)) == 2
    assert sequencer.popen.poll() is None
    assert "Unrecoverable" not in sequencer.said()
    assert stack.value("SELECT count(*) FROM assignment.dead_letters") == 0


def test_a_maintenance_worker_that_is_given_a_task_of_the_line_gives_it_back(
    stack: Stack,
) -> None:
    stack.start("sequencer")
    stack.built()
    sent = envelope(kwargs={"agent_id": 33})
    (publish if stack.broker_url else push)(stack, "maintenance", sent)
    with celery(stack) as app:
        answer = app.AsyncResult(sent["headers"]["id"]).get(timeout=20)
    assert answer["outcome"] == "assigned"
    assert stack.value("SELECT count(*) FROM assignment.dead_letters") == 0
