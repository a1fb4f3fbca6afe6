"""What the log says, in which form, and what it never says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from assignment_workers.assignment.lifecycle.moves import complete
from assignment_workers.client import Assigned
from tests.support.processes import Process, Stack, running, wait_until

SECRET = "Call Ann Smith at 07700 900123"


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


def lines(process: Process) -> list[dict[str, object]]:
    return [json.loads(line) for line in process.said().splitlines() if line.startswith("{")]


def test_the_log_names_messages_and_terms_and_nothing_that_is_known_of_a_person(
    stack: Stack,
) -> None:
    sequencer = stack.start("sequencer", log_format="json", log_level="debug")
    client = stack.built()
    with stack.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE agents SET first_name = 'Barnaby', email = id || '@x.test'"
        )
    answer = client.request_next(26, request_id="a request")
    assert isinstance(answer, Assigned)
    held = answer.assignment
    for wrong in (
        {"agent_id": SECRET},  # refused, with what was given in its reason
        {"outcome": "no_answer\x00", "notes": SECRET},
    ):
        called = complete.call(held.id, 26, "no_answer", version=1, notes=SECRET)
        said = called.arguments | wrong
        client.send_again("assignment.complete", (), said, "assignment")
    letters = "SELECT count(*) FROM assignment.dead_letters"
    wait_until(lambda: stack.value(letters) == 2, "both dead letters")
    client.complete(held.id, 26, "no_answer", notes=SECRET, timeout=timedelta(seconds=10))
    told = lines(sequencer)
    asked = next(each for each in told if each.get("request_id") == "a request")
    assert (asked["event"], asked["assigned"], asked["term"]) == ("answered", 1, stack.term())
    buried = [each for each in told if each["event"] == "dead_letter"]
    assert [each["why"] for each in buried] == ["refused", "refused"]
    assert SECRET in stack.value(
        "SELECT string_agg(error || body, '') FROM assignment.dead_letters"
    )
    for word in ("Smith", "07700", "Barnaby", "@x.test"):
        assert word not in sequencer.said()


def test_a_level_leaves_out_what_is_below_it(stack: Stack) -> None:
    sequencer = stack.start("sequencer", log_level="warning")
    stack.wait_for_leader()
    assert "leading" not in sequencer.said()
