"""PostgreSQL roles of least privilege: all tests of this folder run under them.

The gateway fixture starts its workers and its gateways under the roles; here is what no role may,
and that jobs which no other test of the folder runs can do their work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from assignment_workers.errors import SchemaMismatch
from assignment_workers.schema import roles
from assignment_workers.schema.base import Base
from tests.gateway.serving import PASSWORD, with_roles
from tests.gateway.stage import Gateway
from tests.processes import wait_until

Login = Callable[[str], str]

FORBIDDEN = {
    roles.WORKER: [
        "SELECT hash FROM assignment.api_tokens",
        "INSERT INTO assignment.api_tokens (id) VALUES ('x')",
        "SELECT 1 FROM pg_authid",
        "UPDATE assignment.events SET kind = kind",
        "INSERT INTO assignment.operator_actions (who) VALUES ('evil')",
        "INSERT INTO assignment.access_log (what) VALUES ('forbidden')",
        "DROP TABLE assignment.assignments",
        "DELETE FROM public.callbacks",
        "UPDATE public.agents SET email = email",
        "UPDATE crm.users SET is_enabled = true",
        "TRUNCATE assignment.assignments",
        "CREATE ROLE evil",
    ],
    roles.GATEWAY: [
        "UPDATE assignment.assignments SET state = state",
        "INSERT INTO assignment.events (kind) VALUES ('assigned')",
        "UPDATE assignment.events SET kind = kind",
        "DELETE FROM assignment.events",
        "UPDATE assignment.api_tokens SET role = 'operator'",
        "INSERT INTO assignment.api_tokens (id) VALUES ('x')",
        "UPDATE assignment.access_log SET count = 1",
        "DELETE FROM assignment.access_log",
        "DELETE FROM assignment.operator_actions",
        "UPDATE public.user_call_scores SET current_score = 0",
        "UPDATE assignment.queues SET paused_at = now()",
        "CREATE TABLE assignment.evil (x int)",
        "DROP TABLE assignment.entries",
    ],
    roles.READER: [
        "SELECT 1 FROM assignment.api_tokens",
        "SELECT 1 FROM assignment.dashboard_sessions",
        "SELECT 1 FROM assignment.dead_letters",
        "SELECT 1 FROM assignment.access_log",
        "DELETE FROM assignment.events",
        "UPDATE assignment.assignments SET state = state",
        "INSERT INTO assignment.agents_seen (agent_id) VALUES (1)",
        "UPDATE public.callbacks SET status = status",
    ],
}


@pytest.fixture
def login(gateway: Gateway) -> Login:
    host = gateway.stack.database_url.rpartition("@")[2]
    return lambda role: f"postgresql://{role}:{PASSWORD}@{host}"


@pytest.fixture
def connected(login: Login) -> Iterator[Callable[[str], psycopg.Connection]]:
    opened: list[psycopg.Connection] = []

    def connect(role: str) -> psycopg.Connection:
        opened.append(psycopg.connect(login(role), autocommit=True))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("role", "statement"),
    [(role, statement) for role, each in FORBIDDEN.items() for statement in each],
)
def test_no_role_may_do_more_than_its_work(
    connected: Callable[[str], psycopg.Connection], role: str, statement: str
) -> None:
    with pytest.raises(InsufficientPrivilege):
        connected(role).execute(statement)


def test_the_processes_are_those_roles(gateway: Gateway) -> None:
    found = gateway.stack.rows(
        "SELECT DISTINCT usename, application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'assignment-workers %'"
    )
    assert {tuple(each) for each in found} >= {
        (roles.WORKER, "assignment-workers turns"),
        (roles.WORKER, "assignment-workers maintenance"),
        (roles.GATEWAY, "assignment-workers gateway"),
    }


def test_every_job_can_do_its_work_under_its_role(gateway: Gateway) -> None:
    client = gateway.stack.client()
    jobs = {
        "queue.regenerate": {"trigger": "hand"},
        "queue.clean_conversions": {},
        "queue.clean_daily": {},
        "queue.discover": {},
        "queue.reconcile": {},
        "queue.check_levels": {},
        "generation.tend": {},
        "scores.age": {},
        "missed_calls.match": {},
        "agent.tend": {},
        "doctor.examine": {},
    }
    before = gateway.stack.value("SELECT coalesce(max(id), 0) FROM assignment.dead_letters")
    # What is old enough is deleted, by the role that may.
    with gateway.stack.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE assignment.generations SET retired_at = now() - interval '2 hours'"
            " WHERE state = 'retired'"
        )
    for name, said in jobs.items():
        client.send_again(name, (), dict(said), "maintenance")
    ran = (
        "SELECT count(DISTINCT job) FROM assignment.job_runs WHERE ended_at IS NOT NULL"
        " AND started_at > now() - interval '2 minutes'"
    )
    wait_until(lambda: gateway.stack.value(ran) >= len(jobs) - 3, "the jobs to end")
    wait_until(
        lambda: (
            gateway.stack.value("SELECT count(*) FROM assignment.job_runs WHERE status = 'running'")
            == 0
        ),
        "no job to run",
    )
    failed = gateway.stack.rows(
        "SELECT job, error FROM assignment.job_runs WHERE status = 'failed'"
        " AND started_at > now() - interval '2 minutes'"
    )
    assert failed == []
    buried = f"SELECT task, error FROM assignment.dead_letters WHERE id > {before}"
    assert [each for each in gateway.stack.rows(buried) if each.task in jobs] == []


def test_every_table_has_its_rights_and_they_can_be_given_again(gateway: Gateway) -> None:
    with_roles(gateway.stack.database_url)
    tables = {table.name for table in Base.metadata.sorted_tables}
    for named in (roles._OF_WORKER, roles._OF_GATEWAY, roles._NOT_OF_READER, roles._OF_PURGE):
        assert set(named) <= tables | {"alembic_version"}
    owners = gateway.stack.rows(
        "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'assignment'"
    )
    assert {each.tableowner for each in owners} == {roles.OWNER, roles.WORKER}


def test_who_may_not_make_roles_is_told_which_statement_somebody_has_to_run(login: Login) -> None:
    with pytest.raises(SchemaMismatch, match="has to run `"):
        roles.apply(login(roles.GATEWAY))


def test_flower_and_beat_need_no_database(gateway: Gateway) -> None:
    stack, given = gateway.stack, gateway.stack.database_url
    stack.database_url = ""
    try:
        beat = stack.start("beat")
    finally:
        stack.database_url = given
    wait_until(lambda: "beat: Starting" in beat.said() or beat.popen.poll() is not None, "beat")
    assert beat.popen.poll() is None, beat.said()
    beat.stop()


def test_the_command_makes_the_roles_and_lets_them_log_in(gateway: Gateway, login: Login) -> None:
    given = {name: each for name, each in os.environ.items() if "ASSIGNMENT" not in name}
    ran = subprocess.run(
        [sys.executable, "-m", "assignment_workers", "schema", "migrate", "--roles"],
        env=given
        | {
            "DATABASE_URL": gateway.stack.database_url,
            "REDIS_URL": gateway.stack.redis_url,
            "ASSIGNMENT_WORKERS_READER_PASSWORD": PASSWORD,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line for line in ran.stdout.splitlines() if line.startswith("assignment_purge: ")]
    with psycopg.connect(login(roles.READER)) as reader:
        assert reader.execute("SELECT count(*) FROM assignment.assignments").fetchone()
