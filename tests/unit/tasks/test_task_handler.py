"""The door of every task: what a message may say, and what becomes of one that says it wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from pydantic_core import to_json
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from assignment_workers.assignment.crm import mirror
from assignment_workers.client.wire.message import signature
from assignment_workers.errors import DatabaseUnavailable, TaskFailed
from assignment_workers.schema.tables import DeadLetter
from assignment_workers.sequencer.refusals import Refusals
from assignment_workers.sequencer.suspects import Suspects
from assignment_workers.settings import Settings
from assignment_workers.tasks.app import create_app
from assignment_workers.tasks.task_handler import TaskRun

ID = "019ab000-0000-7000-8000-000000000001"


@dataclass
class Door:
    """The tasks of an application, and the dead letters that they leave."""

    tasks: dict[str, Any]
    engine: Engine

    def call(self, task: str, /, *args: Any, **kwargs: Any) -> Any:
        """The task's answer to a message with these arguments, as JSON."""
        return json.loads(to_json(self.tasks[task](*args, **kwargs)))

    def letters(self) -> list[Any]:
        """Task, body and error of each dead letter."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT task, body, error FROM dead_letters"))
            return list(rows.all())


@pytest.fixture
def door() -> Iterator[Door]:
    """A door without servers: dead letters go to a table in memory, and nobody leads."""
    memory = create_engine("sqlite://", poolclass=StaticPool)

    def teach(connection: Any, _: Any) -> None:
        connection.create_function("clock_timestamp", 0, lambda: "2026-11-23 09:30:00")

    event.listen(memory, "connect", teach)
    columns = [column.name for column in DeadLetter.__table__.columns if column.name != "id"]
    with memory.begin() as connection:
        connection.execute(
            text(f"CREATE TABLE dead_letters (id INTEGER PRIMARY KEY, {', '.join(columns)})")
        )
    app = create_app(Settings.from_environment({"REDIS_URL": "redis://redis.example:6379/0"}))
    app.engine = memory.execution_options(schema_translate_map={"assignment": None})
    app.refusals = Refusals(app.engine, app.backend, largest=1_000_000)
    app.suspects = Suspects(app.engine, app.results)
    yield Door(dict(app.tasks), memory)
    memory.dispose()


REFUSED: list[tuple[str, str, tuple[Any, ...], dict[str, Any], str]] = [
    ("an unknown argument", "assignment.request", (26,), {"agent": 26}, "agent: "),
    ("its name on two lines", "assignment.request", (26,), {"a\nb": 1}, r"a\nb"),
    ("a name of the door's own", "assignment.request", (26,), {"self": 1}, "self: "),
    ("one argument too many", "assignment.expire", (1,), {}, "1: "),
    ("an argument said twice", "assignment.request", (26,), {"agent_id": 26}, "agent_id: "),
    ("no agent", "assignment.request", (), {}, "agent_id: "),
    ("an agent in words", "assignment.request", ("26",), {}, "agent_id: "),
    ("an agent that is a flag", "assignment.request", (True,), {}, "agent_id: "),
    ("agent 0", "assignment.request", (0,), {}, "agent_id: "),
    ("an agent beyond the column", "assignment.request", (2**31,), {}, "agent_id: "),
    ("a null in the queue", "assignment.request", (26, "a\0b"), {}, "queue: "),
    ("a queue too long", "assignment.request", (26, "q" * 201), {}, "queue: "),
    ("a queue that is a number", "assignment.request", (26, 7), {}, "queue: "),
    ("half a character", "assignment.request", (26, "\ud800"), {}, "queue: "),
    ("an empty request id", "assignment.request", (26,), {"request_id": ""}, "request_id: "),
    ("a null in it", "assignment.request", (26,), {"request_id": "\0"}, "request_id: "),
    ("no zone", "assignment.request", (26,), {"deadline": "2026-11-23T09:30:00"}, "deadline: "),
    ("no list", "assignment.request_many", ({"agent_id": 26},), {}, "requests: "),
    ("too many requests", "assignment.request_many", ([{}] * 1001,), {}, "requests: "),
    ("no assignment's id", "assignment.skip", ("019ab", 26), {}, "assignment_id: "),
    ("version 0", "assignment.release", (ID, 26, 0), {}, "version: "),
    ("no outcome", "assignment.complete", (ID, 26), {}, "outcome: "),
    ("a null in the notes", "assignment.complete", (ID, 26, "x"), {"notes": "\0"}, "notes: "),
    ("notes too long", "assignment.complete", (ID, 26, "x"), {"notes": "n" * 10_001}, "notes: "),
    ("a generation in words", "generation.publish", ("7",), {}, "generation_id: "),
    ("no dialer queue", "queue.pause", (), {}, "queue: "),
    ("a user in words", "queue.remove_converted", ("q", [1, "2"]), {}, "user_ids.1: "),
    ("no state of an agent", "agent.state", (2, "asleep"), {}, "state: "),
    ("an unknown trigger", "queue.regenerate", (None, "whim"), {}, "trigger: "),
]


@pytest.mark.parametrize(
    ("task", "args", "kwargs", "named"),
    [pytest.param(*case, id=what) for what, *case in REFUSED],
)
def test_a_wrong_message_is_refused_by_name_in_one_line_and_kept(
    door: Door, task: str, args: tuple[Any, ...], kwargs: dict[str, Any], named: str
) -> None:
    answer = door.call(task, *args, **kwargs)
    assert (answer["outcome"], answer["code"]) == ("refused", "malformed")
    reason = answer["reason"]
    assert named in reason
    assert reason.isprintable()
    assert "Value error" not in reason
    assert len(reason) < 300
    ((kept, body, error),) = door.letters()
    assert kept == task
    assert json.loads(body) == {"args": json.loads(json.dumps(args)), "kwargs": kwargs}
    assert error == f"refused: {reason}"


@pytest.mark.parametrize(
    ("task", "args"),
    [
        ("assignment.complete", (ID, 26, "x", None, ["SECRET"])),
        ("assignment.complete", (ID, 26, "x", None, "SECRET\0")),
        ("assignment.close", (ID, 26, ["SECRET"])),
        ("assignment.defer", (ID, 26, None, None, None, ["SECRET"])),
        ("user.suppress", (["SECRET"], 5, "operator", ["SECRET"])),
    ],
)
def test_a_refusal_does_not_repeat_what_somebody_typed(
    door: Door, task: str, args: tuple[Any, ...]
) -> None:
    assert "SECRET" not in str(door.call(task, *args))


@pytest.mark.parametrize("task", ["queue.regenerate", "queue.remove_converted"])
def test_an_unknown_dialer_queue_is_refused_with_those_that_there_are(
    door: Door, task: str
) -> None:
    users: tuple[list[int], ...] = ([],) if task == "queue.remove_converted" else ()
    assert door.call(task, "signed_users", *users) == {
        "outcome": "refused",
        "code": "unknown_queue",
        "reason": "no dialer queue 'signed_users'; there are unsigned_users, outstanding_requests",
        "retry_after": None,
    }
    assert door.letters() == []


TOKENS = ["token 0a12", None, "token stack"]


@pytest.mark.parametrize(
    ("senders", "key", "read"),
    [
        (TOKENS, "k" * 32, TOKENS),
        (TOKENS, None, ["unauthenticated: token 0a12", None, "unauthenticated: token stack"]),
        (TOKENS, "x" * 32, ["unauthenticated: token 0a12", None, "unauthenticated: token stack"]),
        (["Mr Smith, 07700 900123", 7, ["token 0a12"]], None, [None, None, None]),
        ("token 0a12", None, [None, None, None]),
        ({"0": "token 0a12"}, None, [None, None, None]),
        (["token 0a12"] * 1001, None, [None, None, None]),
        (None, None, [None, None, None]),
    ],
)
def test_a_sender_is_the_name_of_a_token_and_marked_unless_the_message_is_signed(
    door: Door, senders: Any, key: str | None, read: list[str | None]
) -> None:
    run = door.tasks["assignment.request_many"]
    run.app.settings = run.app.settings.model_copy(update={"command_key": "k" * 32})
    said: dict[str, Any] = {"requests": []}
    proof = key and signature(key, run.name, ID, [], said, senders=senders or ())
    run.push_request(id=ID, delivery_info={}, senders=senders, signature=proof)
    try:
        with pytest.raises(TaskFailed):  # nobody leads here
            run(**said)
        is_signed = run._is_signed((), said)
        made = TaskRun(run, run._read_senders(is_signed=is_signed))
        assert [made.sender(part) for part in range(3)] == read
        alone = replace(made, part=2)
        assert alone.sender() == read[2], "a request of a batch that is carried out alone"
    finally:
        run.pop_request()


def test_a_failure_that_nothing_mends_is_kept_and_told(door: Door) -> None:
    """Without a sequencer in the process the task cannot work: an error that nobody foresaw."""
    with pytest.raises(TaskFailed, match=r"^AttributeError$"):
        door.call("assignment.expire")
    ((kept, body, error),) = door.letters()
    assert (kept, json.loads(body)) == ("assignment.expire", {"args": [], "kwargs": {}})
    assert error.startswith("AttributeError: ")


@pytest.mark.parametrize(
    ("cause", "lost"),
    [
        (psycopg.OperationalError("consuming input failed: server closed the connection"), True),
        (psycopg.errors.AdminShutdown("terminating connection"), False),
        (psycopg.errors.DeadlockDetected("deadlock detected"), False),
        (psycopg.errors.DiskFull("no space left on device"), False),
    ],
)
def test_a_database_that_fails_for_a_moment_is_answered_and_no_dead_letter(
    cause: Exception, lost: bool, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise OperationalError("DELETE", {}, cause, connection_invalidated=lost)

    monkeypatch.setattr(mirror, "forget", fails)
    answer = door.call("crm.mirror")
    assert (answer["outcome"], answer["reason"]) == ("unavailable", DatabaseUnavailable.general)
    assert door.letters() == []
