"""The whole way up and down with the embedded servers, whatever ends it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from assignment_workers.runtime.stack import Stack, resolve, running_stack, shell_assignments
from assignment_workers.settings import Settings
from tests.devstack.support import (
    NO_SERVERS,
    Run,
    Runs,
    child,
    kill_all,
    none_runs,
    ours,
    wait_until,
)

ADDRESSES = """
import os
for name in ('DATABASE_URL', 'REDIS_URL', 'BROKER_URL', 'ASSIGNMENT_WORKERS_EMBEDDED'):
    print(name, os.environ[name])
import time
time.sleep(600)
"""


def keep(stack: Stack, line: str) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("INSERT INTO kept VALUES (%s)", [line])
    with redis.Redis.from_url(stack.redis_url) as client:
        client.rpush("kept", line)


def kept(stack: Stack) -> tuple[list[str], list[str]]:
    with psycopg.connect(stack.database_url) as connection:
        rows = [line for (line,) in connection.execute("SELECT line FROM kept ORDER BY line")]
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        return rows, list(client.lrange("kept", 0, -1))


def settings(runs: Runs) -> Settings:
    return Settings.from_environment({"ASSIGNMENT_WORKERS_HOME": str(runs.home)})


def stop(run: Run) -> None:
    run.popen.send_signal(signal.SIGTERM)
    assert run.code() == 0, run.said()


def test_a_first_start_with_its_servers_takes_seconds(runs: Runs) -> None:
    begun = time.monotonic()
    run = runs.start(child("worker"), table=True)
    run.ready()
    assert time.monotonic() - begun < 15
    stop(run)


def test_children_are_given_the_addresses_of_the_embedded_servers(runs: Runs) -> None:
    run = runs.start(child("worker", ADDRESSES))
    stack = run.ready()
    said = run.wait_for("ASSIGNMENT_WORKERS_EMBEDDED true")
    assert f"DATABASE_URL {stack.database_url}" in said
    assert f"REDIS_URL {stack.redis_url}" in said
    assert f"BROKER_URL {stack.redis_url}" in said


def test_other_programs_find_the_stack_while_it_runs(runs: Runs) -> None:
    run = runs.start(child("worker"))
    stack = run.ready()
    assert running_stack(settings(runs)) == stack
    assert stat.S_IMODE((runs.home / "stack.json").stat().st_mode) == 0o600
    shell = f"{shell_assignments(stack)}\nexec sh -c 'printf %s \"$DATABASE_URL\"'"
    told = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert told == stack.database_url
    assert resolve(settings(runs)).database_url == stack.database_url
    stop(run)
    assert running_stack(settings(runs)) is None
    assert not (runs.home / "stack.json").exists()


def test_a_signal_to_the_whole_group_ends_everything_and_keeps_the_data(runs: Runs) -> None:
    first = runs.start(child("worker"), table=True)
    stack = first.ready()
    family = [process.pid for process in first.family()]
    keep(stack, "a")
    os.killpg(first.pid, signal.SIGINT)
    assert first.code() == 0
    assert none_runs(family)
    assert not ours(runs.home)
    said = first.said()
    order = [f"{name} stopped" for name in ("worker", "postgres", "valkey")]
    assert [said.index(words) for words in order] == sorted(said.index(words) for words in order)
    second = runs.start(child("worker"), table=True)
    assert kept(second.ready()) == (["a"], ["a"])
    stop(second)


def test_data_survive_a_kill_of_everything_at_once(runs: Runs) -> None:
    first = runs.start(child("worker"), table=True)
    keep(first.ready(), "a")
    kill_all(first.family())
    second = runs.start(child("worker"), table=True)
    assert kept(second.ready()) == (["a"], ["a"])
    stop(second)


def test_a_killed_supervisor_leaves_no_server_and_whole_data(runs: Runs) -> None:
    first = runs.start(child("worker"), table=True)
    keep(first.ready(), "a")
    family = [process.pid for process in first.family()]
    os.kill(first.pid, signal.SIGKILL)
    first.code()
    assert running_stack(settings(runs)) is None
    wait_until(lambda: none_runs(family), "every process to end")
    assert not ours(runs.home)
    assert "database system is shut down" in (runs.home / "postgres/postgres.log").read_text()
    second = runs.start(child("worker"), table=True)
    assert kept(second.ready()) == (["a"], ["a"])
    stop(second)


def test_servers_left_without_supervisor_and_guardian_are_ended_by_the_next_start(
    runs: Runs,
) -> None:
    first = runs.start(child("worker"), table=True)
    keep(first.ready(), "a")
    family = first.family()
    programs = [process for process in family if "python" in process.name()]
    servers = [process.pid for process in family if process not in programs]
    assert servers
    kill_all(programs)
    second = runs.start(child("worker"), table=True)
    assert kept(second.ready()) == (["a"], ["a"])
    assert none_runs(servers)
    stop(second)


def test_workers_left_without_supervisor_and_guardian_are_ended_before_a_port_is_looked_at(
    runs: Runs,
) -> None:
    listens = (
        "import os, socket, time\n"
        "held = socket.create_server(('127.0.0.1', int(os.environ['ASSIGNMENT_WORKERS_FLOWER_PORT'])))\n"
        "print('listens', flush=True); time.sleep(600)"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        env = NO_SERVERS | {"ASSIGNMENT_WORKERS_FLOWER_PORT": str(free.getsockname()[1])}
    first = runs.start(child("flower", listens), child("worker"), env=env)
    first.ready()
    first.wait_for("listens")
    left = [first.pid_of(name) for name in ("flower", "worker")]
    kill_all([each for each in first.family() if each.pid not in left])
    assert all(psutil.pid_exists(pid) for pid in left)
    second = runs.start(child("flower", listens), child("worker"), env=env)
    second.ready()
    assert "ended 2 processes of a stack that was killed on this home" in second.said()
    assert none_runs(left)
    second.wait_for("listens")
    stop(second)


def test_a_process_that_has_the_id_of_an_earlier_worker_is_left_alone(runs: Runs) -> None:
    first = runs.start(child("worker"), env=NO_SERVERS)
    first.ready()
    stop(first)
    other = psutil.Process()
    (runs.home / "workers.json").write_text(f"[[{other.pid}, {other.create_time() - 60}]]")
    run = runs.start(child("worker"), env=NO_SERVERS)
    run.ready()
    assert "of a stack that was killed" not in run.said()
    stop(run)


def test_a_second_start_on_the_same_home_says_who_holds_it(runs: Runs) -> None:
    first = runs.start(child("worker"), env=NO_SERVERS)
    first.ready()
    second = runs.start(child("worker"), env=NO_SERVERS)
    assert second.code() == 1
    (line,) = second.said().splitlines()
    assert f"is held by process {first.pid} on " in line
    stop(first)


def test_a_port_of_ours_in_use_is_one_line_before_anything_is_started(runs: Runs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = runs.start(child("flower"), env={"ASSIGNMENT_WORKERS_FLOWER_PORT": port})
        assert run.code() == 2
    (line,) = run.said().splitlines()
    assert f"port {port}, for Flower, is in use by process {os.getpid()} (" in line
    assert "set ASSIGNMENT_WORKERS_FLOWER_PORT to another" in line
    assert not (runs.home / "postgres").exists()


def test_the_gateway_s_port_matters_only_to_a_gateway(runs: Runs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = NO_SERVERS | {"ASSIGNMENT_WORKERS_GATEWAY_PORT": str(taken.getsockname()[1])}
        without = runs.start(child("worker"), env=env)
        assert without.ready().gateway_url is None
        stop(without)
        assert runs.start(child("gateway"), env=env).code() == 2


def test_a_home_that_cannot_be_written_is_one_line(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runs.home = tmp_path / "file"
    run = runs.start(child("worker"))
    assert run.code() == 2
    (line,) = run.said().splitlines()
    assert str(runs.home) in line


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_a_server_that_dies_is_told_and_started_again_where_it_was(runs: Runs, name: str) -> None:
    run = runs.start(child("worker"), table=True)
    stack = run.ready()
    keep(stack, "a")
    os.kill(run.pid_of(name), signal.SIGKILL)
    said = run.wait_for(f"{name} serves again")
    assert said.count(f"{name} ended with signal SIGKILL") == 1
    assert said.count("worker started") == 1
    assert kept(stack) == (["a"], ["a"])
    stop(run)


def test_a_server_that_cannot_be_started_again_ends_the_stack(runs: Runs) -> None:
    run = runs.start(child("worker"))
    run.ready()
    family = [process.pid for process in run.family()]
    (runs.home / "postgres" / "data" / "global" / "pg_control").unlink()
    os.kill(run.pid_of("postgres"), signal.SIGKILL)
    assert run.code() == 1
    told = [line for line in run.said().splitlines() if "stopping: " in line]
    assert len(told) == 1
    assert "postgres ended with exit status" in told[0]
    assert "pg_control" in told[0]
    assert none_runs(family)


def test_children_that_end_while_a_server_is_down_wait_for_it(runs: Runs) -> None:
    needs = """
