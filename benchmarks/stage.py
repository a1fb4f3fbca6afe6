"""What every benchmark stands on: embedded servers that write to disk, and tables of figures."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, event, text

from assignment_workers.assignment import jobs
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.generations.regenerate import regenerate
from assignment_workers.devstack import demo, postgres, server, valkey
from assignment_workers.devstack.guardian import Guardian
from assignment_workers.devstack.log import Log
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.policy.queues import Policy
from assignment_workers.runtime.home import hold
from assignment_workers.schema.engine import connect
from assignment_workers.schema.migrate import upgrade
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings


@dataclass(frozen=True)
class Servers:
    """Where the servers of this run are."""

    database_url: str
    redis_url: str


@contextmanager
def servers() -> Iterator[Servers]:
    """PostgreSQL with our schema, and Valkey, as `up` starts them; gone at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="assignment-workers-") as folder,
        hold(Path(folder) / "home") as home,
        Guardian(keeps=[home.descriptor]) as guardian,
    ):
        log = Log(sys.stderr, colour=False)
        database = postgres.prepare(home.path / "postgres")
        redis = valkey.prepare(home.path / "valkey")
        started = [server.start(each, log, guardian) for each in (database, redis)]
        try:
            upgrade(database.url)
            yield Servers(database.url, redis.url)
        finally:
            for child in started:
                child.stop()


@contextmanager
def ending(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever has been started by the end is ended then, all at once."""
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


@contextmanager
def engine(database_url: str, *, pool_size: int = 2) -> Iterator[Engine]:
    """An engine with the limits of a process that builds."""
    made = connect(
        database_url,
        name="benchmark",
        statement_timeout=timedelta(minutes=15),
        pool_size=pool_size,
    )
    yield made
    made.dispose()


def seed(on: Engine, *, users: int) -> None:
    """The demo CRM with so many users in each pool.

    Beyond `SPREAD` they are unsigned ones alone, plain and eligible: what a claim costs does not
    ask for more, and ten million in each pool as the demo spreads them take an hour to make.
    """
    spread = min(users, SPREAD)
    with on.begin() as connection:
        demo.seed(connection, users=spread, seed=1, now=datetime.now(UTC))
    for first in range(spread * 2 + 1, spread * 2 + 1 + users - spread, SPREAD):
        last = min(first + SPREAD, spread * 2 + 1 + users - spread) - 1
        with on.begin() as connection:
            for statement in PLAIN:
                connection.execute(text(statement), {"first": first, "last": last})
    with on.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in ("crm.users", "crm.claims", "public.user_call_scores"):
            connection.execute(text(f"VACUUM ANALYZE {table}"))


SPREAD = 1_100_000
PLAIN = (
    """
    INSERT INTO crm.users (id, is_enabled, status, first_name, last_name, phone_number,
      email_address, created_at)
    SELECT id, true, 'active', 'Ben', 'Baker', '+447700900' || lpad((id % 1000)::text, 3, '0'),
      'user' || id || '@example.com', timezone('UTC', now()) - interval '9 days'
    FROM generate_series(CAST(:first AS bigint), :last) AS id
    """,
    """
    INSERT INTO crm.claims (id, user_id, type, status, lender)
    SELECT id * 10, id, 'irl', 'open', 'West Bank'
    FROM generate_series(CAST(:first AS bigint), :last) AS id
    """,
    """
    INSERT INTO public.user_call_scores (id, user_id, current_score, total_attempts,
      successful_calls, is_active, current_queue_type, created_at, updated_at)
    SELECT md5(id::text)::uuid, id, (id * 7919) % 200, 1, 0, true, 'unsigned_users',
      timezone('UTC', now()) - (id % 180) * interval '1 day', timezone('UTC', now())
    FROM generate_series(CAST(:first AS bigint), :last) AS id
    """,
)


def line(on: Engine, crm: Crm | None = None) -> TransactionRunner:
    """The assignment queue's side of the database, under a term of its own.

    `crm`: the CRM if it is in another database.
    """
    with on.begin() as connection:
        raised = text("UPDATE assignment.sequencer SET term = term + 1 RETURNING term")
        return TransactionRunner(
            for_turns(on, crm),
            dialer=loaded(),
            crm=crm,
            term=connection.execute(raised).scalar_one(),
        )


@cache
def for_turns(on: Engine, crm: Crm | None = None) -> Engine:
    """An engine as a sequencer has it, one for as long as the other one is in use."""
    made = connect(
        on.url.render_as_string(hide_password=False),
        name="benchmark turns",
        statement_timeout=timedelta(minutes=15),
        pool_size=2,
        index_plans_only=True,
    )
    use_fact_schema(made, loaded(), crm)
    event.listen(on, "engine_disposed", lambda _: made.dispose())
    return made


def build(on: Engine, policy: Policy, settings: Settings) -> int:
    """Build a generation of this dialer queue: its number."""

    def work(given: jobs.Work) -> jobs.Counts:
        limited = replace(policy, limit=settings.queue_limit)
        number, _ = regenerate(given, loaded(), None, limited, trigger="hand")
        return {"generation": number}

    return jobs.run(on, jobs.Job("queue.regenerate", "hand", policy.queue), work).counts[
        "generation"
    ]


def build_and_publish(on: Engine, policy: Policy, settings: Settings) -> None:
    """A published generation of this dialer queue."""
    number = build(on, policy, settings)
    line(on).run(lambda transaction: publish(transaction, number))


def milliseconds(seconds: Sequence[float]) -> tuple[str, str]:
    """Median and 99th percentile, in milliseconds."""
    ranked = sorted(seconds)
    worst = ranked[min(len(ranked) - 1, round(len(ranked) * 0.99))]
    return f"{statistics.median(ranked) * 1000:.2f}", f"{worst * 1000:.2f}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table of figures."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=110).print(table)
