"""Any number of beats: one fires, another takes over, and Redis may go away under them."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import redis

from assignment_workers.devstack import valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.runtime.home import Home
from tests.support.processes import Process, Stack, running, wait_until
from tests.support.root import ROOT
from tests.support.servers import OwnServer
from tests.support.sessions import cut

SHIPPED = (ROOT / "celeryconfig.py").read_text(encoding="utf-8")
EVERY_SECOND = """
beat_schedule = {
    "expire lapsed holds": {"task": "assignment.expire", "schedule": 1.0, "options": {"expires": 60}}
}
"""


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


@pytest.fixture
def own_valkey(test_home: Home, guardian: Guardian) -> Iterator[OwnServer]:
    made = OwnServer(partial(valkey.prepare, fsync=False), test_home.path / "valkey-beat", guardian)
    yield made
    made.stop()


@pytest.fixture
def beat(stack: Stack, tmp_path: Path) -> Callable[[], Process]:
    """Starts a beat with the file as it is shipped but one job, every second."""
    file = tmp_path / "celeryconfig.py"
    file.write_text(SHIPPED + EVERY_SECOND, encoding="utf-8")
    return lambda: stack.start("beat", celery_config=str(file))


def fired(stack: Stack) -> list[datetime]:
    """When each message that waits was sent: it expires a minute later."""
    with redis.Redis.from_url(stack.redis_url) as broker:
        waiting = [json.loads(each) for each in broker.lrange("assignment", 0, -1)]
    assert {each["headers"]["task"] for each in waiting} <= {"assignment.expire"}
    times = [datetime.fromisoformat(each["headers"]["expires"]) for each in waiting]
    return sorted(at - timedelta(seconds=60) for at in times)


def test_of_two_beats_one_fires_and_the_other_follows_it_when_it_is_killed(
    stack: Stack, beat: Callable[[], Process]
) -> None:
    beats = [beat(), beat()]
    wait_until(lambda: len(fired(stack)) >= 6, "six seconds' messages")
    wait_until(lambda: any("Acquired lock" in each.said() for each in beats), "one to have it")
    (firing,) = (each for each in beats if "Acquired lock" in each.said())
    firing.signal(signal.SIGKILL)
    firing.popen.wait()
    before = fired(stack)
    gaps = [later - earlier for earlier, later in itertools.pairwise(before)]
    assert min(gaps) > timedelta(seconds=0.5), "each second once"
    wait_until(lambda: len(fired(stack)) >= len(before) + 3, "the other to go on")
    assert fired(stack)[len(before)] - before[-1] < timedelta(seconds=20)


def test_a_beat_whose_connections_are_cut_goes_on_or_ends_to_be_started_again(
    stack: Stack, beat: Callable[[], Process]
) -> None:
    process = beat()
    wait_until(lambda: len(fired(stack)) >= 2, "two messages")
    with redis.Redis.from_url(stack.redis_url) as broker:
        cut(broker)
    before = len(fired(stack))

    def goes_on() -> bool:
        nonlocal process
        if process.popen.poll() is not None:
            process = beat()
        return len(fired(stack)) >= before + 2

    wait_until(goes_on, "it to go on")


def test_a_beat_that_finds_its_lock_gone_takes_it_again_and_goes_on(
    stack: Stack, beat: Callable[[], Process]
) -> None:
    """As it is when Redis comes back without it."""
    process = beat()
    wait_until(lambda: len(fired(stack)) >= 2, "two messages")
    with redis.Redis.from_url(stack.redis_url) as broker:
        for _ in range(2):
            before = len(fired(stack))
            assert broker.delete("assignment-workers:beat::lock") == 1
            wait_until(lambda: broker.exists("assignment-workers:beat::lock"), "its lock")
            wait_until(lambda: len(fired(stack)) >= before + 2, "it to go on")  # noqa: B023
    assert process.popen.poll() is None
    assert "Traceback" not in process.said()


def test_a_beat_waits_for_a_redis_that_is_away(
    own_valkey: OwnServer, stack: Stack, beat: Callable[[], Process]
) -> None:
    stack.redis_url = own_valkey.url
    own_valkey.kill()
    process = beat()
    wait_until(lambda: "beat_waits" in process.said(), "it to say that it waits")
    own_valkey.start()
    wait_until(lambda: len(fired(stack)) >= 2, "two messages")
    own_valkey.kill()
    said = process.said().count("beat_waits")
    wait_until(lambda: process.said().count("beat_waits") > said, "it to say that it waits")
    own_valkey.start()
    before = len(fired(stack))
    wait_until(lambda: len(fired(stack)) >= before + 2, "it to go on")
    assert process.popen.poll() is None
