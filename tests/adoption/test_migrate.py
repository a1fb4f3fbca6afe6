"""`schema migrate` and `schema rollback`: from every state, killed anywhere, and back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from random import Random
from typing import Any

import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from assignment_workers.adoption.migrate import BOOKS, LOCK_AT_MOST, SWITCH_AT_MOST, migrate
from assignment_workers.adoption.plan import plan
from assignment_workers.adoption.rollback import rollback
from assignment_workers.adoption.shapes import LEGACY_CALL_QUEUE
from assignment_workers.assignment.history import history
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.errors import SchemaMismatch, UsageError
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.engine import driver_url
from assignment_workers.sequencer.term import Candidacy
from assignment_workers.settings import Settings
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, STATES, UNSIGNED, connected
from tests.support.processes import wait_until
from tests.support.sessions import OTHERS, WAITING

SETTINGS = Settings.from_environment({})
FIND_FIRST = (
    'SELECT "public"."{table}"."id", "public"."{table}"."user_id", '
    '"public"."{table}"."queue_position", "public"."{table}"."{agent}" FROM "public"."{table}" '
    'WHERE ("public"."{table}"."status" = %s AND "public"."{table}"."{agent}" IS NULL) '
    'ORDER BY "public"."{table}"."queue_position" ASC LIMIT %s OFFSET %s'
)


class Killed(BaseException):
    """What a test ends a migration with."""


def nobody(_: str) -> None:
    """Listens to nothing."""


def moved(url: str, *, batch: int = 3, tell: Callable[[str], None] = nobody) -> str:
    return migrate(url, settings=SETTINGS, tell=tell, batch=batch)


def rows(url: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with connected(url) as connection:
        return connection.execute(sql, values).fetchall()


def check(url: str) -> None:
    """This version runs on it, and no guarantee is broken."""
    engine = create_engine(driver_url(url))
    with engine.connect() as connection:
        migrations.check(connection)
        connection.rollback()
        assert [each for each in examine(connection) if not each.ok] == []
        connection.rollback()
        assert history.check(connection, settings=SETTINGS, bound=timedelta(minutes=2)) == []
    engine.dispose()


def columns(url: str, table: str) -> list[tuple[Any, ...]]:
    """The columns of a table or view in their order, with their types."""
    return rows(
        url,
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        table,
    )


def state(url: str) -> list[Any]:
    """What a taking over ends in, without what is made anew by each: numbers, ids and times."""
    with connected(url) as connection:
        agents = {
            table: dialers.agent_column(connection, table) for table in (UNSIGNED, OUTSTANDING)
        }
    return [
        rows(url, f"SELECT user_id, queue_position, status, {agent} FROM {table} ORDER BY 1")
        for table, agent in agents.items()
    ] + [
        rows(url, "SELECT user_id, agent_id, queue, state FROM assignment.assignments ORDER BY 1"),
        rows(
            url,
            "SELECT found_in, user_id, agent_id, rule FROM assignment.adoption_decisions "
            "ORDER BY 1, 2, 3, 4",
        ),
    ]


@pytest.mark.parametrize("name", dialers.DIALERS)
def test_every_state_becomes_ours_and_the_old_reader_reads_on(
    empty_database_url: str, name: str
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        STATES[name](connection)
        connection.execute(
            "INSERT INTO user_call_scores (id, user_id, current_queue_type, updated_at) "
            "SELECT gen_random_uuid(), n, CASE WHEN n > 20 THEN 'outstanding_requests' "
            "ELSE 'unsigned_users' END, now() FROM generate_series(1, 40) n"
        )
        for table, first in ((UNSIGNED, 1), (OUTSTANDING, 21)):
            dialers.queue(
                connection,
                table,
                (first, 2, "pending", None),
                (first + 1, 1, "pending", None),
                (first + 2, 3, "assigned", first),
                (first + 3, 4, "completed", None),
            )
    moved(url)
    check(url)
    for table, first in ((UNSIGNED, 1), (OUTSTANDING, 21)):
        with connected(url) as connection:
            agent = dialers.agent_column(connection, table)
        ((_, user, place, holder),) = rows(
            url, FIND_FIRST.format(table=table, agent=agent), "pending", 1, 0
        )
        assert (user, place, holder) == (first + 1, 1, None)
        assert rows(url, f"SELECT user_id, {agent} FROM {table} WHERE status = 'assigned'") == [
            (first + 2, first)
        ]
        assert columns(url, table) == columns(url, f"{table}_before_adoption")
        assert rows(
            url, f'SELECT COUNT(*), "status" FROM "public"."{table}" GROUP BY "status" ORDER BY 2'
        ) == [(1, "assigned"), (2, "pending")]
    before = state(url)
    moved(url)
    assert state(url) == before


def test_a_database_with_nothing_becomes_ours_and_someone_elses_is_left_alone(
    empty_database_url: str,
) -> None:
    assert moved(empty_database_url) == migrations.head()
    check(empty_database_url)


def test_someone_elses_is_named_and_not_touched(empty_database_url: str) -> None:
    with connected(empty_database_url) as connection:
        dialers.someone_elses(connection)
    with pytest.raises(SchemaMismatch, match=rf"public\.{UNSIGNED} is of no schema"):
        moved(empty_database_url)
    assert rows(empty_database_url, "SELECT to_regnamespace('assignment')::text") == [(None,)]


OLDER = [
    each.revision
    for each in ScriptDirectory.from_config(migrations._config(None)).walk_revisions()
    if each.revision != migrations.head()
]


@pytest.mark.parametrize("revision", OLDER[::-1])
def test_ours_at_an_older_revision_is_brought_up(empty_database_url: str, revision: str) -> None:
    from alembic import command

    engine = create_engine(driver_url(empty_database_url))
    with engine.connect() as connection:
        command.upgrade(migrations._config(connection), revision)
    engine.dispose()
    moved(empty_database_url)
    check(empty_database_url)


def test_duplicates_and_dangling_holds_are_decided_by_the_stated_rules(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.dirty(connection)
    moved(url)
    check(url)
    unsigned, outstanding, holds, decisions = state(url)
    # 3 is held by 9, who took them last, and 11 by 8, whose older hold of 10 is given up.
    assert holds == [
        (3, 9, "outstanding_requests", "active"),
        (11, 8, "outstanding_requests", "active"),
    ]
    assert unsigned == [
        (1, 1, "pending", None),
        (2, 2, "pending", None),
        (4, 4, "pending", None),
        (5, 5, "pending", None),
        (10, 6, "pending", None),
    ]
    assert outstanding[-1] == (12, 2, "pending", None)
    assert [each[0:3:1] + each[3:] for each in decisions] == [
        (OUTSTANDING, 2, None, "in both queues: stays in unsigned_users"),
        (OUTSTANDING, 3, None, "in both queues: stays in unsigned_users"),
        (UNSIGNED, 1, None, "twice in this queue: the lowest position stays"),
        (UNSIGNED, 3, 7, "an older hold of the user: the newest agent keeps them"),
        (UNSIGNED, 3, None, "twice in this queue: the lowest position stays"),
        (UNSIGNED, 4, 999, "the agent does not exist: back in the queue"),
        (UNSIGNED, 5, None, "assigned with no agent: back in the queue"),
        (UNSIGNED, 6, None, "status outside the vocabulary: not queued"),
        (UNSIGNED, 10, 8, "an older hold of the agent: back in the queue"),
    ]


MOVE = """
import sys
from assignment_workers.adoption.migrate import BOOKS, migrate
from assignment_workers.settings import Settings
migrate(sys.argv[1], settings=Settings.from_environment({}), tell=print, batch=2)
"""
COPYING = "SELECT 1 FROM assignment.adoptions WHERE last_id IS NOT NULL"


@pytest.mark.parametrize(
    ("waits_for", "once", "ended"),
    [
        ("LOCK TABLE callbacks IN ACCESS SHARE MODE", "SELECT 1", "kill"),
        ("SELECT 1 FROM assignment.adoptions FOR UPDATE", COPYING, "kill"),
        ("LOCK TABLE agents IN ACCESS EXCLUSIVE MODE", COPYING, "kill"),
        ("LOCK TABLE agents IN ACCESS EXCLUSIVE MODE", COPYING, "terminate"),
    ],
    ids=["expand", "backfill", "switch", "switch, its connection cut"],
)
def test_a_run_that_is_killed_inside_a_transaction_is_taken_up_by_the_next(
    postgres_server: str, empty_database_url: str, waits_for: str, once: str, ended: str
) -> None:
    """It is stopped where it waits for a lock of ours, with what it did before uncommitted."""
    url = empty_database_url
    with connected(url) as connection:
        dialers.dirty(connection)
        copy = f"{connection.info.dbname}_copy"
    with connected(postgres_server) as admin:
        admin.execute(f"CREATE DATABASE {copy} TEMPLATE {copy.removesuffix('_copy')}")
    with psycopg.connect(url) as blocking, connected(url) as watching:

        def is_copying() -> bool:
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                return watching.execute(once).fetchone() is not None
            return False

        with subprocess.Popen([sys.executable, "-c", MOVE, url], stderr=subprocess.PIPE) as process:
            try:
                wait_until(is_copying, "the run to be there")
                blocking.execute(waits_for)
                (waiting,) = wait_until(
                    lambda: watching.execute(WAITING).fetchone(),
                    "it to wait for the lock",
                )
                if ended == "kill":
                    process.kill()
                else:
                    watching.execute("SELECT pg_terminate_backend(%s)", [waiting])
                    blocking.rollback()  # it connects anew, and does the transaction again
                process.wait(30)
                assert (process.returncode == 0) == (ended == "terminate")
            finally:
                process.kill()
        blocking.rollback()
        wait_until(
            lambda: (
                not watching.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE pid = %s", [waiting]
                ).fetchone()
            ),
            "its connection to end",
        )
    moved(url)
    check(url)
    other = f"{postgres_server.rpartition('/')[0]}/{copy}"
    try:
        moved(other)
        assert state(url) == state(other)
    finally:
        with connected(postgres_server) as admin:
            admin.execute(f"DROP DATABASE {copy} WITH (FORCE)")


def test_a_run_that_is_killed_while_it_builds_an_index_is_taken_up_by_the_next(
    empty_database_url: str,
) -> None:
    """It waits, with the index half built, for a transaction that was there before: nobody for it."""
    url = empty_database_url
    with connected(url) as connection:
        dialers.dirty(connection)
        connection.execute(
            "INSERT INTO callbacks (id, user_id, scheduled_for, original_call_session_id,"
            " created_at) SELECT gen_random_uuid(), n % 3, now(), gen_random_uuid(),"
            " now() - n * interval '1 s' FROM generate_series(1, 12) n"
        )
    left = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
    with psycopg.connect(url) as before, connected(url) as watching:
        before.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        before.execute("SELECT 1")
        with subprocess.Popen([sys.executable, "-c", MOVE, url], stderr=subprocess.PIPE) as process:
            try:
                wait_until(
                    lambda: watching.execute(f"{WAITING} AND locktype = 'virtualxid'").fetchone(),
                    "it to wait with the index half built",
                )
                # The dialer promises, and is told of missed calls, meanwhile.
                watching.execute("SET statement_timeout TO '1 s'")
                watching.execute(
                    "INSERT INTO callbacks (id, user_id, scheduled_for, original_call_session_id"
                    ") VALUES (gen_random_uuid(), 1, now(), gen_random_uuid())"
                )
            finally:
                process.kill()
        # Its server process would look for its client only once it no longer waits.
        watching.execute(
            f"SELECT pg_terminate_backend(pid) FROM ({WAITING} AND locktype = 'virtualxid') AS waiting"
        )
        wait_until(
            lambda: watching.execute(f"SELECT count(*) {OTHERS}").fetchone() == (1,),
            "its connection to end",
        )
        assert watching.execute(left).fetchone() == (1,)
    moved(url)
    check(url)
    assert rows(url, left) == [(0,)]
    assert rows(
        url, "SELECT count(*), count(DISTINCT user_id) FROM callbacks WHERE status = 'pending'"
    ) == [(3, 3)]


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


def test_a_rollback_gives_back_tables_on_which_the_old_statements_run(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.dirty(connection)
        before = connection.execute(f"SELECT count(*) FROM {UNSIGNED}").fetchone()
    moved(url)
    leader = Candidacy(url)
    assert leader.try_to_lead() is not None
    with pytest.raises(UsageError, match="a sequencer is running"):
        rollback(url)
    leader.close()
    leads = f"SELECT pid {OTHERS} AND starts_with(application_name, 'assignment-workers sequencer')"
    wait_until(lambda: not rows(url, leads), "the leader's lock to be free")
    with connected(url) as connection:
        # The agent of user 3 finished the call; user 11 is still on the phone.
        connection.execute(
            "UPDATE assignment.assignments SET state = 'completed', outcome = 'no_answer', "
            "ended_at = now(), ended_xid = 1, version = 2 WHERE user_id = 3"
        )
    assert rollback(url) == [f"public.{UNSIGNED}", f"public.{OUTSTANDING}"]
    with connected(url) as connection:
        assert connection.execute(f"SELECT count(*) FROM {UNSIGNED}").fetchone() == before
        assert connection.execute(
            f"SELECT user_id, assigned_to_agent FROM {OUTSTANDING} WHERE status = 'assigned'"
        ).fetchall() == [(11, 8)]
        assert connection.execute(
            f"SELECT status FROM {OUTSTANDING} WHERE user_id = 3"
        ).fetchall() == [("completed",)]
        assert (
            connection.execute(
                f"UPDATE {UNSIGNED} SET status = 'assigned', assigned_to_agent = 7 WHERE user_id = 1"
            ).rowcount
            == 2
        )
        connection.execute(f"DELETE FROM {UNSIGNED}")
        dialers.queue(connection, UNSIGNED, (50, 1, "pending", None))
    with pytest.raises(UsageError, match="nothing was taken over"):
        rollback(url)
    moved(url)
    assert state(url)[0] == [(50, 1, "pending", None)]
    assert (11, 8, "outstanding_requests", "active") in state(url)[2]


def test_the_dialer_is_not_blocked_for_a_second_even_behind_a_long_transaction(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
        connection.execute(
            f"INSERT INTO {UNSIGNED} (id, user_id, queue_position, updated_at) "
            "SELECT gen_random_uuid(), n, n, now() FROM generate_series(1, 20000) n"
        )
    longest = {"read": 0.0, "write": 0.0}
    counts = {"read": 0, "write": 0}
    over = threading.Event()
    broke: list[BaseException] = []

    def loop(kind: str, sql: str) -> None:
        with connected(url) as mine:
            while not over.is_set():
                began = time.monotonic()
                try:
                    mine.execute(sql)
                except psycopg.errors.FeatureNotSupported:
                    return  # the switch: from now on writes are refused
                except psycopg.Error as error:
                    broke.append(error)
                    return
                finally:
                    longest[kind] = max(longest[kind], time.monotonic() - began)
                counts[kind] += 1

    threads = [
        threading.Thread(
            target=loop,
            args=(
                "read",
                f"SELECT id FROM {UNSIGNED} WHERE status = 'pending' ORDER BY queue_position LIMIT 1",
            ),
        ),
        threading.Thread(
            target=loop,
            args=(
                "write",
                f"UPDATE {UNSIGNED} SET priority_score = priority_score + 1 WHERE id = (SELECT id FROM {UNSIGNED} LIMIT 1)",
            ),
        ),
    ]
    with psycopg.connect(url) as long, connected(url) as watching:
        long.execute(f"SELECT count(*) FROM {UNSIGNED}")  # and stays in its transaction
        for thread in threads:
            thread.start()
        moving = threading.Thread(target=moved, args=(url,), kwargs={"batch": 2000})
        moving.start()
        try:
            waits, was_waiting = 0, False
            ends = time.monotonic() + 20
            while waits < 3 and time.monotonic() < ends:
                is_waiting = bool(
                    watching.execute(
                        f"{WAITING} AND mode = 'AccessExclusiveLock' AND relation = %s::regclass",
                        [UNSIGNED],
                    ).fetchone()
                )
                waits += is_waiting and not was_waiting
                was_waiting = is_waiting
            assert waits == 3, "it gives the lock up and tries again"
        finally:
            long.rollback()
            moving.join(60)
            over.set()
            for thread in threads:
                thread.join(10)
    assert not moving.is_alive()
    assert broke == []
    assert min(counts.values()) > 10
    assert max(longest.values()) < 1.0, longest
    check(url)


LOCKED = """
SELECT extract(epoch FROM clock_timestamp() - waitstart)::float8
FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE application_name = 'dialer' AND NOT granted
AND waitstart IS NOT NULL
"""


@contextlib.contextmanager
def lock_waits(url: str) -> Iterator[list[float]]:
    """Within: the seconds for which the dialer's sessions wait for locks; the rest is the machine's.

    Those sessions are named `dialer`.
    """
    over, waits = threading.Event(), [0.0]

    def look() -> None:
        with connected(url) as mine:
            while not over.wait(0.005):
                waits.extend(seconds for (seconds,) in mine.execute(LOCKED))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield waits
    finally:
        over.set()
        looking.join(30)


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Within: the dialer reads its queue again and again."""
    over = threading.Event()

    def read() -> None:
        with connected(url) as mine:
            mine.execute("SET application_name = 'dialer'")
            while not over.is_set():
                mine.execute(f"SELECT FROM {UNSIGNED} LIMIT 1")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


