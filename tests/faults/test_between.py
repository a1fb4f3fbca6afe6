"""What stands between the processes and their servers: a pooler, a Redis that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from assignment_workers.client import Assigned, Finished
from assignment_workers.devstack import valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.server import Server
from assignment_workers.runtime.home import Home
from assignment_workers.schema.engine import driver_url
from tests.support.processes import Stack, running
from tests.support.servers import PGBOUNCER, OwnServer, free_port, pooler

needs_pooler = pytest.mark.skipif(
    not PGBOUNCER.exists(), reason="PgBouncer is not installed (Debian: apt install pgbouncer)"
)


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with running(database_url, redis_url, tmp_path) as made:
        yield made


@pytest.fixture
def pooled(stack: Stack, tmp_path: Path, guardian: Guardian) -> Iterator[str]:
    """The address of the stack's database through a pooler."""
    made = OwnServer(partial(pooler, stack.database_url), tmp_path / "pooler", guardian)
    yield made.url
    made.stop()


@needs_pooler
def test_the_whole_stack_works_behind_a_pooler_that_is_told_of(stack: Stack, pooled: str) -> None:
    direct, stack.database_url = stack.database_url, pooled
    stack.start("sequencer", lock_database_url=direct)
    client = stack.built(users=200)
    for agent in range(1, 31):  # more than a connection prepares a statement after
        answer = client.request_next(agent)
        assert isinstance(answer, Assigned)
        held = answer.assignment
        done = client.complete(held.id, agent, "no_answer", version=held.version)
        assert isinstance(done, Finished)
    stack.assert_healthy()
    limits = text("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
    stranger = create_engine(driver_url(pooled))
    with stranger.connect() as connection:
        assert connection.execute(limits).one() == ("0", "0"), "ours do not stay with a session"
    stranger.dispose()


@needs_pooler
@pytest.mark.parametrize("name", ["sequencer", "gateway"])
def test_a_pooler_in_the_place_of_the_server_is_refused(
    stack: Stack, pooled: str, name: str
) -> None:
    stack.database_url = pooled
    process = stack.start(name, gateway_tokens="off")
    process.popen.wait(30)
    (said,) = process.said().splitlines()
    assert said.startswith("assignment-workers: DATABASE_URL leads to a connection pooler; ")
    assert said.endswith("give its address as ASSIGNMENT_WORKERS_LOCK_DATABASE_URL")
    assert process.popen.returncode == 2


OF_A_CLUSTER = "cluster-enabled yes"
UNFIT = {
    OF_A_CLUSTER: (
        "a Redis in cluster mode, which has no one order of messages; use one primary with replicas,"
        " and Sentinel to fail over: sentinel://host:26379/0?master_name=…"
    ),
    "replicaof 127.0.0.1 1": "a replica, which takes no messages; the primary is needed",
    "maxmemory-policy allkeys-lru": (
        "a Redis that may throw messages away (maxmemory-policy allkeys-lru); noeviction is needed"
    ),
}


@pytest.mark.parametrize("configuration", UNFIT)
@pytest.mark.parametrize("setting", ["REDIS_URL", "BROKER_URL"])
def test_a_redis_that_cannot_keep_the_line_is_refused(
    stack: Stack, test_home: Home, guardian: Guardian, setting: str, configuration: str
) -> None:
    def prepare(directory: Path) -> Server:
        prepared = valkey.prepare(directory, fsync=False)
        with (directory / "valkey.conf").open("a") as file:
            file.write(f"{configuration}\n")
            if configuration == OF_A_CLUSTER:
                # Its own default is 10,000 above the other, where anybody may be.
                file.write(f"cluster-port {free_port()}\n")
        return prepared

    directory = test_home.path / f"valkey-{setting}-{len(configuration)}"
    own = OwnServer(prepare, directory, guardian)
    try:
        if setting == "REDIS_URL":
            stack.redis_url = own.url
        else:
            stack.broker_url = own.url
        process = stack.start("sequencer")
        process.popen.wait(30)
        assert process.said() == f"assignment-workers: {setting} leads to {UNFIT[configuration]}\n"
        assert process.popen.returncode == 2
    finally:
        own.stop()
