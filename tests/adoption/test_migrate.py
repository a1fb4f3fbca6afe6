"""`schema migrate` and `schema rollback`: from every state, killed anywhere, and back."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from assignment_workers.adoption.plan import plan
from assignment_workers.adoption.rollback import rollback
from assignment_workers.errors import SchemaMismatch, UsageError
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.engine import driver_url
from assignment_workers.sequencer.term import Candidacy
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, STATES, UNSIGNED, connected
from tests.adoption.moving import check, columns, moved, rows, state
from tests.support.processes import wait_until
from tests.support.sessions import OTHERS, WAITING

FIND_FIRST = (
    'SELECT "public"."{table}"."id", "public"."{table}"."user_id", '
    '"public"."{table}"."queue_position", "public"."{table}"."{agent}" FROM "public"."{table}" '
    'WHERE ("public"."{table}"."status" = %s AND "public"."{table}"."{agent}" IS NULL) '
    'ORDER BY "public"."{table}"."queue_position" ASC LIMIT %s OFFSET %s'
)


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
from assignment_workers.dialer.loading import load
from assignment_workers.settings import Settings
settings = Settings.from_environment({})
load(settings)
migrate(sys.argv[1], settings=settings, tell=print, batch=2)
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
                    seconds=60.0,
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


def test_a_rollback_gives_back_tables_on_which_the_old_statements_run(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.dirty(connection)
        before = connection.execute(f"SELECT count(*) FROM {UNSIGNED}").fetchone()
    indexes = (
        "SELECT tablename, indexname FROM pg_indexes WHERE schemaname = 'public'"
        f" AND tablename IN ('{UNSIGNED}', '{OUTSTANDING}') ORDER BY 1, 2"
    )
    indexed = rows(url, indexes)
    moved(url)
    leader = Candidacy(url, dialer=loaded())
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
    assert rows(url, indexes) == indexed
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
        said = plan(connection, None, url)
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
        assert plan(connection, None, url) == ""
    engine.dispose()