@pytest.mark.parametrize(
    ("slow", "seconds"),
    [
        (["assignment.adoption_decisions"], 30.0),
        (["assignment.adoption_decisions", "assignment.assignments", "assignment.events"], 0.6),
    ],
    ids=["one statement", "each of three"],
)
def test_a_switch_that_takes_too_long_is_undone_and_tried_again(
    empty_database_url: str, slow: list[str], seconds: float
) -> None:
    """The dialer waits for it with its tables locked: no try may last."""
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
        dialers.queue(
            connection,
            UNSIGNED,
            *((1, 1, "assigned", 999), (2, 2, "pending", None), (3, 3, "assigned", 26)),
        )
    migrations.upgrade(url)
    with connected(url) as connection:
        for sql in BOOKS:
            connection.execute(sql.encode())
        connection.execute("CREATE SEQUENCE tries")
        connection.execute(f"""
            CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid()
                           AND relation = to_regclass('{UNSIGNED}')
                           AND mode = 'AccessExclusiveLock')
                   AND nextval('tries') < 3 * {len(slow)} THEN PERFORM pg_sleep({seconds}); END IF;
                RETURN NULL;
            END $$
        """)
        for table in slow:
            connection.execute(
                f"CREATE TRIGGER dawdle AFTER INSERT ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION dawdle()".encode()
            )
    began = time.monotonic()
    with lock_waits(url) as waits, reading(url):
        moved(url)
    assert time.monotonic() - began < 20
    assert max(waits) < LONGEST, "a try was undone too late"
    assert rows(url, "SELECT last_value > 2 FROM tries") == [(True,)], "it was slow"
    assert [row[:3] for row in state(url)[0]] == [
        (1, 1, "pending"),
        (2, 2, "pending"),
        (3, 0, "assigned"),
    ]
    check(url)


