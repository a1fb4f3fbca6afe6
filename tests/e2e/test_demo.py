"""The simulated call centre: a short day with faults on a stack of its own, and forged bad ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any, cast
from uuid import UUID

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError

from assignment_workers.assignment.answers import Held
from assignment_workers.assignment.lanes import ONE_LANE
from assignment_workers.devstack import rabbitmq, temporary
from assignment_workers.lab.call_centre.chaos import Chaos
from assignment_workers.lab.call_centre.faults import FaultKind, Faults
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder, Wait
from assignment_workers.lab.call_centre.verdict import FaultTold, late
from assignment_workers.runtime.stack import Stack

LONG = pytest.mark.skipif(
    "EVERY_ROW" not in os.environ or not rabbitmq.PROGRAM.exists(),
    reason="takes minutes, and needs RabbitMQ: make long",
)
NOW = datetime(2026, 1, 5, 9, 5, tzinfo=UTC)
SECONDS = 150.0
"""A run that takes longer stands still."""


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    names = ("ASSIGNMENT_WORKERS_", "DATABASE_URL", "REDIS_URL", "BROKER_URL")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    said, complained = folder / "said", folder / "complained"
    with said.open("wb") as output, complained.open("wb") as complaint:
        running = subprocess.Popen(
            [
                *(sys.executable, "-X", "faulthandler"),
                *("-m", "assignment_workers", "demo", "--json", *arguments),
            ],
            cwd=folder,
            env=inherited,
            stdout=output,
            stderr=complaint,
        )
        try:
            code = running.wait(SECONDS)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGABRT)  # it says where each of its threads waits
            running.wait()
            raise AssertionError(complained.read_text()) from None
    return subprocess.CompletedProcess(running.args, code, said.read_text(), complained.read_text())


class Page(HTMLParser):
    """What the page shows, and whether it asks for anything elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts = 0
        self.words: list[str] = []
        self.elsewhere: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.charts += tag == "svg"
        self.elsewhere += [each for each in attrs if each[0] in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.timeout(180)
def test_a_short_day_with_faults_breaks_no_guarantee(tmp_path: Path) -> None:
    # At this speed the rebuilds of every 15 minutes come every 5 seconds: two within the run.
    run = demo(
        tmp_path,
        *("--agents", "20", "--users", "5000", "--seconds", "11", "--speed", "180"),
        *("--seed", "3", "--chaos", "--report", "day.html"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    verdict: dict[str, Any] = json.loads(run.stdout)
    assert verdict["broken"] == []
    assert verdict["levels"]["assigned"] > 40
    assert verdict["levels"]["unanswered"] == 0
    assert verdict["faults"], "something was broken on purpose"
    assert verdict["counts"]["said twice"] > 0
    generations = [n for each, n in verdict["records"].items() if each.startswith("generations")]
    assert sum(generations) > 2, "the dialer queues were rebuilt, or are being rebuilt at the end"
    page = Page((tmp_path / "day.html").read_text())
    assert page.charts == 4
    assert page.elsewhere == []
    assert "Every guarantee held." in page.words
    assert not list(tmp_path.glob(".assignment-workers*")), "nothing is left beside the page"


def test_a_report_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path) -> None:
    run = demo(tmp_path, "--report", "nowhere/day.html")
    assert run.returncode == 2
    assert run.stderr.startswith("assignment-workers: --report nowhere/day.html: there is no")


def test_lanes_that_cannot_be_are_said_before_anything_starts(tmp_path: Path) -> None:
    run = demo(tmp_path, "--lanes", "outstanding=nobody")
    assert run.returncode == 2
    assert run.stderr.startswith("assignment-workers: ASSIGNMENT_WORKERS_LANES='outstanding=nobody")
    assert len(run.stderr.splitlines()) == 1


@LONG
@pytest.mark.timeout(600)
def test_a_short_day_of_two_lanes_over_rabbitmq_breaks_no_guarantee(tmp_path: Path) -> None:
    run = demo(
        tmp_path,
        *("--agents", "20", "--users", "5000", "--seconds", "40", "--seed", "3", "--chaos"),
        *("--lanes", "outstanding=outstanding_requests", "--rabbitmq", "--report", "day.html"),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    verdict: dict[str, Any] = json.loads(run.stdout)
    assert verdict["faults"]
    assert not [each for each in verdict["untried"] if "RabbitMQ" in each]
    assert verdict["levels"]["assigned"] > 40
    assert verdict["levels"]["unanswered"] == 0


@LONG
@pytest.mark.timeout(300)
def test_rabbitmq_is_killed_and_frozen_and_serves_again(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with temporary.broker(tmp_path) as broker:
        stack = Stack(
            database_url=database_url,
            redis_url=redis_url,
            broker_url=broker.url,
            pid=os.getpid(),
            started_at=NOW,
        )
        none = cast("Any", None)
        faults = Faults(
            stack, none, none, Recorder(), Random(1), ONE_LANE, None, broker, has_clock=False
        )
        kinds = {each.what: each for each in faults.kinds()}
        assert not [each for each in faults.untried() if each.startswith("RabbitMQ")]
        for what in ("RabbitMQ killed", "RabbitMQ frozen"):
            assert not kinds[what].leaves_a_server
            with kinds[what].cause() as done:
                assert done
                assert not serves(broker.url), what
            assert serves(broker.url), what


def serves(url: str) -> bool:
    try:
        with Connection(url, connect_timeout=1, transport_options={"read_timeout": 1}) as line:
            line.connect()
    except (OSError, OperationalError):
        return False
    return True


def held(number: int, *, agent: int, user: int, at: datetime = NOW) -> Held:
    return Held(
        id=UUID(int=number),
        user_id=user,
        agent_id=agent,
        queue="unsigned_users",
        source="queue",
        reason="new",
        rank=1,
        claimed_at=at,
        lease_expires_at=at + timedelta(seconds=10),
        version=1,
        state="active",
    )


def test_the_book_names_a_user_whom_two_agents_have() -> None:
    recorder = Recorder()
    recorder.record(held(1, agent=26, user=2064))
    recorder.record(held(2, agent=27, user=2064, at=NOW + timedelta(seconds=9)))
    (said,) = recorder.surprises
    assert said.startswith("user 2064 was given to agent 27 while agent 26 had them until")


def test_the_book_finds_nothing_wrong_with_a_user_given_on() -> None:
    recorder = Recorder()
    recorder.record(held(1, agent=26, user=2064))
    recorder.record(held(2, agent=27, user=2064, at=NOW + timedelta(seconds=11)))
    recorder.gives_up(held(2, agent=27, user=2064))
    recorder.record(held(3, agent=28, user=2064, at=NOW + timedelta(seconds=12)))
    assert recorder.surprises == []


def test_the_book_compares_no_times_from_before_and_after_a_step_of_the_clock() -> None:
    recorder = Recorder()
    recorder.record(held(1, agent=26, user=2064))
    recorder.stepped(20.0)
    assert recorder.ahead == timedelta(seconds=20)
    recorder.stepped(-20.0)
    assert recorder.ahead == timedelta()
    recorder.record(held(2, agent=27, user=2064, at=NOW + timedelta(seconds=9)))
    assert recorder.surprises == []


def test_a_recovery_begins_when_a_server_is_left_to_serve() -> None:
    recorder = Recorder()
    recorder.fault("sequencer killed", at=10.0, served_from=10.0)
    recorder.fault("PostgreSQL frozen", at=40.0, served_from=49.0)
    recorder.fault("Valkey full", at=80.0, served_from=85.0)
    recorder.waits = [
        Wait(11.0, 2.0, "assigned"),  # sent before the fault
        Wait(13.0, 2.5, "assigned"),
        Wait(41.0, 0.5, "assigned"),  # in the hand of the server while it was frozen
        Wait(60.5, 19.5, "empty"),
        Wait(86.0, 0.5, "unavailable"),
    ]
    told = [
        FaultTold(
            at=each.at,
            what=each.what,
            served_from=each.served_from,
            back_after=recorder.back_after(each),
        )
        for each in recorder.faults
    ]
    assert [each.back_after for each in told] == [3.0, 11.5, None]
    assert late(told) == [
        "PostgreSQL frozen at 40 s: answered after 11.5 s",
        "Valkey full at 80 s: no answer",
    ]


class Staged:
    """Faults that note their beginning and end; `broken` cannot begin, `down` is down already."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def remember(self) -> None:
        self.noted.append("remembered")

    def untried(self) -> list[str]:
        return ["disk full: needs root"]

    def kinds(self) -> list[FaultKind]:
        return [
            FaultKind("killed", lambda: self.cause("killed")),
            FaultKind("frozen", lambda: self.cause("frozen"), 0.2, leaves_a_server=False),
            FaultKind("broken", lambda: self.cause("broken")),
            FaultKind("down", lambda: self.cause("down")),
            FaultKind("too long", lambda: self.cause("too long"), 60.0),
        ]

    @contextmanager
    def cause(self, what: str) -> Iterator[bool]:
        if what == "broken":
            raise OSError(what)
        self.noted.append(f"{what} begins")
        yield what != "down"
        self.noted.append(f"{what} ends")


def test_each_fault_is_ended_and_those_that_cannot_be_caused_are_not_recorded() -> None:
    plan = Plan(1, 1, seconds=4.0, speed=1, seed=1, chaos=True, between=(0.01, 0.02))

    async def reign() -> None:
        over = asyncio.Event()
        chaos = Chaos(cast("Any", staged), recorder, over, plan, Random(1))
        await asyncio.wait_for(chaos.reign(), 10)

    staged, recorder = Staged(), Recorder()
    asyncio.run(reign())
    begun = [each.removesuffix(" begins") for each in staged.noted if each.endswith(" begins")]
    ended = [each.removesuffix(" ends") for each in staged.noted if each.endswith(" ends")]
    assert begun == ended, "one after the other"
    assert set(begun) == {"killed", "frozen", "down"}
    assert {each.what for each in recorder.faults} == {"killed", "frozen"}
    for each in recorder.faults:
        assert (each.served_from > each.at) == (each.what == "frozen")
    assert recorder.untried == ["disk full: needs root"]