import os, time, psycopg
with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as connection:
    print('works')
    while True:
        connection.execute('SELECT 1'); time.sleep(0.01)
"""
    run = runs.start(child("worker", needs))
    run.wait_for("works")
    os.kill(run.pid_of("postgres"), signal.SIGKILL)
    said = run.wait_for("| works", times=2)
    assert said.rindex("postgres serves again") < said.rindex("worker started")
    stop(run)


def test_a_signal_while_it_starts_ends_it_at_once(runs: Runs) -> None:
    run = runs.start(child("worker"), migrate_seconds=2)
    run.wait_for("MIGRATING")
    family = [process.pid for process in run.family()]
    run.popen.send_signal(signal.SIGINT)
    assert run.code(seconds=10) == 0
    assert none_runs(family)
    assert "worker started" not in run.said()
    assert "Traceback" not in run.said()


def test_a_signal_while_the_data_are_made_leaves_a_home_that_starts(runs: Runs) -> None:
    run = runs.start(child("worker"))
    run.wait_for("valkey started")
    run.popen.send_signal(signal.SIGINT)
    assert run.code() == 0
    again = runs.start(child("worker"))
    again.ready()
    stop(again)


def test_only_the_server_whose_address_is_not_set_is_started(
    runs: Runs, postgres_server: str
) -> None:
    run = runs.start(child("worker", ADDRESSES), env={"DATABASE_URL": postgres_server})
    stack = run.ready()
    assert stack.database_url == postgres_server
    assert "ASSIGNMENT_WORKERS_EMBEDDED false" in run.wait_for("ASSIGNMENT_WORKERS_EMBEDDED")
    assert "postgres started" not in run.said()
    with redis.Redis.from_url(stack.redis_url) as client:
        assert client.ping()
    stop(run)


def test_servers_are_out_of_reach_of_the_terminal(runs: Runs) -> None:
    run = runs.start(child("worker"))
    run.ready()
    mine = os.getsid(run.pid)
    direct = psutil.Process(run.pid).children()
    assert len(direct) == 4  # both servers, the worker, the guardian
    assert mine not in {os.getsid(process.pid) for process in direct}
    stop(run)
