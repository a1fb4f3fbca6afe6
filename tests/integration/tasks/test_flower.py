"""What Flower is told: Celery's events of the tasks that matter to an operator, and no probes."""

from __future__ import annotations

import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from assignment_workers.client import Assigned
from assignment_workers.settings import Settings
from assignment_workers.tasks import create_app
from assignment_workers.tasks.process import FLOWER_COLUMNS
from tests.support.celery_programs import ended
from tests.support.processes import Stack, running, wait_until
from tests.support.root import ROOT
from tests.support.servers import free_port


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


def test_flower_is_told_of_requests_and_not_of_probes(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    told: list[str] = []
    with (
        ended(Celery(broker=stack.redis_url, set_as_current=False)) as app,
        app.connection_for_read() as connection,
    ):
        receiver = app.events.Receiver(connection, handlers={"*": _keeper(told)})
        listening = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        listening.start()
        probed = "SELECT last_probe_at FROM assignment.sequencer_signs"
        wait_until(lambda: "worker-heartbeat" in told, "the first event")
        before = stack.value(probed)
        wait_until(lambda: stack.value(probed) > before, "another probe")
        assert isinstance(client.request_next(26), Assigned)
        wait_until(lambda: "assignment.request_many" in told, "the request's event")
        client.send_again("assignment.expire", (), {}, "assignment")
        assert isinstance(client.request_next(27), Assigned)
        wait_until(lambda: told.count("assignment.request_many") == 2, "the next request's event")
        assert "assignment.expire" not in told, "it had nothing to do"
        with stack.engine.begin() as connection_of_database:
            connection_of_database.exec_driver_sql(
                "UPDATE assignment.assignments SET claimed_at = now() - interval '1 h',"
                " lease_expires_at = now() - interval '1 s'"
            )
        client.send_again("assignment.expire", (), {}, "assignment")
        wait_until(lambda: "assignment.expire" in told, "the event of a run that did something")
        receiver.should_stop = True
        listening.join(10)
    assert "assignment.probe" not in told


def test_flower_and_the_log_are_told_what_is_allowed_whoever_sent_it(stack: Stack) -> None:
    sequencer = stack.start("sequencer")
    client = stack.built()
    received: list[dict[str, Any]] = []
    with (
        ended(Celery(broker=stack.redis_url, set_as_current=False)) as app,
        app.connection_for_read() as connection,
    ):
        app.conf.task_send_sent_event = False
        receiver = app.events.Receiver(connection, handlers={"*": received.append})
        listening = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        listening.start()

        def seen(task: str, count: int) -> list[dict[str, Any]]:
            return [each for each in received if each.get("name") == task][count - 1 :]

        answer = client.request_next(26)
        assert isinstance(answer, Assigned)
        held = answer.assignment
        client.complete(held.id, 26, "no_answer", notes="SECRET", version=held.version)
        by_position = [str(held.id), 26, "no_answer", None, "SECRET"]
        said: dict[str, Any] = {"shadow": "SECRET", "argsrepr": "SECRET", "kwargsrepr": "SECRET"}
        app.send_task("assignment.complete", by_position, queue="assignment", **said)
        for task, given in TEXTS.items():
            named = {"assignment_id": str(held.id), "agent_id": 26, "agent": 26}
            wanted = {name: named[name] for name in named if task in HAS.get(name, ())}
            app.send_task(task, [], wanted | given, queue="assignment", **said)
        app.send_task("assignment.no_such", ["SECRET"], {"notes": "SECRET"}, queue="assignment")
        client.state(26, "break", why="SECRET")
        with stack.engine.begin() as connection_of_database:
            connection_of_database.exec_driver_sql(FAIL)
        failing = {"user_id": 5, "reason": "SECRET", "by": "SECRET"}
        app.send_task("user.suppress", [], failing, queue="assignment")
        for task in TEXTS:
            wait_until(partial(seen, task, 1), f"the event of {task}")
        wait_until(lambda: [e for e in received if e["type"] == "task-failed"], "the failure")
        assert str(held.id) in str(seen("assignment.complete", 1)[0])
        receiver.should_stop = True
        listening.join(10)
    assert "SECRET" not in str(received)
    assert "SECRET" not in sequencer.said()
    assert "task_failed" in sequencer.said()
    with redis.Redis.from_url(stack.redis_url) as server:
        failed = [server.get(key) or b"" for key in server.keys("celery-task-meta-*")]
    assert any(b"TaskFailed" in each for each in failed)
    assert not any(b"SECRET" in each for each in failed if b"FAILURE" in each)


TEXTS: dict[str, dict[str, Any]] = {
    "assignment.defer": {"why": "SECRET-1", "seconds": 60},
    "assignment.close": {"why": "SECRET-1"},
    "agent.state": {"state": "available", "why": "SECRET-1", "by": "SECRET-1"},
    "user.suppress": {"phone": "+44 SECRET", "reason": "SECRET-1", "by": "SECRET-1"},
    "user.lift_suppression": {"kind": "closed", "user_id": 5, "by": "SECRET-1", "why": "SECRET-1"},
    "queue.pause": {"queue": "SECRET-1", "by": "SECRET-1", "why": "SECRET-1"},
    "assignment.complete": {"outcome": "SECRET-1", "notes": "SECRET-1"},
}
"""Tasks that take words, each with one in every place."""
HAS = {
    "assignment_id": {"assignment.defer", "assignment.close", "assignment.complete"},
    "agent_id": {"assignment.defer", "assignment.close", "assignment.complete", "agent.state"},
}
FAIL = """
CREATE FUNCTION assignment.fail() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
RAISE EXCEPTION 'the row was %%', NEW.reason USING ERRCODE = 'data_exception'; END $f$;
CREATE TRIGGER fail BEFORE INSERT ON assignment.suppressions FOR EACH ROW WHEN (NEW.user_id = 5)
EXECUTE FUNCTION assignment.fail()
"""
"""A failure whose message repeats the row, as those of a database do."""


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
    page = (ROOT / "docs" / "flower.md").read_text()
    app = create_app(Settings.from_environment({"REDIS_URL": "redis://127.0.0.1:1"}))
    named = set(re.findall(r"`((?:assignment|generation|queue|doctor|scores)\.\w+)`", page))
    assert len(named) > 8
    assert named <= set(app.tasks)


def _keeper(told: list[str]) -> Any:
    def keep(event: dict[str, Any]) -> None:
        told.append(event.get("name") or event["type"])

    return keep
