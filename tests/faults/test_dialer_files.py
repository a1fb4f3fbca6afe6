"""A rolling restart with another dialer's file: the new sequencer says what differs, and then leads."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.commands import type_in
from tests.support.dialers import EXAMPLES
from tests.support.processes import Process, Stack, wait_until

CLINIC = (EXAMPLES / "clinic" / "dialerconfig.py").read_text(encoding="utf-8")
LANES = "second=recalls"


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as keep:
        yield Stack(database_url, redis_url, tmp_path, keep)


def lead(stack: Stack, file: Path, lane: str) -> Process:
    """A sequencer by this file; it may have to wait for another one to end."""
    return stack.start("sequencer", "--lane", lane, dialer_config=str(file), lanes=LANES)


def leads(stack: Stack, lane: str, process: Process) -> int | None:
    """The term of the lane, once the process leads it."""
    found = stack.rows(
        "SELECT term FROM assignment.sequencer NATURAL JOIN assignment.sequencer_signs"
        " WHERE lane = :lane AND leader_pid = :pid AND last_probe_at > since",
        lane=lane,
        pid=process.pid,
    )
    return int(found[0][0]) if found else None


def differing(process: Process) -> list[str]:
    lines = process.log.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "dialer_differs" in line]


def test_old_and_new_agree_or_the_new_one_says_what_differs(stack: Stack, tmp_path: Path) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(CLINIC)
    new.write_text(
        CLINIC.replace('SPOKEN = ("en", "es", "pl")', 'SPOKEN = ("en", "es")').replace(
            "delay=24 * HOUR", "delay=25 * HOUR"
        )
    )
    environment = {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}

    def doctor() -> list[str]:
        said = type_in(["doctor", "--json"], environment, EXAMPLES / "clinic")
        checks = json.loads(said.stdout)
        (found,) = [each for each in checks if each["check"].startswith("the lanes are led")]
        return list(found["examples"])

    first = lead(stack, old, "default")
    second = lead(stack, old, "second")
    wait_until(lambda: leads(stack, "default", first), "the first sequencer to lead")
    wait_until(lambda: leads(stack, "second", second), "the second lane to be led")
    assert differing(first) + differing(second) == []
    assert doctor() == []

    third = lead(stack, new, "default")
    parts = (
        "queue results: rule no_speaker, queue missed_appointments: rule no_speaker,"
        " queue recalls: rule no_speaker, outcome booked"
    )
    wait_until(lambda: differing(third), "the standby to say what differs")
    assert all(parts in line for line in differing(third))
    first.signal(signal.SIGTERM)
    term = wait_until(lambda: leads(stack, "default", third), "the new file to lead")
    (said,) = doctor()
    assert said == (
        "lanes default and second differ: outcome booked, queue missed_appointments: rule"
        " no_speaker, queue recalls: rule no_speaker, queue results: rule no_speaker"
    )
    (details,) = stack.rows(
        "SELECT details FROM assignment.events WHERE kind = 'term_begun' AND term = :term",
        term=term,
    )
    assert [parts in line for line in details[0]["dialer_changed"]] == [True, True]

    fourth = lead(stack, new, "second")
    wait_until(lambda: differing(fourth), "the standby of the second lane to say so too")
    second.signal(signal.SIGTERM)
    wait_until(lambda: leads(stack, "second", fourth), "the second lane to be led by the new file")
    assert doctor() == []


def test_a_dialer_queue_that_only_the_new_file_has_does_not_keep_lanes_from_leading(
    stack: Stack, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(CLINIC)
    more = 'QUEUES += (Queue("more", "More", rules=PATIENT),)\ndialer = Dialer('
    new.write_text(CLINIC.replace("dialer = Dialer(", more))
    first = lead(stack, old, "default")
    wait_until(lambda: leads(stack, "default", first), "the old file to lead")
    second = lead(stack, new, "second")
    wait_until(lambda: leads(stack, "second", second), "the new file to lead its lane")
    assert all("queue more is new" in line for line in differing(second))
    assert differing(second)
    wrong = stack.start(
        "sequencer", "--lane", "second", dialer_config=str(new), lanes="second=results"
    )
    assert wait_until(wrong.popen.poll, "another assignment of lanes to be refused") == 2
    assert "stop every sequencer" in wrong.log.read_text(encoding="utf-8")
