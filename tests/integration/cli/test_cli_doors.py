"""The command, used wrongly or without its servers: the exit code and the one line that it says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from assignment_workers.policy.process_dialer import loaded
from assignment_workers.tasks.process import PROCESSES
from tests.support.commands import dialer_of_the_run
from tests.support.processes import running
from tests.support.shell import FAILED, OURS, USED_WRONGLY, Said, Shell
from tests.support.world import UNSIGNED, User, opened

COMMAND = Path(sys.executable).with_name("assignment-workers")
ID = "019ab000-0000-7000-8000-000000000001"


@pytest.fixture
def nobody() -> Iterator[str]:
    """Host and port of a server that refuses every connection: taken, and not listened to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nonsense"], ["nonsense"]),
        (["schema", "nonsense"], ["nonsense"]),
        (["status", "--nonsense"], ["--nonsense"]),
        (["request"], ["agent"]),
        (["request", "twenty"], ["agent", "integer"]),
        (["request", "0"], ["agent", "greater than or equal to 1"]),
        (["request", "26", "--timeout", "0"], ["--timeout", "0.1"]),
        (["agents", "state", "26", "asleep"], ["value for 'becomes': 'asleep' is not", "'break'"]),
        (["skip", ID], ["--agent"]),
        (["skip", "26", "--agent", "26"], ["'26'", "assignment's id", "0000-"]),
        (["dead-letters", "show", "last"], ["number", "integer"]),
        (["report", "--since=a day"], ["--since", "'a day'", "24h"]),
        (["report", "--since=9999999d"], ["--since", "up to 3650d"]),
        (["explain"], ["a user", "--queue"]),
        (["explain", "26", "--queue=unsigned_users"], ["one of the two"]),
        (["explain", "--queue=signed_users"], ["'signed_users'", *loaded().policies]),
        (["explain", "nobody"], ["user", "whole number"]),
        (["drain", "signed_users"], ["'signed_users'", *loaded().policies]),
        (["regenerate", "signed_users"], ["'signed_users'", *loaded().policies]),
        (["pause", "unsigned_users", "--why="], ["--why", "1 to 500"]),
        (["quarantine", "release", "3", f"--why={'x' * 501}"], ["--why", "1 to 500"]),
        (["dead-letters", "replay", "1", "--why=\udcff"], ["--why", "1 to 500"]),
        (["process", "gatekeeper"], ["'gatekeeper'", *PROCESSES]),
        (
            ["complete", ID, "--agent=26", "--outcome=call_back", "--callback-at=tomorrow"],
            ["--callback-at", "'tomorrow'", "2026-11-23T15:00:00Z"],
        ),
        (
            ["complete", ID, "--agent=26", "--outcome=call_back", "--callback-at=2026-11-23T15:00"],
            ["--callback-at", "zone", "2026-11-23T15:00:00Z"],
        ),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_named_with_what_is_accepted(
    shell: Shell, nobody: str, words: list[str], named: list[str]
) -> None:
    said = shell.run(*words, DATABASE_URL=f"postgresql://{nobody}/d", REDIS_URL=f"redis://{nobody}")
    said.check(USED_WRONGLY, *named)


def test_a_wrong_process_is_named_where_no_stack_runs_too(shell: Shell) -> None:
    shell.run("process", "gatekeeper").check(USED_WRONGLY, "'gatekeeper'", *PROCESSES)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ASSIGNMENT_WORKERS_LEASE", "60", ["ASSIGNMENT_WORKERS_LEASE_SECONDS"]),
        ("ASSIGNMENT_WORKERS_CALLING_HOURS", "always", ["'always'", "mon-thu"]),
        ("ASSIGNMENT_WORKERS_LEASE_SECONDS", "soon", ["'soon'", "seconds"]),
        ("DATABASE_URL", "mysql://u:hunter2@127.0.0.1/d", ["mysql", "postgresql"]),
        ("DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:port/d", ["port"]),
        ("REDIS_URL", "127.0.0.1:6379", ["redis, rediss"]),
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:port/0", ["port"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_accepted(
    shell: Shell, nobody: str, variable: str, value: str, named: list[str]
) -> None:
    servers = {"DATABASE_URL": f"postgresql://{nobody}/d", "REDIS_URL": f"redis://{nobody}"}
    said = shell.run("status", "--json", **servers | {variable: value})
    said.check(USED_WRONGLY, variable, *named)


