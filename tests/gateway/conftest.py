"""One stack with a gateway for all tests of this folder, and a token of each role."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from assignment_workers.gateway import tokens
from tests.gateway.stage import Gateway, free_port
from tests.processes import running, wait_until


@pytest.fixture(scope="package")
def gateway(
    postgres_server: str,
    migrated_template: str,
    valkey_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    name = f"gateway_{os.getpid()}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    database = f"{postgres_server.rpartition('/')[0]}/{name}"
    redis_url = f"{valkey_server.rpartition('/')[0]}/0"
    folder: Path = tmp_path_factory.mktemp("gateway")
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    with running(database, redis_url, folder) as stack:
        stack.seed(users=1000)
        made: dict[str, str] = {}
        with stack.engine.begin() as connection:
            for role in ("frontend", "supervisor", "operator"):
                made[role] = tokens.create(connection, role)
            for agent in (1, 2):
                made[f"agent {agent}"] = tokens.create(connection, "agent", agent_id=agent)
        stack.start("sequencer")
        stack.start("maintenance")
        stack.wait_for_leader()
        stack.regenerate(stack.client())
        port = free_port()
        process = stack.start("gateway", gateway_port=str(port), gateway_agent_rate="200")
        found = Gateway(stack, port, made)

        def ready() -> bool:
            assert process.popen.poll() is None, process.said()
            try:
                return found.get("/readyz", bearer=None).status == 200
            except OSError:
                return False

        wait_until(ready, "the gateway to be ready")
        yield found
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
