"""What is in the way of a migration is listed at once, before its first change."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assignment_workers.adoption.migrate import migrate
from assignment_workers.adoption.rollback import rollback
from assignment_workers.errors import SchemaMismatch
from assignment_workers.schema.migrate import head
from assignment_workers.settings import Settings
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, as_role, connected
from tests.adoption.moving import moved, rows
from tests.adoption.test_adopting import run_command
from tests.adoption.test_inspect import inspected
from tests.support.commands import Forked

CATALOGUE = """
    SELECT 'relation', oid::bigint, relname::text, relkind::text FROM pg_class
    WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)
    UNION ALL SELECT 'column', attrelid::bigint, attname::text, atttypid::text FROM pg_attribute
    WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    UNION ALL SELECT 'trigger', oid::bigint, tgname::text, '' FROM pg_trigger
    UNION ALL SELECT 'schema', oid::bigint, nspname::text, '' FROM pg_namespace
    WHERE nspname !~ '^pg_temp|^pg_toast' ORDER BY 1, 2, 3
"""


@contextmanager
def role(url: str, name: str, options: str = "LOGIN") -> Iterator[str]:
    """Another role of the server, for as long as the block lasts: the database's address for it."""
    with connected(as_role(url, "postgres")) as connection:
        connection.execute(f"CREATE ROLE {name} {options}".encode())
        try:
            yield as_role(url, name)
        finally:
            connection.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}".encode())


def refused(url: str, before: str) -> str:
    """Why a migration is refused; nothing of the database behind `before` is changed by it."""
    was = rows(before, CATALOGUE)
    with pytest.raises(SchemaMismatch, match="nothing was changed") as found:
        moved(url)
    assert rows(before, CATALOGUE) == was
    said = str(found.value)
    assert "\n" not in said
    return said


