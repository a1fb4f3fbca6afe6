"""docs/how-to/back-up.md as it is typed: what a dump brings back, and how it goes on from there."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from assignment_workers.assignment.answers import Assigned
from assignment_workers.assignment.history.history import check
from assignment_workers.devstack import postgres
from assignment_workers.policy.process_dialer import loaded
from tests.support.root import ROOT
from tests.support.world import UNSIGNED, User, World, opened

PAGE = ROOT / "docs" / "how-to" / "back-up.md"
BOUND = timedelta(seconds=60)
TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname IN ('assignment', 'public', 'crm') ORDER BY 1
"""


def contents(world: World) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    return {
        table: sorted(world.column(f"SELECT each::text FROM {table} each"))
        for table in world.column(TABLES)
    }


def test_a_dump_is_restored_as_typed_and_agents_go_on_with_what_they_held(
    world: World, database_url: str, tmp_path: Path
) -> None:
    world.add_agents(1, 2, 3, 4, 5)
    world.add_users(User(number) for number in range(1, 9))
    world.regenerate(UNSIGNED)
    held = [world.held(agent) for agent in (1, 2, 3)]
    world.complete(held[0])
    server = urlsplit(database_url)
    environment = {
        "PATH": f"{postgres.find_programs()}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": str(server.hostname),
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "DATABASE_URL": database_url,
        "OWNER": str(server.username),
    }
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    try:
        for block in blocks:
            subprocess.run(
                ["/bin/sh", "-e", "-c", block],
                cwd=tmp_path,
                env=environment,
                check=True,
                capture_output=True,
                timeout=60,
            )
        restored_url = server._replace(path="/dialer").geturl()
        with opened(restored_url) as restored:
            assert contents(restored) == contents(world)
            assert restored.unhealthy() == []
            with restored.engine.connect() as connection:
                assert (
                    check(connection, dialer=loaded(), settings=world.settings, bound=BOUND) == []
                )
            restored.now, restored.randomness = world.now, world.randomness
            for hold in held[1:]:
                again = restored.ask(hold.agent_id, request_id=f"after {hold.agent_id}")
                assert isinstance(again, Assigned)
                assert again.assignment.id == hold.id
            fresh = restored.ask(4, request_id="after 4")
            assert isinstance(fresh, Assigned)
            assert fresh.assignment.user_id not in {hold.user_id for hold in held}
            restored.complete(held[1])
            restored.regenerate(UNSIGNED)
            assert restored.unhealthy() == []
    finally:
        with psycopg.connect(
            f"postgresql://postgres@{server.hostname}:{server.port}/postgres", autocommit=True
        ) as admin:
            admin.execute("DROP DATABASE IF EXISTS dialer WITH (FORCE)")


def test_the_page_names_the_tools_that_the_server_brings() -> None:
    for tool in ("pg_dump", "pg_dumpall", "pg_restore", "psql", "createdb"):
        assert f"{tool} " in PAGE.read_text()
