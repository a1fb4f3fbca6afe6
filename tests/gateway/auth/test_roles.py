"""PostgreSQL roles of least privilege: all tests of this folder run under them.

The gateway fixture starts its workers and its gateways under the roles; here is what no role may,
and that jobs which no other test of the folder runs can do their work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis
from psycopg.errors import InsufficientPrivilege

from assignment_workers.errors import SchemaMismatch
from assignment_workers.schema import roles
from assignment_workers.schema.base import Base
from tests.gateway.serving import PASSWORD, with_roles
from tests.gateway.stage import Gateway
from tests.support.processes import Stack, wait_until
from tests.support.world import FREE

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
        "DELETE FROM assignment.events",
        "SET assignment.purge = 'on'; DELETE FROM assignment.events",
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
        "DELETE FROM public.callbacks",
        "UPDATE public.callbacks SET scheduled_for = now()",
        "INSERT INTO assignment.event_texts (event_id) VALUES (1)",
        "UPDATE assignment.event_texts SET texts = '{}'",
        "UPDATE assignment.suppressions SET lifted_at = now()",
        "DELETE FROM assignment.forgotten",
        "DELETE FROM assignment.assignments",
        "DELETE FROM crm.users",
        "UPDATE assignment.queues SET paused_at = now()",
        "CREATE TABLE assignment.evil (x int)",
        "DROP TABLE assignment.entries",
    ],
    roles.READER: [
        "SELECT 1 FROM assignment.api_tokens",
        "SELECT 1 FROM assignment.dashboard_sessions",
        "SELECT 1 FROM assignment.dead_letters",
        "SELECT 1 FROM assignment.access_log",
        "SELECT 1 FROM assignment.event_texts",
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
        connection.exec_driver_sql(
            f"{FREE}; WITH old AS (UPDATE assignment.events SET at = now() - interval '91 days'"
            " WHERE id = (SELECT min(id) FROM assignment.events) RETURNING id, at)"
            ' INSERT INTO assignment.event_texts SELECT id, at, \'{"why": "long ago"}\' FROM old;'
            f" {FREE.replace('DISABLE', 'ENABLE')}"
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
    old = "SELECT count(*) FROM assignment.{} WHERE at < now() - interval '90 days'"
    for table in ("events", "event_texts"):
        assert gateway.stack.value(old.format(table)) == 0, table


def test_every_table_has_its_rights_and_they_can_be_given_again(gateway: Gateway) -> None:
    with_roles(gateway.stack.database_url)
    tables = {table.name for table in Base.metadata.sorted_tables}
    for named in (roles._OF_WORKER, roles._OF_GATEWAY, roles._NOT_OF_READER, roles._OF_PURGE):
        assert set(named) <= tables | {"schema_revision"}
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


def left(stack: Stack, *words: str) -> list[str]:
    """Where one of these still is: columns of text but the CRM's own, Redis keys, processes' logs."""
    columns = stack.rows(
        "SELECT format('%I.%I', table_schema, table_name), quote_ident(column_name)"
        " FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog',"
        " 'information_schema', 'crm') AND data_type IN ('text', 'character varying', 'json',"
        " 'jsonb', 'ARRAY', 'bytea')"
    )
    found = [
        f"{table}.{column}"
        for table, column in columns
        for each in words
        if stack.value(f"SELECT count(*) FROM {table} WHERE strpos({column}::text, '{each}') > 0")
    ]
    with redis.Redis.from_url(stack.redis_url) as server:
        for key in server.scan_iter():
            said = f"{key!r} {_value(server, key)!r}"
            found += [f"Redis {key!r}" for each in words if each in said]
    return found + [each.name for each in stack.started for word in words if word in each.said()]


def _value(server: Any, key: bytes) -> object:
    read: dict[bytes, Callable[[], object]] = {
        b"string": lambda: server.get(key),
        b"list": lambda: server.lrange(key, 0, -1),
        b"hash": lambda: server.hgetall(key),
        b"set": lambda: server.smembers(key),
        b"zset": lambda: server.zrange(key, 0, -1),
        b"none": lambda: None,
    }
    return read[server.type(key)]()


def test_a_person_is_exported_and_forgotten_by_the_gateway(gateway: Gateway) -> None:
    stack = gateway.stack
    with stack.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS public.unsigned_users_queue_before_adoption (user_id bigint)"
        )
    with_roles(stack.database_url)
    hold = gateway.assigned(77)
    user = int(hold["user_id"])
    told = f"/v1/users/{user}"
    held = gateway.post(f"{told}/forget", bearer="operator")
    assert (held.status, f"user {user} is held by agent 77" in held.text) == (409, True)
    ended = {"agent_id": 77, "outcome": "call_back", "notes": "typed notes"}
    ended["callback_at"] = str(stack.value("SELECT to_json(now() + interval '1 day')"))
    assert gateway.post(f"/v1/assignments/{hold['id']}/complete", ended).status == 200
    with stack.engine.begin() as connection:
        for planted in (
            "UPDATE public.callbacks SET callback_reason = 'typed promise' WHERE user_id = {user}",
            (
                "INSERT INTO public.missed_calls (user_id, phone_number, caller_name, missed_at,"
                " reason, status) VALUES ({user}, '07700900888', 'typed caller', now(), 'no_agent',"
                " 'for_operator')"
            ),
            (
                "INSERT INTO public.conversions (user_id, previous_queue_type, conversion_type,"
                " conversion_reason, converted_at) VALUES ({user}, 'unsigned_users', 'x',"
                " 'typed conversion', now())"
            ),
            "INSERT INTO public.unsigned_users_queue_before_adoption VALUES ({user})",
            "INSERT INTO crm_mirror.users (id, phone_number) VALUES ({user}, '07700900888')",
            (
                "INSERT INTO assignment.dead_letters (at, body, error)"
                " VALUES (now(), '{{\"user_id\": {user}}}', 'typed letter')"
            ),
            (
                "INSERT INTO assignment.events (at, kind, term, user_id, details)"
                " VALUES (now(), 'discovered', 1, {user}, '{{\"why\": \"typed event\"}}')"
            ),
        ):
            connection.exec_driver_sql(planted.format(user=user))
    exported = gateway.get(f"{told}/export", bearer="operator")
    assert exported.status == 200, exported.text
    for typed in ("notes", "promise", "caller", "conversion", "letter", "event"):
        assert f"typed {typed}" in exported.text, typed
    for role in ("frontend", "supervisor", "agent 1"):
        assert gateway.get(f"{told}/export", bearer=role).status == 403
        assert gateway.post(f"{told}/forget", bearer=role).status == 403
    places = left(stack, "typed notes", "07700900888")
    assert {"assignment.assignments.notes", "crm_mirror.users.phone_number"} <= set(places)
    forgotten = gateway.post(f"{told}/forget", {"why": "asked to be"}, bearer="operator")
    assert forgotten.status == 200, forgotten.text
    again = gateway.get(f"{told}/export", bearer="operator").text
    assert "typed" not in again
    assert "07700900888" not in again
    tables = json.loads(again)["tables"]
    assert tables["forgotten"]
    assert tables["user_call_scores"] == tables["unsigned_users_queue_before_adoption"] == []
    assert stack.value(f"SELECT count(*) FROM crm_mirror.users WHERE id = {user}") == 0
    assert left(stack, "typed notes", "typed promise", "typed caller", "07700900888") == []
    with stack.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE public.unsigned_users_queue_before_adoption")
