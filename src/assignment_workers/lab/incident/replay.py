"""Runs the same load on each way to hand out users, and counts what goes wrong with each.

The ways are the original dialer, each remedy that was proposed for it, and this project. Each way
has its own copy of the same data.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import BaseModel

from assignment_workers.devstack import demo
from assignment_workers.errors import DatabaseUnavailable, UsageError
from assignment_workers.lab.incident.dialer import Contender
from assignment_workers.lab.incident.load import LoadPlan, Truth, run
from assignment_workers.lab.incident.original import WAYS
from assignment_workers.lab.incident.ours import Ours
from assignment_workers.schema.engine import connect, conninfo, driver_url
from assignment_workers.schema.migrate import upgrade

OURS = "ours"
OUR_WAY = "judge and hand out in one transaction, publish in another"
NAMES = (*WAYS, OURS)


class ReplayResult(BaseModel):
    """The counts and times of one way to hand out users to agents, measured in the replay.

    A way is the original dialer, whose rebuilds deleted rows while they were being assigned, or a
    remedy that was proposed for the original dialer, or this project. Every way is measured under
    the same load: simulated agents ask for users and call them, while jobs rebuild the dialer
    queue. Times are in milliseconds.
    """

    name: str
    way: str
    requests: int
    assigned: int
    not_found: int
    """The number of requests that failed because a rebuild had deleted the row before its update.

    The original dialer's database layer reports this as error P2025.
    """
    failed: int
    """The number of requests that failed with any error other than a missing row."""
    held_twice: int
    """The number of users whom two agents had at the same time."""
    destroyed: int
    """The number of holds that no longer existed when the agent finished the call."""
    told_empty: int
    """The number of requests after which the agent saw 'queue empty' although a user was waiting.
    """
    lost: int
    """The number of users who are still held after all agents have left and the queue was rebuilt.
    """
    rebuilds: int
    median_ms: float
    p99_ms: float
    errors: dict[str, int]

    @property
    def is_clean(self) -> bool:
        """True if nothing went wrong: no failed request, no lost user, no double hold and so on."""
        wrong = (self.not_found, self.failed, self.held_twice, self.destroyed)
        return not any((*wrong, self.told_empty, self.lost, self.errors))


class ReplayReport(BaseModel):
    """The results of a whole replay, and its parameters."""

    seed: int
    agents: int
    seconds: float
    speed: float
    users: int
    validation_ms: float
    results: list[ReplayResult]


def replay(
    server_url: str,
    plan: LoadPlan,
    names: Iterable[str] = NAMES,
    *,
    done: Callable[[ReplayResult], object] = lambda _: None,
) -> ReplayReport:
    """Run the load on each way to hand out users, one way at a time, in temporary databases.

    `names`: the ways, such as `original` or `ours`. The temporary databases are created on the
    server of `server_url`, and dropped afterwards. The database that `server_url` names is neither
    read nor written. `done` is called with each result. Raises `UsageError` if the database
    user in `server_url` may not create databases. Raises `DatabaseUnavailable` if the server cannot
    be reached.
    """
    results: list[ReplayResult] = []
    with _scratch(server_url, plan) as copies:
        for name in names:
            with copies() as url:
                results.append(_measure(name, url, plan))
            done(results[-1])
    return ReplayReport(
        seed=plan.seed,
        agents=plan.agents,
        seconds=plan.seconds,
        speed=plan.speed,
        users=plan.users,
        validation_ms=plan.validation.total_seconds() * 1000,
        results=results,
    )


def _measure(name: str, url: str, plan: LoadPlan) -> ReplayResult:
    randomness = Random(plan.seed)
    ways: dict[str, tuple[str, Callable[..., Contender]]] = {**WAYS, OURS: (OUR_WAY, Ours)}
    way, make = ways[name]
    looking = connect(url, name="replay", statement_timeout=timedelta(seconds=30), pool_size=8)
    dialer = make(url, agents=plan.agents, validation=plan.validation, randomness=randomness)
    try:
        truth = run(dialer, plan, looking)
        dialer.settle()
        dialer.rebuild()
        return _result(name, way, dialer, truth)
    finally:
        dialer.close()
        looking.dispose()


def _result(name: str, way: str, dialer: Contender, truth: Truth) -> ReplayResult:
    waits = sorted(truth.waits) or [0.0]
    return ReplayResult(
        name=name,
        way=way,
        requests=truth.counts["requests"],
        assigned=truth.counts["assigned"],
        not_found=truth.counts["not_found"],
        failed=truth.counts["failed"],
        held_twice=truth.held_twice,
        destroyed=truth.counts["destroyed"],
        told_empty=truth.counts["false_empty"],
        lost=dialer.stuck(),
        rebuilds=dialer.rebuilds(),
        median_ms=round(statistics.median(waits) * 1000, 1),
        p99_ms=round(waits[min(len(waits) - 1, round(len(waits) * 0.99))] * 1000, 1),
        errors=dict(truth.errors),
    )


@contextmanager
def _scratch(
    server_url: str, plan: LoadPlan
) -> Iterator[Callable[[], AbstractContextManager[str]]]:
    """Create a database with the demo CRM, and yield a function that copies this database.

    Each call of the function returns a new context manager. Its `with` block gets the address of a
    new copy, and the copy is dropped at the end of that block. The database with the demo CRM is
    dropped at the end of the `with` block of `_scratch`.
    """
    with _database(server_url, "template0") as (name, url):
        upgrade(url)
        engine = connect(url, name="replay", statement_timeout=timedelta(minutes=5))
        with engine.begin() as connection:
            demo.seed(connection, users=plan.users, seed=plan.seed, now=datetime.now(UTC))
        engine.dispose()

        @contextmanager
        def copy() -> Iterator[str]:
            with _database(server_url, name) as (_, made):
                yield made

        yield copy


@contextmanager
def _database(server_url: str, template: str) -> Iterator[tuple[str, str]]:
    name = f"assignment_workers_replay_{uuid4().hex[:12]}"
    given = driver_url(server_url)
    plain = conninfo(given)
    made = sql.Identifier(name)
    try:
        with psycopg.connect(plain, autocommit=True) as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(made, sql.Identifier(template))
            )
    except psycopg.errors.InsufficientPrivilege:
        raise UsageError(
            f"the role {given.username} may not make databases, and the replay runs in databases "
            "of its own: give it CREATEDB, or unset DATABASE_URL"
        ) from None
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        raise DatabaseUnavailable(f"the database cannot be reached: {reason}") from error
    try:
        own = make_conninfo(plain, dbname=name)
        yield name, own
    finally:
        with psycopg.connect(plain, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(made))