@pytest.mark.parametrize("start", [[str(COMMAND)], [sys.executable, "-m", "assignment_workers"]])
def test_it_is_installed_and_starts_by_itself(shell: Shell, start: list[str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in OURS}
    done = subprocess.run(
        [*start, "status"],
        cwd=shell.folder,
        env=inherited | dialer_of_the_run(shell.folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    Said(done.returncode, done.stdout, done.stderr).check(USED_WRONGLY, "assignment-workers up")


@pytest.mark.parametrize("words", [["status"], ["request", "26"], ["process", "sequencer"]])
def test_without_a_stack_it_says_how_to_start_one(shell: Shell, words: list[str]) -> None:
    said = shell.run(*words)
    said.check(USED_WRONGLY, "assignment-workers up", "DATABASE_URL", "REDIS_URL")


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["doctor", "--json"],
        ["explain", "26"],
        ["dead-letters", "list", "--json"],
        ["schema", "migrate"],
        ["schema", "migrate", "--dry-run"],
        ["process", "sequencer"],
        ["process", "maintenance"],
    ],
    ids=" ".join,
)
def test_a_database_that_is_not_there_is_told_without_its_password(
    shell: Shell, nobody: str, redis_url: str, words: list[str]
) -> None:
    said = shell.run(*words, DATABASE_URL=f"postgresql://u:hunter2@{nobody}/d", REDIS_URL=redis_url)
    said.complains(FAILED, "the database cannot be reached", nobody.partition(":")[2])
    if words[0] != "status":
        assert said.output == ""
    else:  # it tells what it knows, the verdict first
        assert "hunter2" not in said.output
        verdict = json.loads(said.output)["health"] if "--json" in words else said.output
        assert "Agents are not served: PostgreSQL" in str(verdict)


@pytest.mark.parametrize(
    "words",
    [
        ["request", "26", "--timeout=1"],
        ["release", ID, "--agent=26"],
        ["pause", "unsigned_users"],
        ["regenerate"],
    ],
    ids=" ".join,
)
def test_a_redis_that_is_not_there_is_told_without_its_password(
    shell: Shell, nobody: str, database_url: str, words: list[str]
) -> None:
    with opened(database_url):  # with a CRM
        pass
    said = shell.run(*words, DATABASE_URL=database_url, REDIS_URL=f"redis://:hunter2@{nobody}")
    said.check(FAILED, "unavailable: Redis cannot be reached at", nobody.partition(":")[2])


def test_a_redis_that_is_not_there_is_an_answer_too(
    shell: Shell, nobody: str, database_url: str
) -> None:
    servers = {"DATABASE_URL": database_url, "REDIS_URL": f"redis://:hunter2@{nobody}"}
    answer = shell.run("request", "26", "--timeout=1", "--json", **servers).json(FAILED)
    assert answer["outcome"] == "unavailable"
    assert "hunter2" not in answer["reason"]


@pytest.mark.parametrize(
    "words",
    [["status"], ["doctor", "--json"], ["dead-letters", "list"], ["process", "maintenance"]],
    ids=" ".join,
)
def test_hazard_e3_a_database_without_our_schema_is_told_with_what_mends_it(
    shell: Shell, empty_database_url: str, redis_url: str, words: list[str]
) -> None:
    said = shell.run(*words, DATABASE_URL=empty_database_url, REDIS_URL=redis_url)
    said.complains(
        FAILED, "the schema `assignment` is not there", "assignment-workers schema migrate"
    )


def test_a_database_without_the_users_of_a_crm_is_not_called_good(
    shell: Shell, database_url: str, redis_url: str
) -> None:
    """Every guarantee holds there, and nobody can be handed out."""
    without_crm(database_url)
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    with running(database_url, redis_url, shell.folder) as stack:
        stack.start("sequencer")
        stack.wait_for_leader()
        checks = {each["check"]: each for each in shell.run("doctor", "--json", **servers).json(1)}
        told = shell.run("status", **servers)
    broken = [name for name, each in checks.items() if not each["ok"]]
    assert broken == ["CRM serves agents"]
    assert "crm.users" in str(checks["CRM serves agents"]["examples"])
    assert told.code == 1
    assert told.output.startswith("Agents are not served: CRM: cannot be read")


@pytest.mark.parametrize(
    "words", [["regenerate"], ["explain", "1"], ["explain", "--queue", UNSIGNED]], ids=" ".join
)
def test_without_the_tables_of_a_crm_a_command_says_what_to_do_first(
    shell: Shell, database_url: str, redis_url: str, words: list[str]
) -> None:
    without_crm(database_url)
    said = shell.run(*words, DATABASE_URL=database_url, REDIS_URL=redis_url)
    said.check(FAILED, 'relation "crm.users" does not exist', "create and fill the CRM's tables")


def test_a_dialer_is_good_without_the_tables_of_a_crm_and_its_rules_are_not_tried(
    shell: Shell, database_url: str, redis_url: str
) -> None:
    without_crm(database_url)
    said = shell.run("dialer", "check", DATABASE_URL=database_url, REDIS_URL=redis_url)
    said.complains(0, "the rules were not tried", "crm.users", "create and fill the CRM's tables")
    assert "good: dialer queues" in said.output


def without_crm(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS crm CASCADE")


def test_what_the_sequencer_refuses_is_told_with_its_code(
    shell: Shell, database_url: str, redis_url: str
) -> None:
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    with running(database_url, redis_url, shell.folder) as stack:
        stack.seed(users=20)
        stack.start("sequencer")
        stack.wait_for_leader()

        unknown = shell.run("request", "999999", **servers)
        unknown.check(USED_WRONGLY, "refused (unknown_agent)", "999999")
        answer = shell.run("request", "999999", "--json", **servers).json(USED_WRONGLY)
        assert (answer["outcome"], answer["code"]) == ("refused", "unknown_agent")

        for words in (["request", "26", "--queue=signed_users"], ["pause", "signed_users"]):
            said = shell.run(*words, **servers)
            queues = loaded().policies
            said.check(USED_WRONGLY, "refused (unknown_queue)", "'signed_users'", *queues)

        lost = shell.run("release", ID, "--agent=26", **servers)
        lost.check(USED_WRONGLY, "refused (unknown_assignment)", ID)
        would = shell.run("drain", "unsigned_users", "--dry-run", **servers)
        assert (would.code, would.output) == (0, "would be taken out of unsigned_users: 0\n")
        drained = shell.run("drain", "unsigned_users", **servers)
        assert (drained.code, drained.complaint) == (0, "")
        assert "taken out of unsigned_users: 0" in drained.output
        suppressed = shell.run("do-not-contact", "add", "--user=3", "--why=asked", **servers)
        assert (suppressed.code, suppressed.output) == (0, "suppressed\n")
        (listed,) = shell.run("do-not-contact", "list", "--json", **servers).json(0)
        assert (listed["user_id"], listed["reason"]) == (3, "asked")
        suppress_by_number(shell, servers)
        nobody = shell.run("do-not-contact", "add", "--why=asked", **servers)
        nobody.check(USED_WRONGLY, "refused (malformed)", "a user or a phone number")
        free = shell.run("quarantine", "release", "3", "--why=mended", **servers)
        free.check(USED_WRONGLY, "refused (not_suppressed)", "user 3")
        assert shell.run("quarantine", "list", "--json", **servers).json(0) == []
        kept = stack.rows(
            "SELECT action, subject, why, outcome FROM assignment.operator_actions ORDER BY id"
        )
        assert kept == [
            ("pause", "signed_users", None, kept[0].outcome),
            ("take_out", "unsigned_users", None, "done"),
            ("do_not_contact", "3", "asked", "done"),
            ("import_suppressions", "tps", "November", "done"),
            ("drop_suppressions", "tps", "over", "done"),
            ("do_not_contact", "a phone number", "asked", kept[5].outcome),
            ("do_not_contact", "a phone number", "asked", "done"),
            ("do_not_contact", "a phone number", "asked", kept[7].outcome),
            ("release_from_quarantine", "3", "mended", kept[8].outcome),
        ]
        assert all(kept[place].outcome.startswith("refused: ") for place in (0, 5, 7, 8))
        odd = shell.run("complete", ID, "--agent=26", "--outcome=won", **servers)
        odd.check(USED_WRONGLY, "refused (unknown_outcome)", "'won'", "completed_form")


def suppress_by_number(shell: Shell, servers: dict[str, str]) -> None:
    """A register is imported and dropped, and a number is added by hand."""
    register = shell.folder / "register.csv"
    register.write_text("number;name\n(020) 7946 0001;Ann\nnobody;Bob\n")
    words = ["do-not-contact", "import", str(register), "--list=tps", "--why=November"]
    shell.run(*words, **servers).check(USED_WRONGLY, "1 lines are no phone number", "'nobody'")
    loaded = shell.run(*words, "--skip-unreadable", **servers)
    assert loaded.code == 0, loaded.complaint
    assert "list 'tps' stands" in loaded.output
    found = shell.run(
        "do-not-contact", "check", "tel:+44-20-7946-0001;ext=9", "--json", **servers
    ).json(FAILED)
    assert (found["suppressed"], found["numbers"]) == (True, ["+442079460001"])
    assert [each["name"] for each in found["lists"]] == ["tps"]
    export = shell.run("do-not-contact", "export", **servers)
    assert "+442079460001,,,tps" in export.output
    dropped = shell.run("do-not-contact", "drop", "tps", "--why=over", **servers)
    assert dropped.code == 0, dropped.complaint
    words = ["do-not-contact", "add", "--why=asked", "--source=a letter", "--until=2099-01-01"]
    said = shell.run(*words, "--phone=ask for 79460009", **servers)
    said.check(USED_WRONGLY, "refused (malformed)", "--raw")
    added = shell.run(*words, "--phone=(020) 7946 0009 x1", f"--queue={UNSIGNED}", **servers)
    assert (added.code, added.output) == (0, "suppressed\n0 users have it now\n")
    (newest, _) = shell.run("do-not-contact", "list", "--json", **servers).json(0)
    assert (newest["number"], newest["queue"]) == ("+442079460009", UNSIGNED)
    assert (newest["source"], newest["expires_at"][:10]) == ("a letter", "2099-01-01")


READ = [
    *(["status"], ["status", "--json"], ["doctor"], ["report"], ["report", "--json"]),
    *(["explain", "1"], ["explain", "--queue", "people"], ["agents", "list"], ["closed", "list"]),
    *(["settings", "list"], ["settings", "show", "lease"], ["dead-letters", "list"]),
    *(
        ["do-not-contact", "list"],
        ["dialer", "check"],
        ["dialer", "show"],
        ["person", "export", "1"],
    ),
]


@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_a_dialer_that_no_process_has_begun_with_yet_can_be_looked_at(
    shell: Shell, module_database_url: str, redis_url: str, words: list[str]
) -> None:
    """Its file was changed, and its dialer queues are not in the database."""
    servers = {"DATABASE_URL": module_database_url, "REDIS_URL": redis_url}
    with opened(module_database_url) as world:
        if not world.value("SELECT count(*) FROM crm.users"):
            world.add_users([User(1)])
    assert shell.run("dialer", "new", **servers).code == 0
    said = shell.run(*words, **servers)
    assert said.code in ({0, FAILED} if words[0] in {"status", "doctor"} else {0}), said
    assert all(each.startswith("assignment-workers: ") for each in said.complaint.splitlines())


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("gateway", "GATEWAY_PORT"),
        ("flower", "FLOWER_PORT"),
        ("sequencer", "METRICS_PORT"),
        ("maintenance", "METRICS_PORT"),
    ],
)
def test_a_port_that_is_taken_is_one_line_with_the_setting(
    shell: Shell, nobody: str, request: pytest.FixtureRequest, name: str, setting: str
) -> None:
    port = nobody.rpartition(":")[2]
    said = shell.run(
        *("process", name),
        DATABASE_URL=request.getfixturevalue("module_database_url"),
        REDIS_URL=request.getfixturevalue("redis_url"),
        ASSIGNMENT_WORKERS_FLOWER_BASIC_AUTH="ann:hunter2",
        ASSIGNMENT_WORKERS_METRICS_HOST="127.0.0.1",
        **{f"ASSIGNMENT_WORKERS_{setting}": port},
    )
    assert said.code == USED_WRONGLY, said
    (line,) = [each for each in said.complaint.splitlines() if each.startswith("assignment-w")]
    assert f"ASSIGNMENT_WORKERS_{setting}={port}" in line
    assert "cannot be listened on" in line
    assert "Traceback" not in said.complaint + said.output
