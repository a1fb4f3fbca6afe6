"""A Node program with the `pg` driver and Prisma's SQL, unchanged before and after the switch."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from assignment_workers.adoption.migrate import migrate
from assignment_workers.adoption.rollback import rollback
from assignment_workers.settings import Settings
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, STATES, UNSIGNED, connected
from tests.e2e.node import Node
from tests.support.root import ROOT

READER = ROOT / "examples/old-reader"


@pytest.mark.parametrize(
    ("name", "agent"), [("deployed", "assigned_to_agent"), ("target", "assigned_to_agent_id")]
)
def test_the_old_reader_reads_the_same_and_its_write_is_refused_with_a_word(
    empty_database_url: str, name: str, agent: str
) -> None:
    url = empty_database_url
    Node.require(READER / "node_modules/pg/package.json")

    def read(table: str) -> Any:
        said = Node.run("read.mjs", table, agent, folder=READER, variables={"DATABASE_URL": url})
        assert (said.returncode, said.stderr) == (0, "")
        return json.loads(said.stdout)

    with connected(url) as connection:
        STATES[name](connection)
        connection.execute(
            "INSERT INTO user_call_scores (id, user_id, current_queue_type, updated_at) "
            "SELECT gen_random_uuid(), n, CASE WHEN n > 10 THEN 'outstanding_requests' "
            "ELSE 'unsigned_users' END, now() FROM generate_series(1, 20) n"
        )
        for table, user in ((UNSIGNED, 1), (OUTSTANDING, 11)):
            dialers.queue(
                connection,
                table,
                (user, 1, "assigned", user),
                (user + 1, 3, "pending", None),
                (user + 2, 2, "pending", None),
            )
    before = {table: read(table) for table in (UNSIGNED, OUTSTANDING)}
    assert before[UNSIGNED] == {
        "first": 3,
        "groups": {"assigned": 1, "pending": 2},
        "many": [[1, "assigned", 1], [3, "pending", None], [2, "pending", None]],
        "update": 1,
    }
    migrate(url, settings=Settings.from_environment({}), tell=lambda _: None)
    for table, seen in before.items():
        after = read(table)
        assert "POST /v1/requests" in after.pop("update")
        assert after == {key: value for key, value in seen.items() if key != "update"}
    rollback(url)
    assert {table: read(table) for table in before} == before


READS = ("findFirst", "findUnique", "findMany", "everyColumn", "count", "groupBy", "aggregate")
REFUSED = (
    "update",
    "updateMany",
    "create",
    "createMany",
    "upsertByTwo",
    "delete",
    "deleteMany",
    "transaction",
)


@contextmanager
def across(url: str, agent: str) -> Iterator[Any]:
    """The example on one connection: called, it sends every statement and returns what was said."""
    with subprocess.Popen(
        [Node.PROGRAM, "across.mjs", UNSIGNED, agent],
        cwd=READER,
        env=dict(os.environ) | {"DATABASE_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sending, answers = process.stdin, process.stdout

        def everything() -> dict[str, Any]:
            print(file=sending, flush=True)
            said: dict[str, Any] = json.loads(answers.readline())
            return said

        yield everything
        sending.close()
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("name", "agent"), [("deployed", "assigned_to_agent"), ("target", "assigned_to_agent_id")]
)
def test_named_statements_of_one_connection_say_the_documented_thing_across_the_switch_and_back(
    empty_database_url: str, name: str, agent: str
) -> None:
    url = empty_database_url
    Node.require(READER / "node_modules/pg/package.json")
    with connected(url) as connection:
        STATES[name](connection)
        connection.execute(
            "INSERT INTO user_call_scores (id, user_id, current_queue_type, updated_at) "
            "SELECT gen_random_uuid(), n, 'unsigned_users', now() FROM generate_series(1, 4) n"
        )
        dialers.queue(
            connection,
            UNSIGNED,
            (1, 1, "assigned", 1),
            (2, 3, "pending", None),
            (3, 2, "pending", None),
        )
    with across(url, agent) as everything:
        before = everything()
        claims = before.pop("claimCallback")
        assert claims == 1 if name == "deployed" else "does not exist" in claims
        assert before == {
            "findFirst": [3],
            "findMany": [[1, "assigned", 1], [3, "pending", None], [2, "pending", None]],
            "everyColumn": 3,
            "findUnique": 1,
            "count": 2,
            "groupBy": {"assigned": 1, "pending": 2},
            "aggregate": 3,
            "update": 2,
            "updateMany": 2,
            "create": 1,
            "createMany": 2 if name == "deployed" else 1,
            "upsertByTwo": 1,
            "upsert": 1,
            "delete": 1,
            "deleteMany": 3,
            "forUpdateSkipLocked": 1,
            "transaction": 1,
            "createCallback": 1,
        }
        migrate(url, settings=Settings.from_environment({}), tell=lambda _: None)
        after = everything()
        for read in READS:
            assert after[read] == before[read], read
        for write in REFUSED:
            assert "POST /v1/requests" in after[write], write
        assert "outer join" in after["forUpdateSkipLocked"]
        assert "ON CONFLICT" in after["upsert"]
        assert (after["createCallback"], after["claimCallback"]) == (1, 1)
        with connected(url) as connection:
            assert connection.execute("SELECT count(*) FROM callbacks").fetchone() == (0,)
        rollback(url)
        assert everything() == before | {"claimCallback": 1}
