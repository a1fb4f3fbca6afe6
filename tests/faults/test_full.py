"""Stores that are full: what waits is served, who asks is told, and nothing ends or vanishes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ResponseError
from sqlalchemy import text

from assignment_workers.client import Assigned, Client, Unavailable
from assignment_workers.devstack import postgres
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.schema.migrate import upgrade
from assignment_workers.sequencer.term import SILENCE
from tests.faults.test_outages import send
from tests.support.processes import Stack, running, wait_until
from tests.support.servers import OwnServer

SECOND = timedelta(seconds=1)


@contextmanager
def full(url: str) -> Iterator[redis.Redis]:
    """The server refuses each command by which its memory may grow."""
    with redis.Redis.from_url(url) as broker:
        broker.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            broker.set("more", "")
        try:
            yield broker
        finally:
            broker.config_set("maxmemory", 0)


@contextmanager
def unable_to_save(url: str, data: Path) -> Iterator[redis.Redis]:
    """The server refuses every write, for it could not write its last snapshot."""
    in_the_way = data / "dump.rdb"
    in_the_way.mkdir()
    with redis.Redis.from_url(url) as broker:

        def refuses() -> bool:
            try:
                broker.set("more", "")
            except ResponseError as error:
                return "MISCONF" in str(error)
            return False

        broker.config_set("save", "3600 1")
        broker.bgsave()
        wait_until(refuses, "it to refuse writes")
        try:
            yield broker
        finally:
            in_the_way.rmdir()
            broker.config_set("save", "")


def waiting(stack: Stack) -> int:
    """Messages that wait, or were taken and are not acknowledged."""
    with redis.Redis.from_url(stack.redis_url) as broker:
        keys = [b"assignment", *broker.scan_iter("assignment.taken.*")]
        return sum(int(str(broker.llen(key))) for key in keys)


def served_again(client: Client, agent: int) -> None:
    """The next ask is answered within ten seconds."""
    wait_until(
        lambda: isinstance(client.request_next(agent, timeout=SECOND), Assigned),
        "an agent to be served again",
        seconds=10,
    )


def test_a_redis_that_is_full_drains(
    own_valkey: OwnServer, database_url: str, tmp_path: Path
) -> None:
    """A killed sequencer's successor too takes up what was taken, in its order."""
    with running(database_url, own_valkey.url, tmp_path) as stack:
        first = stack.start("sequencer")
        client = stack.built()
        beat = stack.start("beat")
        wait_until(lambda: "Acquired lock" in beat.said(), "beat to have its lock")
        with stack.connection() as connection:
            connection.execute(text("SELECT 1 FROM assignment.sequencer FOR UPDATE"))
            send(own_valkey.url, range(1, 41))
            wait_until(lambda: waiting(stack) >= 40, "the messages to wait")
            with full(own_valkey.url):
                first.popen.kill()
                first.popen.wait()
                second = stack.start("sequencer")
                connection.rollback()
                wait_until(
                    lambda: stack.value("SELECT count(*) FROM assignment.assignments") == 40,
                    "what waited to be served",
                )
                wait_until(lambda: waiting(stack) == 0, "the queue to be empty")
                answer = client.request_next(50, timeout=2 * SECOND)
                assert isinstance(answer, Unavailable)
                assert "full" in answer.reason
                ends = time.monotonic() + SILENCE.total_seconds() + 6
                wait_until(lambda: time.monotonic() > ends, "a silence to be noticed")
                assert second.popen.poll() is None
                assert beat.popen.poll() is None
                assert "broker_refuses" in second.said()
            served_again(client, 50)
        order = "SELECT request_id FROM assignment.events WHERE kind = 'assigned' ORDER BY id"
        served = [int(row[0]) for row in stack.rows(order) if row[0].isdigit()]
        assert served == list(range(1, 41))
        assert stack.value("SELECT count(*) FROM assignment.dead_letters") == 0
        assert second.popen.poll() is None
        stack.assert_healthy()


def test_the_maintenance_queue_of_a_full_redis_is_served(
    own_valkey: OwnServer, database_url: str, tmp_path: Path
) -> None:
    with running(database_url, own_valkey.url, tmp_path) as stack:
        stack.start("sequencer")
        client = stack.built()
        (worker,) = (each for each in stack.started if each.name == "maintenance")
        worker.stop()
        assert isinstance(client.regenerate("unsigned_users"), str)
        with full(own_valkey.url) as broker:
            worker = stack.start("maintenance")
            built = "SELECT count(*) FROM assignment.generations WHERE queue = 'unsigned_users'"
            wait_until(lambda: stack.value(built) == 2, "the job to run")
            wait_until(lambda: broker.hlen("unacked") == 0, "its message to be acknowledged")
            assert broker.llen("maintenance") == 0
        assert worker.popen.poll() is None
        assert isinstance(client.regenerate("outstanding_requests"), str)


def test_a_redis_that_cannot_save_is_waited_for(
    own_valkey: OwnServer, database_url: str, tmp_path: Path
) -> None:
    directory = own_valkey._directory
    with running(database_url, own_valkey.url, tmp_path) as stack:
        leader = stack.start("sequencer")
        client = stack.built()
        (worker,) = (each for each in stack.started if each.name == "maintenance")
        term = stack.term()
        with unable_to_save(own_valkey.url, directory / "data"):
            answer = client.request_next(1, timeout=2 * SECOND)
            assert isinstance(answer, Unavailable)
            ends = time.monotonic() + SILENCE.total_seconds() + 6
            wait_until(lambda: time.monotonic() > ends, "a silence to be noticed")
            assert "cannot save" in leader.said()
            assert (leader.popen.poll(), worker.popen.poll()) == (None, None)
        served_again(client, 2)
        assert stack.term() == term
        assert (leader.popen.poll(), worker.popen.poll()) == (None, None)
        stack.assert_healthy()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of some megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", place],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(file: Path) -> None:
    """Write until there is no room."""
    with file.open("wb", buffering=0) as written:
        while True:
            written.write(b"0" * 100_000)


def test_a_database_whose_disk_is_full_loses_no_message(
    small_disk: Path, guardian: Guardian, redis_url: str, tmp_path: Path
) -> None:
    """A full disk passes: a valid message is tried again, and is no defect."""
    own = OwnServer(partial(postgres.prepare, fsync=False), small_disk / "postgres", guardian)
    try:
        upgrade(own.url)
        with running(own.url, redis_url, tmp_path) as stack:
            leader = stack.start("sequencer")
            client = stack.built(users=200)
            filler = small_disk / "filler"
            with pytest.raises(OSError, match="No space left"):
                fill(filler)
            said = {"user_id": 7, "reason": "asked", "by": "operator"}
            client.send_again("user.suppress", (), said, "assignment")
            wait_until(lambda: "No space left" in leader.said(), "its insert to be refused")
            filler.unlink()
            wait_until(
                lambda: stack.value("SELECT count(*) FROM assignment.suppressions") == 1,
                "the message to be handled",
            )
            served_again(client, 1)
            assert stack.value("SELECT count(*) FROM assignment.dead_letters") == 0
            assert leader.popen.poll() is None
            stack.engine.dispose()
    finally:
        own.stop()
