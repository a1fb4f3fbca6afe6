"""The embedded Valkey: reachable, private, and with its data whole after any end."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from assignment_workers.devstack import server, valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.process import Child
from assignment_workers.devstack.server import Server
from assignment_workers.runtime.errors import StackFailed


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "with space" / "valkey"


@pytest.fixture
def started() -> Iterator[list[Child]]:
    """What a test starts; ended after it."""
    children: list[Child] = []
    yield children
    for each in children:
        if not each.is_over:
            each.kill()
        each.wait(10)


def start(directory: Path, guardian: Guardian, started: list[Child]) -> tuple[Server, Child]:
    directory.parent.mkdir(exist_ok=True)
    made = valkey.prepare(directory)
    child = server.start(made, Log(sys.stderr, colour=False), guardian)
    started.append(child)
    return made, child


def push(url: str, *lines: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.rpush("kept", *lines)


def pushed(url: str) -> list[str]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return list(client.lrange("kept", 0, -1))


def test_a_stop_loses_nothing_not_even_of_its_last_second(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    lines = [str(number) for number in range(1000)]
    push(made.url, *lines)
    child.stop()
    assert child.how_it_ended() == "exit status 0"
    again, _ = start(directory, guardian, started)
    assert again.url == made.url
    assert pushed(again.url) == lines


def test_a_kill_loses_nothing_that_it_answered(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    push(made.url, "a", "b")
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10)
    again, _ = start(directory, guardian, started)
    assert pushed(again.url) == ["a", "b"]


def test_a_server_left_running_is_ended_by_the_next_start(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, left = start(directory, guardian, started)
    push(made.url, "a")
    again, _ = start(directory, guardian, started)
    assert left.wait(10)
    assert left.how_it_ended() == "exit status 0"
    assert pushed(again.url) == ["a"]


def test_another_port_is_chosen_when_the_remembered_one_is_in_use(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    push(made.url, "a")
    child.stop()
    port = int(made.url.rpartition("/")[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        again, _ = start(directory, guardian, started)
        assert again.url != made.url
        assert pushed(again.url) == ["a"]


def test_a_full_memory_refuses_and_drops_nothing(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, _ = start(directory, guardian, started)
    push(made.url, "a")
    with redis.Redis.from_url(made.url) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.rpush("kept", "b")
    assert pushed(made.url) == ["a"]


def test_only_its_password_lets_in(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, _ = start(directory, guardian, started)
    address = made.url.partition("@")[2]
    with (
        redis.Redis.from_url(f"redis://{address}") as stranger,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        stranger.ping()


def test_data_that_cannot_be_read_are_one_clear_line(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    push(made.url, "a")
    child.stop()
    for file in (directory / "data" / "appendonlydir").glob("*.manifest"):
        file.write_text("nonsense\n")
    with pytest.raises(StackFailed) as refused:
        start(directory, guardian, started)
    assert "valkey ended with exit status 1" in str(refused.value)
    assert "\n" not in str(refused.value)
