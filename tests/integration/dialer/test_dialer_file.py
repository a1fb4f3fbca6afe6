"""A stranger's dialer, from ten lines in a folder to an agent who is handed a user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from sqlalchemy import text

from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.claims.probes import plans
from assignment_workers.dialers import claims
from assignment_workers.policy.process_dialer import loaded, use
from tests.support.celery_programs import dialer_program
from tests.support.commands import type_in
from tests.support.dialers import EXAMPLES
from tests.support.example_crm import example_elsewhere
from tests.support.processes import Stack, wait_until
from tests.support.world import User, World

TEN_LINES = """\
from assignment_workers.dialer import Dialer, Outcome, Person, Queue, Rule

winback = Queue(
    "winback",
    "Former donors",
    rules=[Rule("disabled", Person.is_enabled.is_(True), means="disabled in the CRM")],
    order=[Person.created_at],
)
dialer = Dialer(queues=[winback], outcomes=[Outcome("reached", "Reached")])
"""


@pytest.fixture
def stack(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with ExitStack() as keep:
        yield Stack(database_url, redis_url, tmp_path, keep)


def test_a_stranger_s_queue_hands_an_agent_a_user(
    stack: Stack, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dialerconfig.py").write_text(TEN_LINES)
    world.add_users([User(each, has_score_row=False) for each in (11, 12)])
    world.execute("UPDATE crm.users SET is_enabled = id = 12, created_at = now()")
    world.execute(
        "INSERT INTO agents (id, email, allowed_queues)"
        """ VALUES (7, 'agent7@example.com', '["winback"]')"""
    )
    environment = {"DATABASE_URL": stack.database_url, "REDIS_URL": stack.redis_url}

    def typed(*words: str) -> Any:
        said = type_in(words, environment, tmp_path)
        assert said.returncode == 0, said.stderr
        return said

    checked = typed("dialer", "check")
    assert ("dialer queues 1" in checked.stdout, checked.stderr) == (True, "")
    stack.start("sequencer")
    stack.start("maintenance")
    stack.wait_for_leader()
    with dialer_program(stack.redis_url) as app:
        app.send_task("queue.discover", queue="maintenance", ignore_result=True)
    sql = "SELECT user_id FROM user_call_scores WHERE current_queue_type = 'winback'"
    wait_until(lambda: stack.rows(sql) == [(12,)], "user 12 in the pool")
    typed("regenerate", "winback", "--wait")
    answer = json.loads(typed("request", "7", "--json").stdout)
    assert (answer["assignment"]["user_id"], answer["assignment"]["queue"]) == (12, "winback")
    held = answer["assignment"]["id"]
    done = typed("complete", held, "--agent", "7", "--outcome", "reached", "--json").stdout
    assert json.loads(done)["outcome"] == "completed"
    wrong = type_in(
        ["complete", held, "--agent", "7", "--outcome", "no_answer"], environment, tmp_path
    )
    assert (wrong.returncode, "there are reached" in wrong.stderr) == (2, True)
    assert stack.rows("SELECT name FROM assignment.queues") == [("winback",)]
    described = json.loads(typed("explain", "11", "--json").stdout)
    assert "disabled" in json.dumps(described)


def test_a_process_does_not_start_on_a_wrong_file(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "dialerconfig.py"
    file.write_text(TEN_LINES.replace('"Former donors"', '""'))
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    for words in (
        ["process", "sequencer"],
        ["process", "gateway"],
        ["status"],
        ["dialer", "check"],
    ):
        said = type_in(words, environment, tmp_path)
        assert (said.returncode, said.stdout) == (2, ""), words
        assert said.stderr == f"assignment-workers: {file}: queue winback: title is missing\n"


def test_check_names_what_a_crm_in_another_database_lacks(
    world: World, database_url: str, postgres_server: str, tmp_path: Path
) -> None:
    file = EXAMPLES / "clinic" / "dialerconfig.py"
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'crm_mirror' ORDER BY 1"
    before = world.rows(tables)

    def check() -> CompletedProcess[str]:
        environment = {"DATABASE_URL": database_url, "CRM_DATABASE_URL": there.url}
        return type_in(["dialer", "check", str(file)], environment, tmp_path)

    with example_elsewhere("clinic", postgres_server) as there:
        good = check()
        assert (good.returncode, "good: dialer queues 3" in good.stdout) == (0, True), good.stderr
        assert "no index" not in good.stderr
        assert "not tried" not in good.stderr
        assert world.rows(tables) == before, "the mirror is that of the dialer that runs"
        there.change("ALTER TABLE clinic.results DROP COLUMN arrived_at")
        lacking = check()
        assert (lacking.returncode, lacking.stdout) == (2, "")
        assert lacking.stderr == (
            f"assignment-workers: {file}: CRM_DATABASE_URL: the CRM's table clinic.results lacks"
            " arrived_at\n"
        )


IN_THE_ENVIRONMENT = {
    "ASSIGNMENT_WORKERS_CALLS_PER_DAY": ("gone=3", "'gone=3': by dialer queue, as in winback=…"),
    "ASSIGNMENT_WORKERS_CALL_COOLDOWN_SECONDS": ("gone=3", "'gone=3': by dialer queue"),
    "ASSIGNMENT_WORKERS_LANES": ("second=gone", "no dialer queue 'gone'; there are winback"),
    "ASSIGNMENT_WORKERS_OUTCOMES": (
        '{"gone": {"score": 1}}',
        "no outcome 'gone'; there are reached",
    ),
    "ASSIGNMENT_WORKERS_CALLING_HOURS": ("nine to five", "'nine to five': days and hours, such as"),
}


@pytest.mark.parametrize("variable", IN_THE_ENVIRONMENT)
def test_an_environment_that_names_what_the_file_does_not_have_is_one_line(
    variable: str, tmp_path: Path
) -> None:
    value, why = IN_THE_ENVIRONMENT[variable]
    (tmp_path / "dialerconfig.py").write_text(TEN_LINES)
    said = type_in(["dialer", "check"], {variable: value}, tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    (line,) = said.stderr.splitlines()
    assert line.startswith(f"assignment-workers: {variable}")
    assert why in line


IN_VAIN = [
    (
        "ASSIGNMENT_WORKERS_QUEUE_PRIORITY names the dialer queue 'gone', which the dialer does not"
        " have; there are winback"
    ),
    (
        "version 4 of the settings has a value of calling_hours for the dialer queue closed_down,"
        " which the dialer does not have: it is ignored"
    ),
]


def test_check_and_show_judge_by_the_settings_in_force(
    world: World, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "dialerconfig.py"
    file.write_text(TEN_LINES)
    world.add_agents(7, allowed_queues=["winback"])
    environment = {
        "DATABASE_URL": database_url,
        "ASSIGNMENT_WORKERS_QUEUE_PRIORITY": "gone, winback",
        "ASSIGNMENT_WORKERS_CALLS_PER_DAY": "winback=3",
    }

    def rules(given: dict[str, str]) -> list[str]:
        said = type_in(["dialer", "show", "--json"], given, tmp_path)
        assert (said.returncode, said.stderr) == (0, "")
        (queue,) = json.loads(said.stdout)["queues"]
        return [each["name"] for each in queue["rules"]]

    assert "called_enough_today" in rules(environment)
    assert "outside_calling_hours" not in rules(environment)
    values = [
        {"name": "calling_hours", "queue": each, "value": "mon 09:00-10:00"}
        for each in ("winback", "closed_down")
    ]
    world.execute(
        "INSERT INTO assignment.settings VALUES"
        " (4, gen_random_uuid(), now(), 'ann', 'a test', '[]', CAST(:given AS jsonb))",
        given=json.dumps(values),
    )
    assert "outside_calling_hours" in rules(environment)
    assert "called_enough_today" not in rules(environment)
    own = 'order=[Person.created_at],\n    calling_hours="sun 09:00-10:00",'
    file.write_text(TEN_LINES.replace("order=[Person.created_at],", own))
    assert "outside_calling_hours" in rules({})
    said = type_in(["dialer", "check"], environment, tmp_path)
    assert said.returncode == 0
    assert said.stderr.splitlines() == [f"assignment-workers: warning: {each}" for each in IN_VAIN]


def test_a_rule_that_no_index_serves_is_a_warning_and_one_that_cannot_run_a_mistake(
    world: World, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "dialerconfig.py"
    slow = 'func.coalesce(Person.id.in_(select(Claim.user_id).where(Claim.lender == "x")), False)'
    begin = "from sqlalchemy import func, select\nfrom assignment_workers.dialer import Claim\n"
    file.write_text(begin + TEN_LINES.replace("Person.is_enabled.is_(True)", slow))
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    said = type_in(["dialer", "check"], environment, tmp_path)
    assert said.returncode == 0, said.stderr
    idle, slow = said.stderr.splitlines()
    assert idle == (
        "assignment-workers: warning: no active agent may take from dialer queue winback:"
        " see agents.allowed_queues"
    )
    assert slow.startswith(
        f"assignment-workers: warning: {file}: queue winback: rule disabled: no index serves it:"
    )
    world.add_agents(7, allowed_queues=["winback"])
    file.write_text(TEN_LINES)
    world.execute("ALTER TABLE crm.users DROP COLUMN is_enabled")
    said = type_in(["dialer", "check"], environment, tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == (
        f"assignment-workers: {file}: queue winback: rule disabled:"
        " column users.is_enabled does not exist\n"
    )


def test_each_rule_of_the_packaged_dialer_is_probed_by_index(world: World) -> None:
    with world.engine.connect() as connection:
        found = list(plans(connection, policies_of(loaded(), world.settings), world.now))
    assert len(found) == len([each for queue in claims.dialer.queues for each in queue.rules]) - 12
    assert [each for each in found if each.error or each.scanned] == []


def test_the_queues_of_another_dialer_are_stored_and_unused_ones_go(world: World) -> None:
    from assignment_workers.assignment.generations.dialer_queues import store_names
    from assignment_workers.dialer import Dialer, Outcome, Queue

    other = Dialer(
        queues=[Queue(name, name.title(), rules=[]) for name in ("second", "first")],
        outcomes=[Outcome("reached", "Reached")],
    )
    world.add_users([User(1)])
    world.regenerate("unsigned_users")
    try:
        use(other)
        for _ in range(2):
            with world.engine.begin() as connection:
                store_names(connection, loaded().policies)
            with world.engine.connect() as connection:
                names = connection.execute(text("SELECT name FROM assignment.queues")).scalars()
                assert set(names) == {"second", "first", "unsigned_users"}
    finally:
        use(claims.dialer)