OBSTACLES: dict[str, tuple[str, str]] = {
    "a name": (
        f"CREATE TABLE {UNSIGNED}_before_adoption ()",
        f"{UNSIGNED}_before_adoption is taken",
    ),
    "a view's name": (f"CREATE VIEW {OUTSTANDING}_made_by_adoption AS SELECT 1", "is taken"),
    "an index's name": (
        "CREATE INDEX uq_callbacks_pending_user ON agents (email)",
        "uq_callbacks_pending_user is taken",
    ),
    "a schema": (
        "CREATE SCHEMA assignment; CREATE TABLE assignment.theirs ()",
        "schema assignment is there and is not of this system: it has theirs",
    ),
    "duplicates": (
        "DROP INDEX agents_email_key; UPDATE agents SET email = 'same'",
        "agents has 1 values of email more than once",
    ),
    "a required column": (
        "ALTER TABLE conversions ADD team text NOT NULL",
        "conversions.team is not null without a default",
    ),
    "a table of neither": (f"ALTER TABLE {UNSIGNED} DROP COLUMN status", "of no schema"),
    "a partitioned table": (
        """DROP TABLE missed_calls; CREATE TABLE missed_calls (id uuid, phone_number varchar(20),
        caller_name text, user_id bigint, missed_at timestamp(3), reason varchar(50),
        status varchar(20), assigned_to_agent_id integer, assigned_at timestamp(3),
        twilio_call_sid text, session_id text, created_at timestamp(3)) PARTITION BY HASH (id)""",
        "missed_calls is partitioned",
    ),
    "a setting": (
        """DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica',
        current_database()); END $$""",
        "no trigger fires",
    ),
    "read only": (
        """DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',
        current_database()); END $$""",
        "default_transaction_read_only",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_each_obstacle_is_named_and_nothing_is_changed(empty_database_url: str, name: str) -> None:
    sql, said = OBSTACLES[name]
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
    with connected(as_role(empty_database_url, "postgres")) as connection:
        connection.execute(sql.encode())
    assert said in refused(empty_database_url, empty_database_url)


def test_all_that_is_in_the_way_is_listed_at_once_by_the_command_and_by_inspect(
    empty_database_url: str,
) -> None:
    together = [each for name, each in OBSTACLES.items() if name not in ("a setting", "read only")]
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
        for sql, _ in together:
            connection.execute(sql.encode())
    said = refused(empty_database_url, empty_database_url)
    missing = [each for _, each in together if each not in said]
    assert missing == []
    assert len(inspected(empty_database_url).obstacles) == len(together)


def test_a_role_without_the_rights_is_told_each_that_it_lacks(empty_database_url: str) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
    with role(url, "poor_role") as poor:
        with connected(url) as connection:
            connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO poor_role")
        said = refused(poor, url)
        for table in (UNSIGNED, OUTSTANDING, "agents", "callbacks", "missed_calls", "conversions"):
            assert f"public.{table} belongs to" in said
        assert "poor_role may not create a schema" in said
        assert "poor_role may not create in the schema public" in said


def test_settings_of_the_database_change_nothing_of_what_is_done(empty_database_url: str) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.dirty(connection)
        connection.execute("UPDATE callbacks SET scheduled_for = now()")
        for setting in (
            "datestyle = 'SQL, DMY'",
            "timezone = 'Asia/Kolkata'",
            "intervalstyle = 'sql_standard'",
            "lock_timeout = '1ms'",
        ):
            connection.execute(
                f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {setting.replace(chr(39), chr(39) * 2)}',"
                " current_database()); END $$".encode()
            )
    moved(url)
    ((claimed, now),) = rows(
        url,
        "SELECT min(claimed_at) > now() - interval '5 min', count(*) FROM assignment.assignments",
    )
    assert (claimed, now) == (True, 2)
    rollback(url)
    moved(url)


def test_the_session_that_a_migration_waits_for_is_named(empty_database_url: str) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
    told: list[str] = []
    named: list[str] = []
    heard = threading.Event()

    with psycopg.connect(url, application_name="a report") as blocking:
        holder = blocking.info.backend_pid

        def tell(said: str) -> None:
            told.append(said)
            # An autovacuum, too, may stand in the way, and is named before this session.
            if "waits for" in said and f"session {holder} of" in said:
                named.append(said)
                heard.set()

        blocking.execute(f"SELECT count(*) FROM {UNSIGNED}")
        moving = threading.Thread(target=moved, args=(url,), kwargs={"tell": tell})
        moving.start()
        try:
            assert heard.wait(30), told
        finally:
            blocking.rollback()
            moving.join(60)
    assert not moving.is_alive()
    assert UNSIGNED in named[0]
    assert "(a report)" in named[0]


VIEWS = f"""
    CREATE VIEW first_ten AS SELECT user_id, status FROM {UNSIGNED} ORDER BY queue_position LIMIT 10;
    CREATE VIEW of_that AS SELECT count(*) AS n FROM first_ten;
    CREATE MATERIALIZED VIEW frozen AS SELECT user_id FROM {UNSIGNED};
    CREATE RULE theirs AS ON DELETE TO {OUTSTANDING} DO ALSO NOTHING;
"""


def test_views_of_others_follow_to_the_new_one_and_back_and_what_cannot_is_named(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "pending", None), (2, 2, "pending", None))
        connection.execute(VIEWS)
    said = " | ".join(inspected(url).notes)
    assert "the view public.first_ten reads unsigned_users_queue: it follows" in said
    assert "materialized view public.frozen" in said
    assert "rule theirs on outstanding_requests_queue" in said
    moved(url)
    with connected(url) as connection:
        connection.execute(
            "UPDATE assignment.entries SET state = 'out', reason = 'x' WHERE user_id = 1"
        )
    read = "SELECT user_id, status FROM first_ten ORDER BY 1"
    assert rows(url, read) == [(1, "inactive"), (2, "pending")]
    assert rows(url, "SELECT n FROM of_that") == [(2,)]
    rollback(url)
    with connected(url) as connection:
        connection.execute(f"DELETE FROM {UNSIGNED} WHERE user_id = 2")
    assert rows(url, read) == [(1, "pending")]


def settings() -> Any:
    return Settings.from_environment({})


def test_a_prepared_statement_of_the_dialer_goes_on_after_the_switch(
    empty_database_url: str,
) -> None:
    """Its columns, their order and types are those of the table, `SELECT *` included."""
    url = empty_database_url
    with connected(url) as connection:
        dialers.widened(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "pending", None))
        connection.execute(f"PREPARE every AS SELECT * FROM {UNSIGNED} WHERE status = $1")
        before = connection.execute("EXECUTE every ('pending')").fetchall()
        migrate(url, settings=settings(), tell=lambda _: None)
        after = connection.execute("EXECUTE every ('pending')").fetchall()
        rollback(url)
        assert connection.execute("EXECUTE every ('pending')").fetchall() == before
    assert [row[1] for row in after] == [1]
    assert len(after[0]) == len(before[0])


