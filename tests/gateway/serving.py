"""A stack with a gateway, and a token of each role, for as long as a block runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis

from assignment_workers.gateway.auth import tokens
from assignment_workers.schema import roles
from tests.gateway.stage import Gateway
from tests.support.processes import Stack, running, wait_until
from tests.support.servers import free_port


@contextmanager
def serving(
    name: str,
    postgres_server: str,
    migrated_template: str,
    valkey_server: str,
    folder: Path,
    *,
    redis_database: int,
    **settings: str,
) -> Iterator[Gateway]:
    """On a PostgreSQL database of its own; `settings` are every process's."""
    database = f"{name}_{os.getpid()}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {database} TEMPLATE {migrated_template}")
    database_url = f"{postgres_server.rpartition('/')[0]}/{database}"
    redis_url = f"{valkey_server.rpartition('/')[0]}/{redis_database}"
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    settings = {"command_key": COMMAND_KEY, **settings}
    with running(database_url, redis_url, folder) as stack:
        stack.seed(users=1000)
        made = new_tokens(stack)
        login = with_roles(database_url)
        stack.database_url = login(roles.WORKER)
        stack.start("sequencer", **settings)
        stack.start("maintenance", **settings)
        stack.database_url = login(roles.GATEWAY)
        port = free_port()
        process = stack.start(
            "gateway",
            **{
                "gateway_port": str(port),
                "gateway_agent_rate": "200",
                "gateway_refusal_rate": "100000",
                **settings,
            },
        )
        stack.database_url = database_url
        stack.wait_for_leader()
        stack.regenerate(stack.client())
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
        admin.execute(f"DROP DATABASE {database} WITH (FORCE)")


def with_roles(database_url: str) -> Callable[[str], str]:
    """Give the database its roles of least privilege; the address of a role is what is returned."""
    roles.apply(
        database_url,
        passwords=dict.fromkeys((roles.WORKER, roles.GATEWAY, roles.READER), PASSWORD),
    )
    host = database_url.rpartition("@")[2]
    return lambda role: f"postgresql://{role}:{PASSWORD}@{host}"


PASSWORD = "a-password-of-tests"
COMMAND_KEY = "a-key-that-every-process-of-the-stack-has"


def new_tokens(stack: Stack) -> dict[str, str]:
    made: dict[str, str] = {}
    with stack.engine.begin() as connection:
        for role in ("frontend", "supervisor", "operator"):
            made[role] = tokens.create(connection, role)
        for agent in (1, 2):
            made[f"agent {agent}"] = tokens.create(connection, "agent", agent_id=agent)
    return made
