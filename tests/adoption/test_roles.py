"""Roles: an owner, the dialer's application, a report and a superuser, before and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from assignment_workers.adoption.rollback import rollback
from tests.adoption import dialers
from tests.adoption.dialers import UNSIGNED, as_role, connected
from tests.adoption.moving import moved, rows
from tests.adoption.test_preflight import role

PROMISE = (
    "INSERT INTO callbacks (id, user_id, scheduled_for, original_call_session_id)"
    " VALUES (gen_random_uuid(), 1, now(), gen_random_uuid())"
)
MISSED = (
    "INSERT INTO missed_calls (id, phone_number, reason, twilio_call_sid)"
    " VALUES (gen_random_uuid(), '1', 'agents_busy', 'CA1')"
)


@dataclass
class Roles:
    """The database's address for each."""

    superuser: str
    owner: str
    application: str
    report: str


@contextmanager
def roles(url: str) -> Iterator[Roles]:
    """A deployed dialer of an owner, whose application and report may do what they need."""
    with ExitStack() as made:
        name = rows(url, "SELECT current_database()")[0][0]
        owner = made.enter_context(role(url, f"owner_{name}"))
        application = made.enter_context(role(url, f"app_{name}"))
        report = made.enter_context(role(url, f"report_{name}"))
        with connected(as_role(url, "postgres")) as connection:
            connection.execute(
                f"GRANT CREATE ON DATABASE {name} TO owner_{name};"
                f"GRANT ALL ON SCHEMA public TO owner_{name}".encode()
            )
        with connected(owner) as connection:
            dialers.deployed(connection)
            dialers.queue(connection, UNSIGNED, (1, 1, "pending", None), (2, 2, "assigned", 7))
            connection.execute(
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public"
                f" TO app_{name};"
                f"GRANT SELECT (id, user_id, status) ON {UNSIGNED} TO report_{name}".encode()
            )
        try:
            yield Roles(as_role(url, "postgres"), owner, application, report)
        finally:
            with connected(as_role(url, "postgres")) as connection:
                connection.execute("DROP SCHEMA IF EXISTS assignment CASCADE")


def works(at: Roles) -> None:
    """Each role reads what it read, and the dialer writes what it wrote, but for the queue."""
    for url in (at.owner, at.application, at.superuser):
        assert rows(url, f"SELECT user_id, status FROM {UNSIGNED} ORDER BY 1") == [
            (1, "pending"),
            (2, "assigned"),
        ]
        for sql in (PROMISE, PROMISE, MISSED, MISSED):
            with connected(url) as connection:
                connection.execute(sql.encode())
    assert rows(at.report, f"SELECT user_id, status FROM {UNSIGNED} WHERE user_id = 1") == [
        (1, "pending")
    ]
    with connected(at.report) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"SELECT queue_position FROM {UNSIGNED}")
    with connected(at.application) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM assignment.entries")


@pytest.mark.parametrize("migrator", ["owner", "superuser"])
def test_each_role_goes_on_after_the_migration_and_after_the_rollback(
    empty_database_url: str, migrator: str
) -> None:
    with roles(empty_database_url) as at:
        url = getattr(at, migrator)
        acl = (
            "SELECT relacl::text, (SELECT string_agg(attacl::text, ' ') FROM pg_attribute"
            f" WHERE attrelid = c.oid) FROM pg_class c WHERE oid = '{UNSIGNED}'::regclass"
        )
        before = rows(at.owner, acl)
        moved(url)
        works(at)
        with connected(at.application) as connection:
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="POST /v1/requests"):
                connection.execute(f"UPDATE {UNSIGNED} SET status = 'assigned'")
        rollback(url)
        works(at)
        assert rows(at.owner, acl) == before
        assert (
            rows(
                at.owner,
                "SELECT tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = tgfoid"
                " WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM pg_class"
                " WHERE relnamespace = 'public'::regnamespace)",
            )
            == []
        )
        moved(url)
        works(at)
        rollback(url)