LOCKS = ("UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE")


@pytest.mark.parametrize("made", [dialers.without_call_queue, dialers.widened])
def test_a_row_of_a_view_cannot_be_locked_and_no_lock_is_ever_pretended(
    empty_database_url: str, made: Callable[[psycopg.Connection], None]
) -> None:
    """A statement that was prepared before the switch is refused after it in the same words."""
    url = empty_database_url
    with connected(url) as connection:
        made(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "pending", None), (2, 2, "assigned", 7))
        asked = {
            f"{lock}{how}": (
                f"SELECT id FROM {UNSIGNED} WHERE status = 'pending' ORDER BY queue_position"
                f" LIMIT 1 FOR {lock}{how}"
            )
            for lock in LOCKS
            for how in ("", " NOWAIT", " SKIP LOCKED")
        }
        for number, sql in enumerate(asked.values()):
            connection.execute(f"PREPARE asked_{number} AS {sql}".encode())
            connection.execute(f"EXECUTE asked_{number}".encode())
        migrate(url, settings=settings(), tell=lambda _: None)
        for number, sql in enumerate(asked.values()):
            for each in (sql, f"EXECUTE asked_{number}"):
                with pytest.raises(psycopg.errors.FeatureNotSupported, match="outer join"):
                    connection.execute(each.encode())
        if made is dialers.without_call_queue:
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="outer join"):
                connection.execute("SELECT id FROM call_queue FOR UPDATE SKIP LOCKED")
        # Another table's rows are locked as ever, with the view read beside them.
        locked = connection.execute(
            f"SELECT a.id FROM agents a JOIN {UNSIGNED} q ON true WHERE q.status = 'pending'"
            " AND a.id = 7 FOR UPDATE OF a SKIP LOCKED"
        ).fetchall()
    assert locked == [(7,)]


def test_a_transaction_that_is_open_for_long_is_named_beforehand(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
    with psycopg.connect(empty_database_url, application_name="a report") as open_one:
        open_one.execute("SELECT 1")
        assert inspected(empty_database_url).notes == ()
        monkeypatch.setattr("assignment_workers.adoption.waits.OPEN_FOR_SECONDS", 0)
        (said,) = inspected(empty_database_url).notes
        assert f"session {open_one.info.backend_pid} of" in said
        assert "(a report) is in a transaction for" in said


def test_what_takes_longer_than_five_seconds_says_beforehand_how_long(
    empty_database_url: str, tmp_path: Path
) -> None:
    """In one line, or on a terminal below what is printed, with the time that has passed."""
    rows_of = "UPDATE pg_class SET reltuples = 4e6 WHERE relname = %s"
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
    with connected(as_role(empty_database_url, "postgres")) as connection:
        connection.execute(rows_of, ["callbacks"])
    done = run_command(empty_database_url, tmp_path, "schema", "inspect")
    assert done.stderr == "assignment-workers: about 8 s expected\n"
    lines = on_a_terminal(empty_database_url, tmp_path, "schema", "migrate")
    (step,) = (place for place, line in enumerate(lines) if line.startswith("expand: "))
    assert "about 64 s expected; the dialer goes on meanwhile" in "".join(lines[:step])
    assert "0:00:00" in "".join(lines)
    assert f"the schema is at revision {head()}" in lines
    with connected(as_role(empty_database_url, "postgres")) as connection:
        for table in ("callbacks", f"{UNSIGNED}_before_adoption"):
            connection.execute(rows_of, [table])
    done = run_command(empty_database_url, tmp_path, "schema", "rollback")
    assert done.stderr == "assignment-workers: about 7 s expected\n"


def on_a_terminal(url: str, home: Path, *words: str) -> list[str]:
    """What a command shows on a terminal, by lines and parts of another colour."""
    ours, terminal = os.openpty()
    given = {name: each for name, each in os.environ.items() if name != "REDIS_URL"}
    given |= {"DATABASE_URL": url, "ASSIGNMENT_WORKERS_HOME": str(home)}
    process = Forked(words, given | {"TERM": "xterm"}, Path(os.ttyname(terminal)))
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal's last user has gone
            while part := os.read(ours, 4096):
                shown.append(part)

    reading = threading.Thread(target=read)
    reading.start()
    code = process.wait(60)
    os.close(terminal)
    reading.join(10)
    os.close(ours)
    said = b"".join(shown).decode()
    assert code == 0, said
    return [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", said) if line]
