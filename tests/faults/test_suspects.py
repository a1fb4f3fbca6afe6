"""A message that ends the process that handles it ends two of them, on either broker."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from sqlalchemy import text

from assignment_workers.client import Assigned
from assignment_workers.errors import DatabaseUnavailable
from assignment_workers.schema.engine import connect
from assignment_workers.sequencer.suspects import Suspects
from tests.faults.test_full import full
from tests.support.killed import POISON
from tests.support.poison import envelope, publish, push
from tests.support.processes import Keeper, Process, Stack, running, wait_until
from tests.support.root import ROOT
from tests.support.servers import OwnServer, Wire, wire

LETTERS = "SELECT task, task_id, body, error, replayable FROM assignment.dead_letters ORDER BY id"
SUSPECTS = "SELECT ends, parts FROM assignment.suspect_messages"
KILL = "tests.support.killed:kill_at_poison"
CONNECT_SECONDS = 5.0
CONFIG = ROOT / "celeryconfig.py"


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def served(
    request: pytest.FixtureRequest,
    module_database_url: str,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Stack, Wire]]:
    """A built stack without a sequencer, and the wire between its workers and their broker."""
    address = f"{valkey_server.rpartition('/')[0]}/{6 if request.param == 'redis' else 7}"
    with ExitStack() as keep:
        with redis.Redis.from_url(address) as results:
            results.flushdb()
        folder = tmp_path_factory.mktemp("suspects")
        made = keep.enter_context(running(module_database_url, address, folder))
        if request.param == "rabbitmq":
            rabbit = request.getfixturevalue("rabbit")
            keep.enter_context(rabbit.queues())
            line = keep.enter_context(wire(rabbit.url))
            made.broker_url = line.url
        else:
            line = keep.enter_context(wire(address))
            made.redis_url = line.url
        before = made.term() if made.rows("SELECT term FROM assignment.sequencer") else 0
        first = made.start("sequencer")
        made.start("maintenance")
        if made.value("SELECT count(*) FROM public.user_call_scores") == 0:
            made.seed(users=1000)
        made.wait_for_leader(after=before)
        made.regenerate(made.client())
        first.stop()
        yield made, line


@pytest.fixture
def stack(served: tuple[Stack, Wire]) -> Iterator[Stack]:
    made, _ = served
    with made.engine.begin() as connection:
        connection.execute(text("DELETE FROM assignment.dead_letters"))
    yield made
    for process in made.started:
        if process.name == "sequencer":
            process.stop()
    wait_until(lambda: made.rows(SUSPECTS) == [], "nothing to be suspect")


def send(stack: Stack, queue: str, task: str, said: dict[str, Any]) -> str:
    name = said.pop("name")
    message = envelope(task, said, queue=queue)
    message["headers"]["id"] = message["properties"]["correlation_id"] = name
    (push if stack.broker_url is None else publish)(stack, queue, message)
    return str(name)


def answer(stack: Stack, name: str) -> Any:
    """The answer to a message, once there is one."""
    with redis.Redis.from_url(stack.redis_url) as results:
        key = f"celery-task-meta-{name}"
        return json.loads(wait_until(lambda: results.get(key), "an answer", seconds=60))["result"]


def killed(stack: Stack, name: str) -> int:
    return sum(each.name == name and each.popen.poll() == -signal.SIGKILL for each in stack.started)


def test_the_second_end_makes_a_dead_letter_and_the_requests_behind_it_are_served(
    stack: Stack,
) -> None:
    client, before = stack.client(), killed(stack, "sequencer")
    with Keeper(stack, "sequencer", before=KILL):
        name = send(stack, "assignment", "assignment.request", {"name": "a", "agent_id": POISON})
        assert isinstance(client.request_next(27, timeout=timedelta(seconds=40)), Assigned)
        assert answer(stack, name)["outcome"] == "refused"
        assert killed(stack, "sequencer") - before == 2
    (letter,) = stack.rows(LETTERS)
    assert (letter.task, letter.task_id, letter.replayable) == ("assignment.request", name, True)
    assert json.loads(letter.body)["kwargs"] == {"agent_id": POISON}
    assert "ended the process that handled it, 2 times" in letter.error


def test_of_a_batch_only_the_requests_that_end_processes_are_dead_letters(stack: Stack) -> None:
    before = killed(stack, "sequencer")
    agents = [1, 2, POISON, 3, POISON, 4]
    asked = [{"agent_id": agent, "request_id": f"b{n}"} for n, agent in enumerate(agents)]
    with Keeper(stack, "sequencer", before=KILL):
        batch = {"name": "b", "requests": asked}
        answers = answer(stack, send(stack, "assignment", "assignment.request_many", batch))
        refused = [n for n, each in enumerate(answers) if each["outcome"] == "refused"]
        assert refused == [2, 4]
        assert [each["outcome"] for each in answers].count("assigned") == 4
        assert killed(stack, "sequencer") - before == 3, "together, and each by itself"
    letters = stack.rows(LETTERS)
    assert [json.loads(each.body)["args"] for each in letters] == [[[asked[2]]], [[asked[4]]]]
    assert all(each.replayable for each in letters)


def test_of_a_batch_of_moves_the_others_are_made_once_and_answered_in_their_places(
    stack: Stack,
) -> None:
    before = killed(stack, "sequencer")
    client = stack.client()
    with Keeper(stack, "sequencer", before=KILL):
        stack.wait_for_leader(after=stack.term())
        held = [client.request_next(agent, timeout=timedelta(seconds=20)) for agent in (81, 82)]
        ids = [str(each.assignment.id) for each in held if isinstance(each, Assigned)]
        assert len(ids) == 2, held
        moves = [
            {"move": "complete", "assignment_id": ids[0], "agent_id": 81, "outcome": "no_answer"},
            {"move": "release", "assignment_id": ids[0], "agent_id": POISON},
            {"move": "skip", "assignment_id": ids[1], "agent_id": 82},
        ]
        batch = {"name": f"moves {ids[0]}", "requests": moves}
        answers = answer(stack, send(stack, "assignment", "assignment.finish_many", batch))
        assert [each["outcome"] for each in answers] == ["completed", "refused", "skipped"]
        assert [answers[0]["assignment"]["id"], answers[2]["assignment"]["id"]] == ids
        assert "ended the process that handled it" in answers[1]["reason"]
        assert killed(stack, "sequencer") - before == 2
    made = stack.rows(
        "SELECT assignment_id::text, kind FROM assignment.events"
        " WHERE assignment_id::text = ANY(:ids) AND kind IN ('completed', 'skipped') ORDER BY kind",
        ids=ids,
    )
    assert [tuple(each) for each in made] == [(ids[0], "completed"), (ids[1], "skipped")]
    (letter,) = stack.rows(LETTERS)
    assert json.loads(letter.body)["args"] == [[moves[1]]]


def test_a_full_redis_hides_no_suspect(
    own_valkey: OwnServer, database_url: str, tmp_path: Path
) -> None:
    """The counts are in the database; the message and those behind it are taken all the same."""
    with running(database_url, own_valkey.url, tmp_path) as stack:
        first = stack.start("sequencer")
        stack.built()
        first.stop()
        poison = {"name": "poison", "agent_id": POISON}
        send(stack, "assignment", "assignment.request", poison)
        send(stack, "assignment", "assignment.request", {"name": "behind", "agent_id": 27})
        with full(own_valkey.url), Keeper(stack, "sequencer", before=KILL):
            served = "SELECT count(*) FROM assignment.assignments WHERE agent_id = 27"
            wait_until(lambda: stack.value(served) == 1, "the request behind it", seconds=60)
            assert killed(stack, "sequencer") == 2
        (letter,) = stack.rows(LETTERS)
        assert letter.task_id == "poison"


def test_while_the_database_is_frozen_a_suspect_is_tried_uncounted_and_no_part_is_tried(
    database_url: str, redis_url: str
) -> None:
    message = SimpleNamespace(
        delivery_info={"redelivered": True}, headers={"id": "frozen"}, body=b"[]"
    )
    with wire(database_url) as line, redis.Redis.from_url(redis_url) as results:
        engine = connect(line.url, name="test", statement_timeout=timedelta(seconds=1))
        direct = connect(database_url, name="test", statement_timeout=timedelta(seconds=1))
        suspects = Suspects(engine, results)
        first = suspects.take("assignment", message)
        assert first is not None
        line.freeze()
        with pytest.raises(DatabaseUnavailable):
            suspects.try_part(0)
        line.cut()
        began = time.monotonic()
        assert suspects.take("assignment", message) is None, "its caller must not wait for it"
        assert time.monotonic() - began < CONNECT_SECONDS + 3
        found = Suspects(direct, results).take("assignment", message)
        assert found is not None
        assert (first.ends, found.ends, found.parts) == (1, 2, ()), "two ends were seen"
        direct.dispose()
        engine.dispose()


def test_the_maintenance_queue_is_counted_too(stack: Stack, tmp_path: Path) -> None:
    # What a killed worker had taken is back in a moment on Redis, too.
    quick = (
        '"visibility_timeout": 1, "unacked_restore_interval": 0.2, "unacked_restore_throttle": 1'
    )
    config = tmp_path / "celeryconfig.py"
    config.write_text(CONFIG.read_text().replace('"visibility_timeout": 3600', quick, 1))
    for each in stack.started:
        if each.name == "maintenance":
            each.stop()
    before = killed(stack, "maintenance")
    beats = {"name": "c", "requests": [{"agent_id": agent} for agent in (1, POISON, 2)]}
    with Keeper(stack, "maintenance", before=KILL, celery_config=str(config)):
        answers = answer(stack, send(stack, "maintenance", "agent.heartbeats", beats))
        assert [each["outcome"] for each in answers] == ["noted", "refused", "noted"]
        assert killed(stack, "maintenance") - before == 2
    (letter,) = stack.rows(LETTERS)
    assert json.loads(letter.body)["args"] == [[{"agent_id": POISON}]]


WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND"
    " datname = current_database() AND application_name LIKE 'assignment-workers turns%'"
)
EXCUSES = "assignment-workers:excused:*"
LEADER = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE"
    " datname = current_database() AND application_name LIKE 'assignment-workers sequencer%'"
)


@contextmanager
def claims_wait(stack: Stack) -> Iterator[Callable[[], object]]:
    """Within, no claim ends; gives what says whether one waits."""
    with stack.connection() as connection:
        connection.execute(text("LOCK TABLE assignment.assignments IN ACCESS EXCLUSIVE MODE"))
        yield lambda: stack.rows(WAITING)
        connection.rollback()


def told_to_end(stack: Stack, process: Process) -> None:
    """And killed, because it takes too long."""
    with redis.Redis.from_url(stack.redis_url) as noted:
        for key in noted.keys(EXCUSES):
            noted.delete(key)
        process.signal(signal.SIGTERM)
        wait_until(lambda: noted.keys(EXCUSES), "the signal to be obeyed")
    process.signal(signal.SIGKILL)


def told_to_end_at_once(_: Stack, process: Process) -> None:
    process.signal(signal.SIGQUIT)


def without_its_term(stack: Stack, process: Process) -> None:
    stack.value(LEADER)
    wait_until(lambda: "leaving" in process.said(), "it to notice")


def of_memory(_: Stack, process: Process) -> None:
    process.signal(signal.SIGKILL)


@pytest.mark.parametrize("end", [told_to_end, told_to_end_at_once, without_its_term])
def test_ends_that_are_not_the_message_s_doing_do_not_count(
    stack: Stack, end: Callable[[Stack, Process], None]
) -> None:
    """A request is in the hand of one that is ended, time after time, and killed once."""
    name = end.__name__
    send(stack, "assignment", "assignment.request", {"name": name, "agent_id": 40})
    for cause in (end, end, end, of_memory):
        with claims_wait(stack) as waiting:
            process = stack.start("sequencer")
            wait_until(waiting, "it to be in hand")
            cause(stack, process)
            if cause is not without_its_term:
                wait_until(lambda p=process: p.popen.poll() is not None, "it to end")  # type: ignore[misc]
        wait_until(lambda p=process: p.popen.poll() is not None, "it to end")  # type: ignore[misc]
    stack.start("sequencer")
    found = answer(stack, name)
    assert found["outcome"] == "assigned", found
    assert stack.rows(LETTERS) == []


def test_a_leader_that_connects_again_while_messages_wait_takes_them(
    stack: Stack, served: tuple[Stack, Wire]
) -> None:
    """RabbitMQ delivers as soon as a queue is consumed from, before the worker's loop runs."""
    _, line = served
    process = stack.start("sequencer")
    stack.wait_for_leader()
    for again in range(3):
        with claims_wait(stack) as waiting:
            names = [
                send(stack, "assignment", "assignment.request", {"name": name, "agent_id": 70})
                for name in (f"again-{again}-{number}" for number in range(20))
            ]
            wait_until(waiting, "one to be in hand")
            line.hang_up()
        for name in names:
            assert answer(stack, name)["outcome"] in {"assigned", "held"}
    assert process.popen.poll() is None


def test_a_connection_to_the_broker_that_is_gone_does_not_count(
    stack: Stack, served: tuple[Stack, Wire]
) -> None:
    _, line = served
    stack.start("sequencer")
    client = stack.client()
    for number in range(2):
        stack.wait_for_leader()
        with claims_wait(stack) as waiting:
            said = {"name": f"d{number}", "agent_id": 50 + number}
            name = send(stack, "assignment", "assignment.request", said)
            wait_until(waiting, "it to be in hand", seconds=60)
            line.hang_up()
        found = answer(stack, name)
    assert found["outcome"] == "assigned", found
    assert isinstance(client.request_next(60, timeout=timedelta(seconds=40)), Assigned)
    assert stack.rows(LETTERS) == []
