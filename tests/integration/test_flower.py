"""What Flower is told: Celery's events of the tasks that matter to an operator, and no probes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from assignment_workers.client import Assigned
from assignment_workers.tasks.told import NOT_SHOWN, NOTED
from tests.processes import Stack, running, wait_until


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


def test_flower_is_told_of_requests_and_not_of_probes(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    told: list[str] = []
    app = Celery(broker=stack.redis_url, set_as_current=False)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": _keeper(told)})
        listening = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        listening.start()
        probed = "SELECT probed_at FROM assignment.sequencer"
        wait_until(lambda: "worker-heartbeat" in told, "the first event")
        before = stack.value(probed)
        wait_until(lambda: stack.value(probed) > before, "another probe")
        assert isinstance(client.request_next(26), Assigned)
        wait_until(lambda: "assignment.request_many" in told, "the request's event")
        receiver.should_stop = True
        listening.join(10)
    assert "assignment.probe" not in told


def test_flower_is_told_no_notes_whoever_sent_them(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    app = Celery(broker=stack.redis_url, set_as_current=False)
    app.conf.task_send_sent_event = False
    received: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-received": received.append})
        listening = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        listening.start()

        def seen(count: int) -> list[dict[str, Any]]:
            return [each for each in received if each["name"] in NOTED][count - 1 :]

        answer = client.request_next(26)
        assert isinstance(answer, Assigned)
        held = answer.assignment
        client.complete(held.id, 26, "no_answer", notes="SECRET", version=held.version)
        wait_until(lambda: seen(1), "the client's event")
        by_position = [str(held.id), 26, "no_answer", None, "SECRET"]
        by_name = dict(
            zip(
                ("assignment_id", "agent_id", "outcome", "version", "notes"),
                by_position,
                strict=True,
            )
        )
        app.send_task("assignment.complete", by_position, queue="assignment")
        app.send_task("assignment.complete", [], by_name, queue="assignment")
        wait_until(lambda: seen(3), "the other program's events")
        receiver.should_stop = True
        listening.join(10)
    assert "SECRET" not in str(received)
    assert str(held.id) in str(seen(1)[0])
    assert NOT_SHOWN in str(seen(2)[0])


def _keeper(told: list[str]) -> Any:
    def keep(event: dict[str, Any]) -> None:
        told.append(event.get("name") or event["type"])

    return keep
