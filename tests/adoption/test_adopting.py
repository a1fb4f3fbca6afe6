"""docs/adopting.md: its commands, run in their order on a dialer's database."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from assignment_workers.adoption import promises
from assignment_workers.adoption.compare import Compared, compare
from assignment_workers.adoption.migrate import BATCH, LOCK_AT_MOST, SWITCH_AT_MOST
from assignment_workers.adoption.shapes import KEPT
from assignment_workers.errors import UsageError
from assignment_workers.schema import online
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.engine import driver_url
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected
from tests.support.commands import type_in
from tests.support.root import ROOT

DOCUMENT = (ROOT / "docs/adopting.md").read_text()


def dialer(url: str) -> None:
    """A deployed dialer beside its CRM: 1 and 2 are eligible, 3 has signed, 4 is disabled."""
    with connected(url) as connection:
        dialers.deployed(connection)
        connection.execute("CREATE SCHEMA crm")
    engine = create_engine(driver_url(url))
    with engine.begin() as made:
        CrmUser.metadata.create_all(made, tables=CrmBase.metadata.sorted_tables)
    engine.dispose()
    with connected(url) as connection:
        connection.execute(
            "INSERT INTO crm.users (id, is_enabled, current_signature_file_id, created_at) "
            "SELECT n, n <> 4, CASE WHEN n = 3 THEN 'file' END, now() FROM generate_series(1, 4) n"
        )
        connection.execute(
            "INSERT INTO user_call_scores (id, user_id, current_queue_type, updated_at) "
            "SELECT gen_random_uuid(), n, 'unsigned_users', now() FROM generate_series(1, 5) n"
        )
        dialers.queue(
            connection,
            UNSIGNED,
            *((user, user, "pending", None) for user in (2, 3, 4, 5, 6)),
            (7, 7, "completed", None),
        )


def run_command(url: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """By `DATABASE_URL` alone, as the runbook has it."""
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return type_in(words, environment | {"DATABASE_URL": url, "ASSIGNMENT_WORKERS_HOME": str(home)})


def test_compare_says_whom_one_side_only_would_offer_and_by_which_rule(
    empty_database_url: str,
) -> None:
    dialer(empty_database_url)
    engine = create_engine(driver_url(empty_database_url))
    with engine.connect() as connection:
        found = compare(connection, None, now=datetime.now(UTC))
    engine.dispose()
    rules = {(each.only, each.first): each.rule for each in found}
    assert [(each.queue, each.users) for each in found] == [("unsigned_users", 1)] * 5
    assert rules["ours", 1] == "meets every rule"
    assert rules["theirs", 5] == "not_in_crm"
    assert rules["theirs", 6] == "no_score_row"
    assert "sign" in rules["theirs", 3]
    assert rules["theirs", 3] != rules["theirs", 4]
    assert isinstance(found[0], Compared)


def test_whoever_may_only_read_can_look_compare_and_plan(
    empty_database_url: str, tmp_path: Path
) -> None:
    """The embedded server lets no second role in, so it is its sessions that may only read."""
    dialer(empty_database_url)
    reader = f"{empty_database_url}?options=-cdefault_transaction_read_only%3Don"
    for words, code in (("inspect", 1), ("compare", 0), ("migrate --dry-run", 0)):
        done = run_command(reader, tmp_path, "schema", *words.split())
        assert (done.returncode, done.stderr) == (code, ""), words


def test_compare_needs_the_dialers_tables(database_url: str) -> None:
    engine = create_engine(driver_url(database_url))
    with engine.connect() as connection, pytest.raises(UsageError, match="nothing to compare"):
        compare(connection, None, now=datetime.now(UTC))
    engine.dispose()


def test_the_runbooks_commands_do_what_it_says(empty_database_url: str, tmp_path: Path) -> None:
    dialer(empty_database_url)
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert [line.split()[2] for line in lines] == [
        "inspect",
        "compare",
        "migrate",
        "migrate",
        "inspect",
        "rollback",
    ]
    for line in lines:
        words, _, said = line.partition("#")
        done = run_command(empty_database_url, tmp_path, *words.split()[1:])
        assert (done.returncode, done.stderr) == (1 if "exits 1" in said else 0, ""), line
    with connected(empty_database_url) as connection:
        assert connection.execute(
            "SELECT relname, relkind::text FROM pg_class WHERE relname IN (%s, %s) ORDER BY 1",
            [UNSIGNED, OUTSTANDING],
        ).fetchall() == [(OUTSTANDING, "r"), (UNSIGNED, "r")]


def test_the_runbooks_figures_are_those_of_the_code() -> None:
    assert f"{BATCH:,} rows at a time" in DOCUMENT
    assert f"at most {round(LOCK_AT_MOST.total_seconds() * 1000)} ms" in DOCUMENT
    assert f"{round(SWITCH_AT_MOST.total_seconds() * 1000)} ms for the switch" in DOCUMENT
    assert f"cancelled {online.AT_A_TIME} at a time" in DOCUMENT
    assert f"settled {promises.AT_A_TIME} at a time" in DOCUMENT
    assert f"`{UNSIGNED}{KEPT}`" in DOCUMENT
