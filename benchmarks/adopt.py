"""What taking over a dialer's database costs, and how long the dialer waits for anything meanwhile.

    .venv/bin/python -m benchmarks.adopt [--rows N]

N rows in each queue table and N callbacks, missed calls and conversions, of which one in five is
pending and half of those are doubled. Each command is run as an operator runs it, in a process of
its own. Meanwhile a dialer reads and writes each of its tables without pause, one statement after
another on a connection of each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import psutil
import psycopg
from sqlalchemy import create_engine

from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.engine import driver_url
from benchmarks.stage import servers, show
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected

FILL = f"""
INSERT INTO {UNSIGNED} (id, user_id, queue_position, priority_score, updated_at)
SELECT gen_random_uuid(), n, n, n % 200, now() FROM generate_series(1, {{rows}}) n;
INSERT INTO {OUTSTANDING} (id, user_id, queue_position, priority_score, updated_at)
SELECT gen_random_uuid(), n, n, n % 200, now() FROM generate_series({{rows}} + 1, 2 * {{rows}}) n;
UPDATE {UNSIGNED} SET status = 'assigned', assigned_to_agent = user_id, assigned_at = now()
WHERE user_id <= 50;
INSERT INTO user_call_scores (id, user_id, current_queue_type, current_score, updated_at)
SELECT gen_random_uuid(), n,
       CASE WHEN n > {{rows}} THEN 'outstanding_requests' ELSE 'unsigned_users' END, n % 200, now()
FROM generate_series(1, 2 * {{rows}}) n;
INSERT INTO callbacks (id, user_id, scheduled_for, original_call_session_id, status)
SELECT gen_random_uuid(), n / 10, now(), gen_random_uuid(),
       CASE WHEN n % 10 < 2 THEN 'pending' ELSE 'completed' END
FROM generate_series(1, {{rows}}) n;
INSERT INTO missed_calls (id, phone_number, missed_at, reason, status, twilio_call_sid)
SELECT gen_random_uuid(), '+447700900123', now(), 'agents_busy',
       CASE WHEN n % 10 < 2 THEN 'pending' ELSE 'assigned' END, 'CA' || n / 10
FROM generate_series(1, {{rows}}) n;
INSERT INTO conversions (id, user_id, previous_queue_type, conversion_type, converted_at)
SELECT gen_random_uuid(), n, 'unsigned_users', 'signature_obtained', now()
FROM generate_series(1, {{rows}}) n;
"""
CRM = """
INSERT INTO crm.users (id, is_enabled, created_at)
SELECT n, true, now() FROM generate_series(1, 2 * {rows}) n;
"""
STATISTICS = """
DO $$ DECLARE each regclass; BEGIN
    FOR each IN SELECT oid FROM pg_class WHERE relkind = 'r'
        AND relnamespace IN ('public'::regnamespace, 'crm'::regnamespace)
    LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = {enabled})', each); END LOOP;
END $$
"""
DIALER = {
    "reads the queue": f"SELECT id FROM {UNSIGNED} WHERE status = 'pending'"
    " ORDER BY queue_position LIMIT 1",
    "writes the queue": f"UPDATE {UNSIGNED} SET priority_score = priority_score + 1 WHERE id ="
    f" (SELECT id FROM {UNSIGNED} WHERE queue_position = %(any)s LIMIT 1)",
    "promises a callback": "INSERT INTO callbacks (id, user_id, scheduled_for,"
    " original_call_session_id) VALUES (gen_random_uuid(), random() * 100000, now(),"
    " gen_random_uuid())",
    "reads callbacks": "SELECT id FROM callbacks WHERE user_id = 77 LIMIT 1",
    "is told of missed calls": "INSERT INTO missed_calls (id, phone_number, missed_at,"
    " reason, twilio_call_sid) VALUES (gen_random_uuid(), '+447700900124', now(),"
    " 'agents_busy', 'CA' || (random() * 100000)::int)",
    "counts conversions": "SELECT count(*) FROM (SELECT FROM conversions LIMIT 100) AS a",
}

LOCKED = """
SELECT application_name, max(extract(epoch FROM clock_timestamp() - waitstart))::float8
FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE waitstart IS NOT NULL GROUP BY 1
"""


@dataclass
class Ran:
    """A command: its seconds, and the most bytes that its process had in memory."""

    seconds: float = 0.0
    memory: int = 0
    said: list[str] = field(default_factory=list)


def run(database_url: str, *words: str) -> Ran:
    """One command, as an operator runs it."""
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        given = {
            "DATABASE_URL": database_url,
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "ASSIGNMENT_WORKERS_HOME": home,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "assignment_workers", "schema", *words],
            env=os.environ | given,  # noqa: TID251 - handed on
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            ran, watched = Ran(), psutil.Process(process.pid)
            lines = threading.Thread(target=lambda: ran.said.extend(process.stdout or ()))
            lines.start()
            while process.poll() is None:
                try:
                    ran.memory = max(ran.memory, watched.memory_info().rss)
                except psutil.NoSuchProcess:
                    break
                time.sleep(0.02)
            lines.join()
        ran.seconds = time.perf_counter() - began
        if process.returncode not in (0, 1):
            raise SystemExit(f"schema {' '.join(words)} failed")
        return ran


@dataclass
class Wait:
    """How often a dialer did something, and the longest that it waited for it."""

    times: int = 0
    longest: float = 0.0
    locked: float = 0.0
    """The longest that it waited for a lock: the rest is the machine's."""


