"""Nothing is acknowledged before it is kept: the table of dead letters cannot be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from assignment_workers.client import Assigned
from tests.support.poison import Envelope, changed, envelope, publish, push
from tests.support.processes import Stack, running, wait_until

COUNT = "SELECT count(*) FROM assignment.dead_letters"


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


@contextmanager
def unwritable(stack: Stack) -> Iterator[None]:
    """Within: nothing can be written to the table of dead letters."""
    with stack.engine.begin() as connection:
        connection.execute(text("ALTER TABLE assignment.dead_letters RENAME TO dead_letters_away"))
    yield
    with stack.engine.begin() as connection:
        connection.execute(text("ALTER TABLE assignment.dead_letters_away RENAME TO dead_letters"))


def messages(task: str, kwargs: dict[str, Any]) -> list[Envelope]:
    """What cannot be handled: of no form, of no task, and one that its task refuses."""
    return [
        envelope("no.such_task"),
        envelope(task) | {"headers": {"task": task}},
        envelope(task) | {"content-type": "application/x-python-serialize"},
        envelope(task, kwargs),
    ]


@pytest.mark.parametrize("queue", ["assignment", "maintenance", "heartbeats"])
def test_what_cannot_be_handled_stays_with_the_broker_until_its_dead_letter_is_written(
    stack: Stack, queue: str
) -> None:
    sequencer = stack.start("sequencer")
    client = stack.built()
    task = "queue.pause" if queue == "assignment" else "agent.heartbeats"
    sent = messages(task, {"no_such_argument": 1})
    if stack.broker_url is None:  # our channel of Redis refuses it, before Celery has a message
        sent.append(changed("properties", "body_encoding", to=["base64"])(envelope(task)))
    send = publish if stack.broker_url else push
    with unwritable(stack):
        for each in sent:
            send(stack, queue, each)
        wait_until(
            lambda: any("dead_letter_not_stored" in each.said() for each in stack.started),
            "a dead letter that could not be stored",
        )
        if stack.broker_url is None:  # RabbitMQ sends the next one when this one is stored
            assert isinstance(client.request_next(26), Assigned), "those behind are served"
            stack.regenerate(client)
            if queue == "assignment":
                # Another takes over, and finds them where they were.
                sequencer.popen.kill()
                sequencer.popen.wait()
                term = stack.term()
                stack.start("sequencer")
                stack.wait_for_leader(after=term)
    wait_until(lambda: stack.value(COUNT) == len(sent), "each to be a dead letter")
    assert isinstance(client.request_next(27), Assigned)
    with redis.Redis.from_url(stack.redis_url) as broker:
        names: Any = broker.keys("*")
        lists = [name for name in names if broker.type(name) == b"list"]
        waiting = [json.loads(each) for name in lists for each in broker.lrange(name, 0, -1)]
    left = [
        each for each in waiting if each.get("headers", {}).get("task") in {task, "no.such_task"}
    ]
    assert left == []
    assert stack.value(COUNT) == len(sent), "each once"
