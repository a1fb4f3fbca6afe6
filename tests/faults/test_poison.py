"""Nothing that arrives stops the line: malformed messages before real requests, real workers."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest
import redis
from kombu import Connection

from assignment_workers.client import Assigned
from tests.support.poison import FORMS, TRUE, Envelope, envelope, publish, push
from tests.support.processes import Process, Stack, running, wait_until
from tests.support.servers import Rabbit

LETTERS = "SELECT id, celery_queue, task_id, body, error FROM assignment.dead_letters ORDER BY id"


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


def answer_of(stack: Stack, message: Envelope) -> Any:
    """The answer that was left for a message, by the id in its correlation."""
    with redis.Redis.from_url(stack.redis_url) as results:
        found = results.get(f"celery-task-meta-{message['properties']['correlation_id']}")
    return json.loads(found)["result"] if found else None


def each_is_a_dead_letter(stack: Stack, queue: str, sent: dict[str, Envelope]) -> None:
    letters = wait_until(
        lambda: found if len(found := stack.rows(LETTERS)) >= len(sent) else None,
        f"{len(sent)} dead letters",
    )
    assert len(letters) == len(sent)
    for (name, message), letter in zip(sent.items(), letters, strict=True):
        assert letter.celery_queue == queue, name
        assert letter.error.startswith("malformed: "), name
        assert letter.error.isprintable(), name
        if letter.task_id is not None:
            assert answer_of(stack, message)["outcome"] == "refused", name


def test_each_malformed_form_is_a_dead_letter_and_the_request_behind_it_is_served(
    stack: Stack,
) -> None:
    sequencer = stack.start("sequencer")
    client = stack.built()
    sent = {name: form(envelope()) for name, form in FORMS.items()}
    for message in sent.values():
        push(stack, "assignment", message)
    assert isinstance(client.request_next(27), Assigned)
    each_is_a_dead_letter(stack, "assignment", sent)
    told = sum(answer_of(stack, message) is not None for message in sent.values())
    assert told > len(sent) / 2
    for letter, message in zip(stack.rows(LETTERS), sent.values(), strict=True):
        assert letter.body == json.dumps(message), "whole, as it was sent"
    with redis.Redis.from_url(stack.redis_url) as broker:
        left = ("assignment", "assignment.taken.*")
        wait_until(lambda: not any(map(broker.keys, left)), "the last acknowledgement")
    goes_on(sequencer)
    stack.assert_healthy()


def test_forms_that_differ_and_can_be_read_are_carried_out(stack: Stack) -> None:
    sequencer = stack.start("sequencer")
    stack.built()
    sent = {name: form(envelope()) for name, form in TRUE.items()}
    for message in [*sent.values()]:
        push(stack, "assignment", message)
    for name, message in sent.items():
        answer = wait_until(lambda m=message: answer_of(stack, m), f"an answer: {name}")  # type: ignore[misc]
        assert answer["outcome"] == "assigned", name
    assert stack.rows(LETTERS) == []
    goes_on(sequencer)


def test_the_maintenance_worker_stores_each_malformed_form_and_goes_on(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    (maintenance,) = (each for each in stack.started if each.name == "maintenance")
    sent = {
        name: form(envelope("generation.tend", {}, queue="maintenance"))
        for name, form in FORMS.items()
    }
    for message in sent.values():
        push(stack, "maintenance", message)
    stack.regenerate(client)
    each_is_a_dead_letter(stack, "maintenance", sent)
    goes_on(maintenance)


def test_on_rabbitmq_each_malformed_form_is_a_dead_letter_too(stack: Stack, rabbit: Rabbit) -> None:
    stack.broker_url = rabbit.url
    with rabbit.queues():
        sequencer = stack.start("sequencer")
        client = stack.built()
        (maintenance,) = (each for each in stack.started if each.name == "maintenance")
        for queue, task in (("assignment", "assignment.request"), ("maintenance", "agent.tend")):
            before = len(stack.rows(LETTERS))
            sent = {}
            for name, form in FORMS.items():
                message = form(envelope(task, queue=queue))
                if can_be_said(message):
                    publish(stack, queue, message)
                    sent[name] = message
            assert len(sent) > 20
            letters = wait_until(
                lambda b=before, s=sent: (  # type: ignore[misc]
                    found[b:] if len(found := stack.rows(LETTERS)) >= b + len(s) else None
                ),
                f"dead letters from {queue}",
            )
            assert len(letters) == len(sent)
            assert {each.celery_queue for each in letters} == {queue}
        assert isinstance(client.request_next(27), Assigned)
        for message in (form(envelope()) for form in TRUE.values()):
            publish(stack, "assignment", message)
            wait_until(lambda m=message: answer_of(stack, m), "an answer")  # type: ignore[misc]
        stack.regenerate(client)
        goes_on(sequencer)
        goes_on(maintenance)


def test_on_rabbitmq_properties_that_its_library_cannot_read_are_dead_letters(
    stack: Stack, rabbit: Rabbit
) -> None:
    stack.broker_url = rabbit.url
    with rabbit.queues():
        sequencer = stack.start("sequencer")
        client = stack.built()
        with Connection(rabbit.url, transport_options={"confirm_publish": True}) as connection:
            channel: Any = connection.channel()
            body = b"[[], {}, {}]"
            nested: Any = "x"
            for _ in range(3_000):
                nested = [nested]
            sys.setrecursionlimit(sys.getrecursionlimit() * 8)
            try:
                for properties in (
                    {"correlation_id": b"\xff"},
                    {"content_type": b"\xff"},
                    {"application_headers": {"nested": nested}},
                    {"application_headers": {"task": "assignment.request", "compression": "gzip"}},
                ):
                    sent = amqp.Message(body, **properties)
                    channel.basic_publish(sent, routing_key="assignment")
            finally:
                sys.setrecursionlimit(sys.getrecursionlimit() // 8)
        assert isinstance(client.request_next(27), Assigned)
        errors = [letter.error for letter in stack.rows(LETTERS)]
        assert ["not readable" in each for each in errors[:3]] == [True] * 3
        assert "compression" in errors[3]
        goes_on(sequencer)


def test_a_message_that_is_too_large_is_not_read(stack: Stack) -> None:
    sequencer = stack.start("sequencer")
    client = stack.built()
    large = json.dumps(envelope(kwargs={"agent_id": 26, "queue": "x" * 1_000_000})).encode()
    with redis.Redis.from_url(stack.redis_url) as broker:
        broker.lpush("assignment", large)
    assert isinstance(client.request_next(27), Assigned)
    (letter,) = stack.rows(LETTERS)
    assert letter.body.encode() == large[:1024]
    assert f"{len(large)} bytes" in letter.error
    assert hashlib.sha256(large).hexdigest() in letter.error
    goes_on(sequencer)


def can_be_said(message: Envelope) -> bool:
    """Whether AMQP has words for it that a client would send."""
    try:
        json.dumps(message["headers"]).encode()
        assert isinstance(message["headers"], dict)
        assert isinstance(message.get("body") or "", str)
        assert isinstance(message["properties"], dict)
        assert message["properties"].get("body_encoding") in ("base64", None)
        assert "\\ud800" not in json.dumps(message["headers"])
        assert "[[[[" not in json.dumps(message["headers"])
        base64.b64decode((message.get("body") or "") + "==")
    except (AssertionError, ValueError, TypeError):
        return False
    # What is part of the envelope in Redis is the broker's own here.
    true = envelope()["properties"]
    return all(
        isinstance(message["properties"][name], type(true[name]))
        for name in ("delivery_info", "delivery_tag")
    )


def goes_on(process: Process) -> None:
    """It is the process that was started, and has neither ended nor begun again."""
    assert process.popen.poll() is None
    assert "Unrecoverable" not in process.said()
    assert "restarts" not in process.said()