@contextmanager
def dialer(database_url: str, rows: int) -> Iterator[dict[str, Wait]]:
    """A dialer at work until the end of the block; refused writes end that part of it."""
    over, waits = threading.Event(), {name: Wait() for name in DIALER}
    failed: list[BaseException] = []

    def work(name: str, sql: str) -> None:
        wait, chance = waits[name], Random(name)
        with connected(database_url) as mine:
            mine.execute("SELECT set_config('application_name', %s, false)", [name])
            while not over.is_set():
                began = time.perf_counter()
                try:
                    mine.execute(sql.encode(), {"any": chance.randint(1, rows)})
                except psycopg.errors.FeatureNotSupported:
                    return
                except psycopg.Error as error:
                    failed.append(error)
                    return
                finally:
                    wait.longest = max(wait.longest, time.perf_counter() - began)
                wait.times += 1

    threads = [
        threading.Thread(target=_look, args=(database_url, waits, over)),
        *(threading.Thread(target=work, args=given) for given in DIALER.items()),
    ]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def _look(database_url: str, waits: dict[str, Wait], over: threading.Event) -> None:
    with connected(database_url) as mine:
        while not over.is_set():
            for name, seconds in mine.execute(LOCKED):
                if name in waits:
                    waits[name].locked = max(waits[name].locked, seconds)
            time.sleep(0.005)


def fill(database_url: str, rows: int) -> None:
    """A deployed dialer beside its CRM, in an empty database."""
    with connected(database_url) as connection:
        dialers.deployed(connection)
        connection.execute(b"CREATE SCHEMA crm")
        connection.execute(STATISTICS.format(enabled="off").encode())
        connection.execute(FILL.format(rows=rows).encode())
    made = create_engine(driver_url(database_url))
    CrmBase.metadata.create_all(made)
    made.dispose()
    with connected(database_url) as connection:
        connection.execute(STATISTICS.format(enabled="off").encode())
        connection.execute(CRM.format(rows=rows).encode())


def analyse(database_url: str) -> None:
    """Statistics, which a database has that was not restored a moment ago."""
    with connected(database_url) as connection:
        connection.execute(STATISTICS.format(enabled="on").encode())
        connection.execute(b"ANALYZE")


def adopt(database_url: str, rows: int) -> tuple[dict[str, Ran], dict[str, Wait], dict[str, Wait]]:
    """Every step of docs/adopting.md: what each cost, and how a dialer waited.

    The waits are those of a dialer alone, for as long as the commands that only look, and of one
    during the migration.
    """
    ran = {"compare, without statistics": run(database_url, "compare")}
    analyse(database_url)
    with dialer(database_url, rows) as alone:
        for words in ("inspect", "compare", "migrate --dry-run"):
            ran[words] = run(database_url, *words.split())
    with dialer(database_url, rows) as meanwhile:
        ran["migrate"] = run(database_url, "migrate")
    ran["migrate again"] = run(database_url, "migrate")
    ran["rollback"] = run(database_url, "rollback")
    return ran, alone, meanwhile


def main() -> None:
    """Measure, and print."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.adopt", description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000, help="in each table")
    rows = options.parse_args().rows
    with servers() as at:
        with psycopg.connect(at.database_url, autocommit=True) as admin:
            admin.execute("CREATE DATABASE dialer")
        url = f"{at.database_url.rpartition('/')[0]}/dialer"
        fill(url, rows)
        ran, alone, meanwhile = adopt(url, rows)
    show(
        f"Taking over a dialer with {rows:,} rows in each table",
        ["schema", "seconds", "most memory, MB"],
        [[name, f"{each.seconds:.1f}", round(each.memory / 1e6)] for name, each in ran.items()],
    )
    show(
        "A dialer at work: the longest that it waited, in ms",
        ["", "while others look", "while migrated", "of that for a lock", "statements meanwhile"],
        [
            [
                name,
                round(alone[name].longest * 1000),
                round(each.longest * 1000),
                round(each.locked * 1000),
                f"{each.times:,}",
            ]
            for name, each in meanwhile.items()
        ],
    )


if __name__ == "__main__":
    main()
