"""One sequencer, whatever fails: real processes, killed, frozen, fed with garbage."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from assignment_workers.client import Assigned
from assignment_workers.sequencer.term import SILENCE
from tests.support.processes import Agents, Process, Stack, running, wait_until
from tests.support.sessions import END


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


@pytest.mark.timeout(240)
def test_a_killed_leader_is_followed_at_once_and_no_request_is_lost(stack: Stack) -> None:
    processes = [stack.start("sequencer")]
    stack.wait_for_leader()
    processes.append(stack.start("sequencer"))
    stack.built()
    gaps = []
    chance = random.Random(1)
    with Agents(stack, 32) as agents:

        def went_on(count: int) -> bool:
            return len(agents.answered) > count

        def answered_after(at: float) -> bool:
            return agents.answered[-1][0] > at

        def leads_after(term: int) -> bool:
            return stack.term() > term

        def stands_by(process: Process) -> bool:
            return "standing_by" in process.said()

        for _ in range(8):
            seen = len(agents.answered)
            wait_until(partial(went_on, seen + 64), "work to go on")
            wait_until(partial(stands_by, processes[-1]), "a sequencer to stand by")
            time.sleep(chance.random() * 0.05)  # at a random moment of the work
            leader = stack.value("SELECT leader_pid FROM assignment.sequencer")
            (killed,) = (each for each in processes if each.pid == leader)
            term = stack.term()
            killed.signal(signal.SIGKILL)
            at = time.monotonic()
            killed.popen.wait()
            processes.remove(killed)
            wait_until(partial(leads_after, term), "a successor")
            led = time.monotonic()
            wait_until(partial(answered_after, led), "an answer of the successor")
            gaps.append(agents.answered[-1][0] - at)
            processes.append(stack.start("sequencer"))
    assert agents.unanswered == []
    assert max(gaps) < 5.0
    stack.assert_healthy()


def test_two_sequencers_take_turns_to_lead_and_a_frozen_one_commits_nothing(stack: Stack) -> None:
    first = stack.start("sequencer")
    term = stack.wait_for_leader()
    second = stack.start("sequencer")
    wait_until(lambda: "standing_by" in second.said(), "the second to stand by")
    assert stack.value("SELECT leader_pid FROM assignment.sequencer") == first.pid
    stack.built()
    first.signal(signal.SIGSTOP)
    successor = stack.wait_for_leader(after=term)
    assert stack.value("SELECT leader_pid FROM assignment.sequencer") == second.pid
    client = stack.client()
    assert isinstance(client.request_next(26), Assigned)
    first.signal(signal.SIGCONT)
    assert first.popen.wait(20) != 0, "the one that woke up ends, to be started as a standby"
    late = stack.value(
        "SELECT count(*) FROM assignment.events WHERE term = :old AND kind <> 'ASSIGNMENT_RACE_CONDITION'"
        " AND at > (SELECT since FROM assignment.sequencer)",
        old=term,
    )
    assert late == 0
    assert stack.term() == successor
    assert isinstance(client.request_next(27), Assigned)
    stack.assert_healthy()


def test_a_lone_leader_that_could_not_run_for_a_while_leads_on(stack: Stack) -> None:
    leader = stack.start("sequencer")
    client = stack.built()
    term = stack.term()
    leader.signal(signal.SIGSTOP)
    silent = (
        "SELECT clock_timestamp() - last_turn_at > make_interval(secs => :limit)"
        " FROM assignment.sequencer_signs"
    )
    wait_until(lambda: stack.value(silent, limit=SILENCE.total_seconds() + 2), "it to be silent")
    leader.signal(signal.SIGCONT)
    assert isinstance(client.request_next(26), Assigned)
    wait_until(lambda: not stack.value(silent, limit=1), "its probes to go round again")
    assert leader.popen.poll() is None
    assert stack.term() == term
    stack.assert_healthy()


def test_a_leader_whose_line_stands_still_leaves_though_it_runs(stack: Stack) -> None:
    leader = stack.start("sequencer")
    stack.wait_for_leader()
    with stack.connection() as connection:
        # No turn can be proved while this row is held; the watch only reads it.
        connection.execute(text("SELECT 1 FROM assignment.sequencer FOR UPDATE"))
        assert leader.popen.wait(40) == os.EX_TEMPFAIL
    (left,) = [line for line in leader.said().splitlines() if "event=leaving" in line]
    assert "the database refuses transactions" in left
    assert "broker" not in left


def test_the_lock_connection_is_lost_and_the_leader_leaves(stack: Stack) -> None:
    leader = stack.start("sequencer")
    term = stack.wait_for_leader()
    with stack.connection() as connection:
        connection.execute(
            text(f"{END} AND application_name LIKE 'assignment-workers sequencer %'")
        )
    assert leader.popen.wait(20) != 0
    stack.start("sequencer")
    assert stack.wait_for_leader(after=term) == term + 1


def test_a_turn_whose_connection_is_cut_is_done_again_in_place(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    with stack.connection() as connection:
        connection.execute(text(f"{END} AND application_name = 'assignment-workers turns'"))
    assert isinstance(client.request_next(26), Assigned)
    stack.assert_healthy()


def test_what_cannot_be_read_is_kept_and_the_line_moves_on(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    broker = redis.Redis.from_url(stack.redis_url)
    broker.lpush("assignment", b"\xff\xfe not even text")
    broker.lpush("assignment", b'{"json": "but not a message"}')
    message: dict[str, Any] = {
        "body": "W1tdLCB7fSwge31d",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "no.such_task", "id": "unknown-1"},
        "properties": {
            "correlation_id": "unknown-1",
            "delivery_info": {"exchange": "", "routing_key": "assignment"},
            "delivery_tag": "tag-1",
            "body_encoding": "base64",
        },
    }
    broker.lpush("assignment", json.dumps(message))
    broken = message | {"content-type": "application/x-python-serialize"}
    broken["properties"] = dict(message["properties"], delivery_tag="tag-2")
    broker.lpush("assignment", json.dumps(broken))
    bodiless = message | {"body": "bm90IGpzb24=", "headers": dict(message["headers"])}
    bodiless["properties"] = dict(message["properties"], delivery_tag="tag-3")
    broker.lpush("assignment", json.dumps(bodiless))
    huge = message | {"body": base64.b64encode(b"[[], {}, " + b"0" * 500_000 + b"]").decode()}
    huge["properties"] = dict(message["properties"], delivery_tag="tag-4")
    broker.lpush("assignment", json.dumps(huge))
    assert isinstance(client.request_next(26), Assigned)
    kept = wait_until(
        lambda: (
            len(found) == 6 and found
            if (found := stack.rows("SELECT error, body FROM assignment.dead_letters ORDER BY id"))
            else None
        ),
        "six dead letters",
    )
    assert "not a message of Celery's" in kept[0].error
    assert "\\xff" in kept[0].body
    assert "no.such_task" in kept[2].error
    assert len(kept[5].body) > 500_000, "whole"
    # A dead letter is committed first, and its message acknowledged after that.
    left = ("assignment", "assignment.taken.*")
    wait_until(lambda: not any(map(broker.keys, left)), "the last acknowledgement")


def test_the_maintenance_worker_keeps_what_cannot_be_read_and_goes_on(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    broker = redis.Redis.from_url(stack.redis_url)
    broker.lpush("maintenance", b"\xff\xfe not even text")
    broker.lpush("maintenance", b'{"json": "but not a message"}')
    stack.regenerate(client)
    errors = stack.rows("SELECT celery_queue, error FROM assignment.dead_letters ORDER BY id")
    assert [each.celery_queue for each in errors] == ["maintenance", "maintenance"]
    assert all("not a message of Celery's" in each.error for each in errors)


def test_a_message_delivered_twice_hands_out_once(stack: Stack) -> None:
    stack.start("sequencer")
    client = stack.built()
    broker = redis.Redis.from_url(stack.redis_url)
    taken: list[bytes] = []
    sequencer = stack.value("SELECT leader_pid FROM assignment.sequencer")
    assert sequencer
    with stack.connection() as connection:
        # The line is held up, so that the message can be seen and doubled.
        connection.execute(text("SELECT 1 FROM assignment.sequencer FOR UPDATE"))
        asking = threading.Thread(
            target=lambda: client.request_next(26, request_id="twice"), daemon=True
        )
        asking.start()
        key = f"assignment.taken.{stack.value('SELECT marks[1] FROM assignment.sequencer')}"

        def message() -> list[bytes]:
            listed = broker.lrange(key, 0, -1) + broker.lrange("assignment", 0, -1)
            return [each for each in listed if isinstance(each, bytes) and b'"twice"' in each]

        taken = wait_until(message, "the message")
        copy = json.loads(taken[0])
        copy["properties"]["delivery_tag"] = "another"
        broker.lpush("assignment", taken[0], json.dumps(copy))
        connection.rollback()
    asking.join(20)
    wait_until(
        lambda: not broker.llen("assignment") and not broker.llen(key), "the line to be empty"
    )
    assert stack.value("SELECT count(*) FROM assignment.assignments") == 1
    assert stack.value("SELECT count(*) FROM assignment.requests") == 1


def test_hazard_e6_requests_that_waited_for_a_sequencer_are_served_in_their_order(
    stack: Stack,
) -> None:
    first = stack.start("sequencer")
    stack.built()
    first.stop()
    client = stack.client()
    for number in range(1, 101):
        client.send_again(
            "assignment.request",
            [number],
            {"queue": "unsigned_users", "request_id": f"order-{number:03}"},
            "assignment",
        )
    stack.start("sequencer")
    wait_until(
        lambda: stack.value("SELECT count(*) FROM assignment.assignments") == 100, "100 grants"
    )
    order = [
        row[0] for row in stack.rows("SELECT request_id FROM assignment.assignments ORDER BY rank")
    ]
    assert order == [f"order-{number:03}" for number in range(1, 101)]
    stack.assert_healthy()


def test_a_leader_that_is_asked_to_end_hands_over_at_once(stack: Stack) -> None:
    leader = stack.start("sequencer")
    client = stack.built()
    second = stack.start("sequencer")
    wait_until(lambda: "standing_by" in second.said(), "the second to stand by")
    term = stack.term()
    with Agents(stack, 4) as agents:
        wait_until(lambda: len(agents.answered) > 20, "work to go on")
        assert leader.stop() == 0
        assert "event=leaving" not in leader.said(), "a place given up is not a place lost"
        at = time.monotonic()
        wait_until(lambda: agents.answered[-1][0] > at, "an answer by the successor")
        assert agents.answered[-1][0] - at < 2.0
    assert agents.unanswered == []
    assert stack.term() == term + 1
    assert isinstance(client.request_next(50), Assigned)
    stack.assert_healthy()
