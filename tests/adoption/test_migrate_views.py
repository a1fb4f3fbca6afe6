"""The views that take the place of a dialer's tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from assignment_workers.adoption.rollback import rollback
from assignment_workers.adoption.shapes import LEGACY_CALL_QUEUE
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.engine import driver_url
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected
from tests.adoption.moving import check, moved, rows


def test_where_there_is_no_call_queue_the_old_reader_finds_a_view_of_it(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.without_call_queue(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "pending", None), (2, 2, "assigned", 7))
        dialers.queue(connection, OUTSTANDING, (3, 1, "pending", None))
    moved(url)
    listed = "SELECT queue_type, user_id, status, assigned_to_agent_id FROM call_queue ORDER BY 2"
    assert rows(url, listed) == [
        ("unsigned_users", 1, "pending", None),
        ("unsigned_users", 2, "assigned", 7),
        ("outstanding_requests", 3, "pending", None),
    ]
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'call_queue'::regclass"
    assert {name for (name,) in rows(url, columns)} == LEGACY_CALL_QUEUE.columns.keys()
    assert rows(url, "SELECT count(DISTINCT id) FROM call_queue") == [(3,)]
    with connected(url) as connection:
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="POST /v1/requests"):
            connection.execute("UPDATE call_queue SET status = 'assigned'")
    rollback(url)
    assert rows(url, "SELECT to_regclass('call_queue')::text") == [(None,)]


def test_a_call_queue_that_is_there_stays_the_dialers_own(empty_database_url: str) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
    kind = "SELECT relkind::text FROM pg_class WHERE oid = 'call_queue'::regclass"
    moved(url)
    assert rows(url, kind) == [("r",)]
    rollback(url)
    assert rows(url, kind) == [("r",)]


def test_the_first_by_position_costs_the_same_whatever_waits_behind_or_was_before(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.without_call_queue(connection)
        connection.execute(
            f"INSERT INTO {UNSIGNED} (id, user_id, queue_position, updated_at)"
            " SELECT gen_random_uuid(), n, n, now() FROM generate_series(1, 20000) n"
        )
    moved(url, batch=2000)
    with connected(url) as connection:
        connection.execute(
            "UPDATE assignment.entries SET state = 'out', reason = 'converted' WHERE rank <= 1000"
        )
        connection.execute("ANALYZE assignment.entries")
        for table, agent, more in (
            (UNSIGNED, "assigned_to_agent", ""),
            ("call_queue", "assigned_to_agent_id", " AND queue_type = 'unsigned_users'"),
        ):
            find = (
                f"SELECT user_id FROM {table} WHERE status = 'pending'"
                f" AND {agent} IS NULL{more} ORDER BY queue_position LIMIT 1"
            )
            assert connection.execute(find).fetchall() == [(1001,)]
            found = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {find}").fetchone()
            assert found is not None
            read = [node["Actual Rows"] for node in nodes(found[0][0]["Plan"])]
            assert sum(read) < 50, (table, read)


def test_a_score_that_an_altered_column_lacks_or_cannot_hold_is_the_default_or_the_bound(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    scores = {1: None, 2: 7, 3: 2**40, 4: -(2**40), 5: 0}
    with connected(url) as connection:
        dialers.without_call_queue(connection)
        connection.execute(
            f"ALTER TABLE {UNSIGNED} ALTER priority_score TYPE bigint,"
            " ALTER priority_score DROP NOT NULL"
        )
        for user, score in scores.items():
            connection.execute(
                f"INSERT INTO {UNSIGNED} (id, user_id, queue_position, priority_score, updated_at)"
                " VALUES (gen_random_uuid(), %s, %s, %s, now())",
                (user, user, score),
            )
    moved(url)
    with connected(url) as connection:
        shown = connection.execute("SELECT user_id, score FROM assignment.entries").fetchall()
    assert dict(shown) == {1: 0, 2: 7, 3: 2**31 - 1, 4: -(2**31), 5: 0}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a query's plan, and all below it."""
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def test_the_views_of_an_older_version_are_brought_up_with_whoever_may_use_them(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.without_call_queue(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "pending", None), (2, 2, "assigned", 7))
    moved(url)
    acl = (
        "SELECT grantee::regrole, privilege_type FROM pg_class, aclexplode(relacl)"
        f" WHERE pg_class.oid = '{UNSIGNED}'::regclass ORDER BY 1, 2"
    )
    made, called = as_of_revision_14(url)
    with connected(url) as connection:
        connection.execute(f"GRANT SELECT, DELETE ON {UNSIGNED} TO PUBLIC, pg_monitor")
        may = connection.execute(acl).fetchall()
        connection.execute(
            "CREATE TABLE assignment.entries_99 (rank bigint);"
            "COMMENT ON TABLE assignment.entries_99 IS 'being filled'"
        )
    moved(url)
    with connected(url) as connection:
        assert definitions(connection) == (made, called)
        types = "SELECT DISTINCT atttypid::regtype::text FROM pg_attribute"
        assert connection.execute(
            f"{types} WHERE attname = 'rank' AND attrelid::regclass::text ~ '^assignment.entries'"
        ).fetchall() == [("integer",)]
        connection.execute("DROP TABLE assignment.entries_99")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="POST /v1/requests"):
            connection.execute(f"DELETE FROM {UNSIGNED} WHERE user_id = 1")
        assert len(may) > 4
        assert connection.execute(acl).fetchall() == may
    check(url)


def as_of_revision_14(url: str) -> tuple[str, ...]:
    """Make the database as version 0.1.0 left it at its revision 14; the views as they are now."""
    from alembic import command

    with connected(url) as connection:
        made = definitions(connection)
        for table in (UNSIGNED, OUTSTANDING, "call_queue"):
            connection.execute(f"DROP VIEW {table}")
    engine = create_engine(driver_url(url))
    with engine.connect() as at:
        command.downgrade(migrations._config(at), "0014")
    engine.dispose()
    with connected(url) as connection:
        connection.execute("ALTER TABLE assignment.entries ALTER COLUMN rank TYPE bigint")
        for table, sql in zip((UNSIGNED, "call_queue"), made, strict=True):
            connection.execute(f"CREATE VIEW {table} AS {sql.replace('e.rank', 'e.rank::integer')}")
            connection.execute(f"COMMENT ON VIEW {table} IS '{migrations.OUR_VIEW}'")
    return made


def definitions(connection: psycopg.Connection[Any]) -> tuple[str, ...]:
    """How the views are made."""
    found = connection.execute(
        f"SELECT pg_get_viewdef('{UNSIGNED}'::regclass), pg_get_viewdef('call_queue'::regclass)"
    ).fetchone()
    assert found is not None
    return tuple(found)


def test_a_write_to_a_view_is_refused_with_the_call_that_takes_its_place(
    empty_database_url: str,
) -> None:
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "pending", None))
    moved(empty_database_url)
    with connected(empty_database_url) as connection:
        for sql in (
            f"UPDATE {UNSIGNED} SET status = 'assigned', assigned_to_agent = 7 WHERE user_id = 1",
            f"UPDATE {UNSIGNED} SET status = 'assigned' WHERE user_id = 999",
            f"DELETE FROM {UNSIGNED}",
            f"INSERT INTO {OUTSTANDING} (id, user_id) VALUES (gen_random_uuid(), 5)",
        ):
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="POST /v1/requests"):
                connection.execute(sql)
