"""`schema migrate` while the dialer works."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from random import Random

import psycopg
import pytest

from assignment_workers.adoption import migrate
from assignment_workers.adoption.migrate import BOOKS, LOCK_AT_MOST, SWITCH_AT_MOST
from assignment_workers.adoption.rollback import rollback
from assignment_workers.adoption.shapes import KEPT
from assignment_workers.schema import migrate as migrations
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected
from tests.adoption.moving import check, moved, rows, state
from tests.support.sessions import WAITING


def test_the_dialer_is_blocked_only_briefly_even_behind_a_long_transaction(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
        connection.execute(
            f"INSERT INTO {UNSIGNED} (id, user_id, queue_position, updated_at) "
            "SELECT gen_random_uuid(), n, n, now() FROM generate_series(1, 20000) n"
        )
    counts = {"read": 0, "write": 0}
    over = threading.Event()
    broke: list[BaseException] = []

    def loop(kind: str, sql: str) -> None:
        with connected(url) as mine:
            mine.execute("SET application_name = 'dialer'")
            while not over.is_set():
                try:
                    mine.execute(sql)
                except psycopg.errors.FeatureNotSupported:
                    return  # the switch: from now on writes are refused
                except psycopg.Error as error:
                    broke.append(error)
                    return
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
    with psycopg.connect(url) as long, connected(url) as watching, lock_waits(url) as locked:
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
    assert 0 < max(locked) < 1.0, "the dialer waited too long for a lock"
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
    by_user = (
        "SELECT count(*) FROM pg_indexes WHERE indexdef ~ '^CREATE INDEX .* USING btree .user_id.$'"
    )
    kept = f"{by_user} AND tablename IN ('{UNSIGNED}{KEPT}', '{OUTSTANDING}{KEPT}')"
    assert rows(url, kept) == [(2,)], "by which changes are found, however large the tables are"


def test_a_switch_that_needs_longer_gets_it_after_several_tries(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow or distant database 250 ms never suffice."""
    monkeypatch.setattr(migrate, "SWITCH_TRIES", 2)
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "assigned", 999), (2, 2, "pending", None))
    migrations.upgrade(url)
    with connected(url) as connection:
        for sql in BOOKS:
            connection.execute(sql.encode())
        connection.execute("CREATE SEQUENCE tries")
        connection.execute("""
            CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM nextval('tries'), pg_sleep(0.35); RETURN NULL; END $$
        """)
        connection.execute(
            "CREATE TRIGGER dawdle AFTER INSERT ON assignment.adoption_decisions"
            " FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"
        )
    moved(url)
    assert rows(url, "SELECT last_value >= 3 FROM tries") == [(True,)], "it was too slow at first"
    check(url)


PARTITIONED = f"""
    ALTER TABLE {UNSIGNED} RENAME TO whole;
    CREATE TABLE {UNSIGNED} (LIKE whole INCLUDING DEFAULTS) PARTITION BY HASH (id);
    CREATE TABLE half PARTITION OF {UNSIGNED} FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE other_half PARTITION OF {UNSIGNED} FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    ALTER TABLE {UNSIGNED} ADD PRIMARY KEY (id);
    DROP TABLE whole
"""


@pytest.mark.parametrize(
    "hinders",
    [
        PARTITIONED,
        f"CREATE TABLE {UNSIGNED}_adoption_user (of_theirs text)",
        f"CREATE INDEX {UNSIGNED}_adoption_user ON callbacks (user_id)",
    ],
    ids=["a partitioned table", "a table of the name", "another table's index of the name"],
)
def test_where_the_index_by_user_cannot_be_built_the_switch_goes_without(
    empty_database_url: str, hinders: str
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
        connection.execute(hinders.encode())
        dialers.queue(connection, UNSIGNED, (1, 1, "assigned", 26), (2, 2, "pending", None))
    theirs = f"SELECT count(*) FROM pg_class WHERE relname = '{UNSIGNED}_adoption_user'"
    before = rows(url, theirs)

    def tell(said: str) -> None:
        if f"{UNSIGNED}: 2 rows read" in said:
            with connected(url) as mine:
                mine.execute(f"UPDATE {UNSIGNED} SET status = 'skipped' WHERE user_id = 2")
                dialers.queue(mine, UNSIGNED, (3, 3, "pending", None))

    moved(url, batch=1000, tell=tell)
    check(url)
    assert {user for (user, _, status, _) in state(url)[0] if status == "pending"} == {3}
    assert rows(url, theirs) == before
    rollback(url)
    assert rows(url, theirs) == before


def test_an_index_of_a_run_that_was_killed_is_built_anew(empty_database_url: str) -> None:
    url = empty_database_url
    name = f"{UNSIGNED}_adoption_user"
    with connected(url) as connection:
        dialers.deployed(connection)
        dialers.queue(connection, UNSIGNED, (1, 1, "pending", None), (1, 2, "pending", None))
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {UNSIGNED} (user_id)")
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
    assert rows(url, valid, name) == [(False,)]
    moved(url)
    assert rows(url, valid, name) == [(True,)]
