"""The embedded PostgreSQL: reachable, private, and with its data whole after any end."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from assignment_workers.devstack import postgres, server
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.devstack.process import Child
from assignment_workers.devstack.server import Server
from assignment_workers.runtime.errors import StackFailed
from tests.devstack.support import kill_all, none_runs, wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "postgres"


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
    made = postgres.prepare(directory)
    child = server.start(made, Log(sys.stderr, colour=False), guardian)
    started.append(child)
    return made, child


def keep(url: str, line: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (line text)")
        connection.execute("INSERT INTO kept VALUES (%s)", [line])


def kept(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [line for (line,) in connection.execute("SELECT line FROM kept ORDER BY line")]


def one(url: str, sql: str) -> str:
    with psycopg.connect(url) as connection:
        found = connection.execute(sql).fetchone()
    assert found is not None
    return str(found[0])


def test_data_and_address_survive_a_stop(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    keep(made.url, "a")
    child.stop()
    assert child.how_it_ended() == "exit status 0"
    again, _ = start(directory, guardian, started)
    assert again.url == made.url
    assert kept(again.url) == ["a"]
    assert "was not properly shut down" not in (directory / "postgres.log").read_text()


def test_a_stop_ends_open_sessions(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    with psycopg.connect(made.url) as connection:
        connection.execute("SELECT 1")
        child.stop()
        assert child.how_it_ended() == "exit status 0"
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_data_survive_a_kill_of_every_process_of_the_server(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    keep(made.url, "a")
    kill_all([psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)])
    assert child.wait(10)
    assert (directory / "data" / "postmaster.pid").exists()
    again, _ = start(directory, guardian, started)
    assert kept(again.url) == ["a"]


def test_a_server_left_running_is_ended_by_the_next_start(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, left = start(directory, guardian, started)
    keep(made.url, "a")
    again, _ = start(directory, guardian, started)
    assert left.is_over or left.wait(10)
    assert left.how_it_ended() == "exit status 0"
    assert kept(again.url) == ["a"]


def test_sessions_that_outlive_a_killed_server_are_ended_by_the_next_start(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    keep(made.url, "a")
    with psycopg.connect(made.url) as connection:
        session = connection.info.backend_pid
        os.kill(session, signal.SIGSTOP)  # as a session too busy to notice
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(10)
        again, _ = start(directory, guardian, started)
        wait_until(lambda: none_runs([session]), "the session to end")
    assert kept(again.url) == ["a"]


def test_another_port_is_chosen_when_the_remembered_one_is_in_use(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    keep(made.url, "a")
    child.stop()
    port = int(made.url.rpartition("/")[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        again, _ = start(directory, guardian, started)
        assert again.url != made.url
        assert kept(again.url) == ["a"]


def test_data_of_another_major_version_are_one_clear_line(directory: Path) -> None:
    postgres.prepare(directory, fsync=False)
    (directory / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StackFailed) as refused:
        postgres.prepare(directory)
    told = str(refused.value)
    assert "PostgreSQL 16" in told
    assert "is 18" in told
    assert "\n" not in told


def test_data_that_cannot_be_read_are_one_clear_line(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    postgres.prepare(directory, fsync=False)
    (directory / "data" / "global" / "pg_control").unlink()
    with pytest.raises(StackFailed) as refused:
        start(directory, guardian, started)
    told = str(refused.value)
    assert "postgres ended with exit status" in told
    assert "pg_control" in told
    assert "\n" not in told


def test_a_set_up_that_was_interrupted_is_made_again(directory: Path) -> None:
    (directory / "new-half").mkdir(parents=True)
    (directory / "new-half" / "PG_VERSION").write_text("18\n")
    postgres.prepare(directory, fsync=False)
    assert not list(directory.glob("new-*"))


def test_it_is_durable_speaks_utc_and_listens_on_loopback_alone(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, child = start(directory, guardian, started)
    assert one(made.url, "SHOW fsync") == "on"
    assert one(made.url, "SHOW timezone") == "UTC"
    assert int(one(made.url, "SHOW max_connections")) >= 200
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(child.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_only_its_password_lets_in_and_never_as_a_superuser(
    directory: Path, guardian: Guardian, started: list[Child]
) -> None:
    made, _ = start(directory, guardian, started)
    assert one(made.url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == "False"
    secret = made.url.partition("//")[2].partition("@")[0]
    for other in ("assignment_workers:wrong", "assignment_workers", "postgres"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(made.url.replace(secret, other))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers change their account")
def test_root_s_server_runs_as_another_account_in_directories_private_to_root(
    tmp_path: Path, guardian: Guardian, started: list[Child]
) -> None:
    tmp_path.chmod(0o700)
    made, child = start(tmp_path / "postgres", guardian, started)
    assert psutil.Process(child.pid).uids().effective != 0
    keep(made.url, "a")
    assert tmp_path.stat().st_mode & 0o077 == 0
