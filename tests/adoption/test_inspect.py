"""`schema inspect`: says exactly what is deployed, changes nothing and never guesses."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from assignment_workers.adoption.findings import Inspection
from assignment_workers.adoption.inspect import inspect
from assignment_workers.errors import SchemaMismatch
from assignment_workers.schema import migrate
from assignment_workers.schema.engine import driver_url
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, STATES, UNSIGNED, connected
from tests.support.commands import type_in

OF_OURS = {"agents", "user_call_scores", "callbacks", "missed_calls", "conversions"}


def inspected(url: str) -> Inspection:
    engine = create_engine(driver_url(url))
    with engine.connect() as connection:
        found = inspect(connection, None)
    engine.dispose()
    return found


def verdicts(report: Inspection) -> dict[str, str]:
    return {each.table: each.verdict.value for each in report.tables}


@pytest.mark.parametrize(
    ("state", "unsigned", "outstanding", "callbacks"),
    [
        ("nothing", "absent", "absent", "absent"),
        ("deployed", "deployed", "deployed", "deployed"),
        ("target", "target", "target", "target"),
        ("hybrid by column", "hybrid", "hybrid", "deployed"),
        ("hybrid by table", "deployed", "target", "deployed"),
        ("hybrid the other way", "deployed", "target", "deployed"),
        ("widened", "deployed", "deployed", "deployed"),
        ("someone else's", "unknown", "deployed", "deployed"),
    ],
)
def test_each_state_is_named(
    empty_database_url: str, state: str, unsigned: str, outstanding: str, callbacks: str
) -> None:
    with connected(empty_database_url) as connection:
        STATES[state](connection)
    found = inspected(empty_database_url)
    said = verdicts(found)
    assert "unknown" not in {said[table] for table in OF_OURS}
    assert (said[UNSIGNED], said[OUTSTANDING], said["callbacks"]) == (
        unsigned,
        outstanding,
        callbacks,
    )
    assert found.revision is None
    assert not found.is_ours


def test_a_database_of_ours_is_ours_and_an_older_revision_is_not(database_url: str) -> None:
    found = inspected(database_url)
    differences = [each for table in found.tables for each in table.differences]
    assert differences == []
    ours = {name for name, said in verdicts(found).items() if said == "ours"}
    assert {name for name in ours if not name.startswith("crm.")} == OF_OURS
    assert found.is_ours
    with connected(database_url) as connection:
        connection.execute("UPDATE assignment.schema_revision SET version_num = '0001'")
    assert not inspected(database_url).is_ours


def test_the_crms_tables_are_named_with_what_they_lack(empty_database_url: str) -> None:
    with connected(empty_database_url) as connection:
        connection.execute("CREATE SCHEMA crm")
        connection.execute(
            "CREATE VIEW crm.claims AS SELECT 1::bigint AS id, 2::bigint AS user_id, 'x' AS type,"
            " 'open' AS status, 'bank' AS lender, 3 AS theirs"
        )
        connection.execute("CREATE TABLE crm.users (id bigint, is_enabled boolean, status text)")
    found = inspected(empty_database_url)
    tables = {each.table: each for each in found.tables if each.table.startswith("crm.")}
    assert {name: (each.verdict.value, each.needed) for name, each in tables.items()} == {
        "crm.users": ("unknown", False),
        "crm.claims": ("ours", False),
        "crm.claim_requirements": ("absent", False),
    }
    lacks = {each.what for each in tables["crm.users"].differences}
    assert lacks >= {"current_signature_file_id", "created_at", "phone_number"}
    assert "status" not in lacks


def test_every_kind_of_difference_is_listed(empty_database_url: str) -> None:
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
        connection.execute(f"DROP INDEX {UNSIGNED}_queue_position_idx")
        connection.execute(f"ALTER TABLE {UNSIGNED} ALTER claim_id TYPE text")
        connection.execute(f"ALTER TABLE {UNSIGNED} ALTER queue_reason SET NOT NULL")
        connection.execute(f"ALTER TABLE {UNSIGNED} ALTER priority_score SET DEFAULT 9")
        connection.execute(f"ALTER TABLE {UNSIGNED} ADD UNIQUE (claim_id)")
        connection.execute(
            f"ALTER TABLE {UNSIGNED} ADD FOREIGN KEY (assigned_to_agent) REFERENCES agents"
        )
        connection.execute(f"ALTER TABLE {UNSIGNED} ADD theirs text")
    table = next(each for each in inspected(empty_database_url).tables if each.table == UNSIGNED)
    said = defaultdict(set)
    for each in table.differences:
        if each.than == "deployed":
            said[each.aspect].add((each.what, each.expected, each.found))
    assert table.verdict == "deployed"
    assert said == {
        "column": {("theirs", None, "text null")},
        "type": {("claim_id", "bigint", "text")},
        "null": {("queue_reason", "null", "not null")},
        "default": {("priority_score", "0", "9")},
        "unique": {("claim_id", None, "there")},
        "foreign key": {("assigned_to_agent -> agents", None, "there")},
        "index": {("queue_position", "there", None)},
    }


@pytest.mark.parametrize(
    "change", ["DROP COLUMN status", "ALTER user_id TYPE text", "DROP assigned_to_agent"]
)
def test_a_queue_table_without_what_is_read_of_it_is_unknown(
    empty_database_url: str, change: str
) -> None:
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
        connection.execute(f"ALTER TABLE {UNSIGNED} {change}".encode())
    assert verdicts(inspected(empty_database_url))[UNSIGNED] == "unknown"


def test_the_shapes_of_the_queue_tables_are_those_of_the_original(empty_database_url: str) -> None:
    """Each schema as PostgreSQL has it differs in nothing from what the code holds of it."""
    for name in ("deployed", "target"):
        with connected(empty_database_url) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            STATES[name](connection)
        for each in inspected(empty_database_url).tables:
            if each.table in (UNSIGNED, OUTSTANDING, "call_queue", "agent_sessions"):
                assert (each.table, each.verdict, each.differences) == (
                    each.table,
                    "deployed" if each.table == "call_queue" else name,
                    (),
                )


def test_rows_that_a_migration_has_to_decide_about_are_counted(empty_database_url: str) -> None:
    with connected(empty_database_url) as connection:
        dialers.dirty(connection)
    counts = {
        (each.table, each.what): each.count for each in inspected(empty_database_url).blockers
    }
    assert counts == {
        (UNSIGNED, "users twice in this queue"): 2,
        (UNSIGNED, "users in both queues"): 2,
        (UNSIGNED, "assigned with no agent"): 1,
        (UNSIGNED, "agents that do not exist"): 1,
        (UNSIGNED, "statuses outside the vocabulary"): 1,
        (UNSIGNED, "positions missing"): 0,
        (OUTSTANDING, "users twice in this queue"): 0,
        (OUTSTANDING, "assigned with no agent"): 0,
        (OUTSTANDING, "agents that do not exist"): 0,
        (OUTSTANDING, "statuses outside the vocabulary"): 0,
        (OUTSTANDING, "positions missing"): 0,
    }


def test_agent_columns_that_disagree_are_counted(empty_database_url: str) -> None:
    with connected(empty_database_url) as connection:
        dialers.hybrid_by_column(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "assigned", 7), (2, 2, "assigned", 8))
        connection.execute(f"UPDATE {UNSIGNED} SET assigned_to_agent_id = 8")
    counts = {each.what: each.count for each in inspected(empty_database_url).blockers}
    assert counts["agent columns that disagree"] == 1


def command(url: str, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    servers = {"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0"}
    environment = os.environ | servers | {"ASSIGNMENT_WORKERS_HOME": str(home)}
    return type_in(["schema", *words], environment)


def test_a_role_that_may_only_read_inspects_and_is_told_what_it_may_not_count(
    empty_database_url: str, tmp_path: Path
) -> None:
    with connected(empty_database_url) as connection:
        dialers.dirty(connection)
        connection.execute(f"REVOKE SELECT ON {OUTSTANDING} FROM CURRENT_USER")
    read_only = "options=-cdefault_transaction_read_only%3Don"
    said = command(f"{empty_database_url}?{read_only}", "inspect", "--json", home=tmp_path)
    assert (said.returncode, said.stderr) == (1, "")
    found = json.loads(said.stdout)
    assert found["is_ours"] is False
    counts = {(each["table"], each["what"]): each["count"] for each in found["blockers"]}
    assert counts[UNSIGNED, "users twice in this queue"] == 2
    assert counts[OUTSTANDING, "users twice in this queue"] is None


def test_the_command_says_ours_with_its_exit_code(database_url: str, tmp_path: Path) -> None:
    said = command(database_url, "inspect", home=tmp_path)
    assert (said.returncode, said.stderr) == (0, "")
    assert "user_call_scores" in said.stdout


def test_no_process_starts_while_the_dialers_own_queue_tables_are_there(database_url: str) -> None:
    with connected(database_url) as connection:
        dialers.build(connection, {UNSIGNED: "deployed"})
    engine = create_engine(driver_url(database_url))
    with engine.connect() as connection:
        with pytest.raises(SchemaMismatch) as refused:
            migrate.check(connection)
    engine.dispose()
    said = str(refused.value)
    assert f"public.{UNSIGNED} (column assigned_to_agent)" in said
    assert "`assignment-workers schema migrate`" in said
    assert "\n" not in said
