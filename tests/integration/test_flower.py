"""What Flower is told: Celery's events of the tasks that matter to an operator, and no probes."""

from __future__ import annotations

import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from assignment_workers.client import Assigned
from assignment_workers.settings import Settings
from assignment_workers.tasks import create_app
from assignment_workers.tasks.process import FLOWER_COLUMNS
from assignment_workers.tasks.told import NOT_SHOWN, NOTED
from tests.gateway.stage import free_port
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


def test_flower_asks_for_the_login_and_lists_what_was_said_and_answered(stack: Stack) -> None:
    port = free_port()
    process = stack.start("flower", flower_port=str(port), flower_basic_auth="ann:hunter2")

    def get(login: str | None) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        given = (
            {}
            if login is None
            else {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        )
        try:
            connection.request("GET", "/tasks", headers=given)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            assert process.popen.poll() is None, process.said()
            return 0, ""
        finally:
            connection.close()

    wait_until(lambda: get(None)[0], "Flower to answer")
    assert get(None)[0] == get("ann:wrong")[0] == 401
    status, page = get("ann:hunter2")
    assert status == 200
    assert re.findall(r'data-column="(\w+)"', page) == FLOWER_COLUMNS.split(",")


def test_the_page_on_flower_names_tasks_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()
    app = create_app(Settings.from_environment({"REDIS_URL": "redis://127.0.0.1:1"}))
    named = set(re.findall(r"`((?:assignment|generation|queue|doctor|scores)\.\w+)`", page))
    assert len(named) > 8
    assert named <= set(app.tasks)


def _keeper(told: list[str]) -> Any:
    def keep(event: dict[str, Any]) -> None:
        told.append(event.get("name") or event["type"])

    return keep