LONGEST = (LOCK_AT_MOST + SWITCH_AT_MOST).total_seconds() + 0.3
"""The longest that the dialer may wait for a lock of ours, in seconds; the rest is for commits."""


def test_what_the_dialer_does_meanwhile_is_not_lost_and_nothing_of_it_fails(
    empty_database_url: str,
) -> None:
    """Agents work on the old tables until the switch; whom they hold then they hold after it."""
    url = empty_database_url
    agents, users = range(1, 6), 15_000
    with connected(url) as connection:
        dialers.deployed(connection)
        connection.execute(
            f"INSERT INTO {UNSIGNED} (id, user_id, queue_position, updated_at) "
            f"SELECT gen_random_uuid(), n, n, now() FROM generate_series(1, {users}) n"
        )
    holds: dict[int, int | None] = {}
    broke: list[BaseException] = []

    def work(agent: int) -> None:
        """Take the next user, promise them a callback, and so on until writes are refused."""
        chance, hold = Random(agent), None
        with connected(url) as mine:
            do = mine.execute
            do("SET application_name = 'dialer'")
            try:
                while True:
                    taken = do(
                        f"UPDATE {UNSIGNED} SET status = 'assigned', assigned_to_agent = %s,"
                        f" assigned_at = timezone('UTC', clock_timestamp()) WHERE id = ("
                        f" SELECT id FROM {UNSIGNED} WHERE status = 'pending'"
                        " ORDER BY queue_position LIMIT 1 FOR UPDATE SKIP LOCKED)"
                        " RETURNING id, user_id",
                        [agent],
                    ).fetchone()
                    if taken is None:
                        raise AssertionError("too few users")
                    hold = taken[1]
                    do(
                        "INSERT INTO callbacks (id, user_id, scheduled_for,"
                        " original_call_session_id)"
                        " VALUES (gen_random_uuid(), %s, now(), gen_random_uuid())",
                        [chance.randint(1, 20)],
                    )
                    do(f"UPDATE {UNSIGNED} SET status = 'completed' WHERE id = %s", [taken[0]])
                    hold = None
            except psycopg.errors.FeatureNotSupported:
                holds[agent] = hold
            except (psycopg.Error, AssertionError) as error:
                broke.append(error)

    threads = [threading.Thread(target=work, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    try:
        with lock_waits(url) as waits:
            moved(url, batch=500)
    finally:
        for thread in threads:
            thread.join(30)
    assert broke == []
    assert dict(
        rows(url, "SELECT agent_id, user_id FROM assignment.assignments WHERE state = 'active'")
    ) == {agent: user for agent, user in holds.items() if user is not None}
    assert rows(url, "SELECT count(*) FROM callbacks")[0][0] > len(agents)
    assert max(waits) < LONGEST
    check(url)


def test_a_dry_run_says_every_statement_with_rows_and_locks_and_changes_nothing(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.dirty(connection)
    catalogue = "SELECT oid, relname FROM pg_class ORDER BY 1"
    before = rows(url, catalogue)
    engine = create_engine(driver_url(url))
    with engine.connect() as connection:
        said = plan(connection, url)
    assert rows(url, catalogue) == before
    places = [
        said.index(f"-- {number}. {step}")
        for number, step in enumerate(("expand", "backfill", "switch", "contract"), 1)
    ]
    assert places == sorted(places)
    assert f"-- {UNSIGNED}: 10 rows in 1 batches" in said
    assert "-- live holds: 6;" in said
    assert f"LOCK TABLE public.{UNSIGNED}, public.{OUTSTANDING} IN ACCESS EXCLUSIVE MODE;" in said
    assert "ALTER TABLE public.agents ALTER COLUMN updated_at SET DEFAULT now();" in said
    moved(url)
    with engine.connect() as connection:
        assert plan(connection, url) == ""
    engine.dispose()


def test_what_is_changed_while_it_is_copied_is_carried_over(empty_database_url: str) -> None:
    """Users who were skipped or deleted meanwhile do not wait again, and new ones do."""
    url, users = empty_database_url, 60
    with connected(url) as connection:
        dialers.deployed(connection)
        connection.execute(
            f"INSERT INTO {UNSIGNED} (id, user_id, queue_position, updated_at)"
            f" SELECT gen_random_uuid(), n, n, now() FROM generate_series(1, {users}) n"
        )
        dialers.queue(connection, OUTSTANDING, (200, 1, "pending", None))

    def tell(said: str) -> None:
        if f"{OUTSTANDING}: 1 rows read" not in said:
            return
        with connected(url) as mine:  # this table is copied by now, the other one is as well
            mine.execute(
                f"UPDATE {UNSIGNED} SET status = 'skipped' WHERE user_id BETWEEN 10 AND 29"
            )
            mine.execute(f"DELETE FROM {UNSIGNED} WHERE user_id = 30")
            mine.execute(f"UPDATE {UNSIGNED} SET user_id = 131 WHERE user_id = 31")
            dialers.queue(mine, UNSIGNED, (100, 1, "pending", None), (200, 2, "pending", None))
            dialers.queue(mine, UNSIGNED, (101, 3, "assigned", 7))

    moved(url, batch=1000, tell=tell)
    check(url)
    waiting = {user for (user, _, status, _) in state(url)[0] if status == "pending"}
    assert waiting == ({*range(1, 10), *range(32, users + 1), 100, 131})
    assert ("unsigned_users", 101, 7) in rows(
        url, "SELECT queue, user_id, agent_id FROM assignment.assignments WHERE state = 'active'"
    )
    assert rows(url, "SELECT count(*) FROM pg_trigger WHERE tgname ~ '^note_'") == [(0,)]
