"""Every wait of docs/waits.md ends: a wire swallows everything, at each sending of a session.

The table is read from the document: a row that no session here walks through fails, and a session
that no row tells of does too. All rows and all points are walked at the same time.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from threading import Semaphore, Thread, get_ident
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from celery import Celery
from kombu import Connection, Queue
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.answers import Assigned, Noted
from assignment_workers.assignment.crm import external_crm as crms
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.locks import key
from assignment_workers.client import Client
from assignment_workers.client.erasing import forget_results_at
from assignment_workers.client.wire.brokers import connect_redis, sender
from assignment_workers.client.wire.database_clock import DatabaseClock
from assignment_workers.client.wire.message import message
from assignment_workers.errors import AssignmentWorkersError
from assignment_workers.gateway import app as gateway
from assignment_workers.gateway.dashboard.schedule import Schedule
from assignment_workers.gateway.events import feed as feeds
from assignment_workers.gateway.events.feed import Feed
from assignment_workers.gateway.serve import STATEMENT_SECONDS
from assignment_workers.schema import engine as engines
from assignment_workers.schema.crm import MAPPINGS
from assignment_workers.schema.deadline import BoundedConnection
from assignment_workers.schema.engine import connect, direct_url
from assignment_workers.sequencer import term as terms
from assignment_workers.sequencer.term import Candidacy
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from assignment_workers.tasks import process
from assignment_workers.tasks.app import create_app
from assignment_workers.tasks.beat import Scheduler
from tests.support.external_crm import OtherCrm
from tests.support.processes import Keeper, running, wait_until
from tests.support.root import ROOT
from tests.support.servers import Maria, Rabbit, Wire, free_port, wire

PAGE = ROOT / "docs" / "waits.md"
SLACK = 2.5
"""Seconds that a busy machine may take on top."""
SLACK_OF_STACK = 6.0
"""And where processes begin anew, which takes seconds of a processor."""
ENDS = (
    psycopg.Error,
    DBAPIError,
    PoolTimeout,
    RedisError,
    BrokerError,
    AssignmentWorkersError,
    OSError,
    asyncio.CancelledError,
)
"""What a session may end with."""
CONNECT_SECONDS = 5.0
"""Of a connection to PostgreSQL: a session's first sendings wait so long where its row has less."""
LANES = count(1)
FEW = 4
POINTS = int(os.environ.get("WAITS_POINTS", str(FEW)))
"""Of a longer session, so many points, evenly spread; `make waits` walks through all."""
AT_ONCE = Semaphore(60)
"""PostgreSQL serves a hundred connections."""
POOLED = "waits pooled"
CALL_SECONDS = 3.0
LED = "waits-led"
HEARTBEAT = 4
"""Seconds, for Celery's two minutes, between a maintenance worker and RabbitMQ."""
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    process: str
    seconds: float


@dataclass(frozen=True)
class Place:
    """What a session is walked in: the servers' addresses, that of the one it waits for a wire's."""

    database: str
    redis: str
    broker: str = ""
    crm: str = ""
    mysql: str = ""
    config: str = ""
    """`celeryconfig.py` as it is read where RabbitMQ is the broker."""
    wire: Wire | None = None
    direct: str = ""
    """The database's own address."""


@dataclass(frozen=True)
class Walk:
    """A session from its beginning to its end."""

    session: Callable[[Place], object]
    to: str
    """The server that falls silent."""
    less: float = 0.0
    """Seconds of the row's bound that the test does without, by what `hurried` changes."""


def rows() -> list[Row]:
    """The table of the document."""
    found = []
    for line in re.findall(r"^\| (.+ \| .+ \| \d.+) \|$", PAGE.read_text(), re.MULTILINE):
        name, processes, at_most = line.split(" | ")
        found.append(Row(name, processes, float(at_most.split()[0].replace(",", ""))))
    return found


def connecting(at: Place) -> None:
    BoundedConnection.connect(at.database, connect_timeout=5).close()


def transaction(at: Place) -> None:
    lane = f"waits{next(LANES)}"
    with psycopg.connect(at.direct, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO assignment.sequencer (lane, term, term_id) VALUES (%s, 1, %s)",
            [lane, UUID(int=1)],
        )
    made = connect(
        at.database,
        name="waits",
        statement_timeout=timedelta(seconds=process.TURN_SECONDS),
        index_plans_only=True,
    )
    try:
        with TransactionRunner(made, term=1, term_id=UUID(int=1), lane=lane).transaction() as one:
            one.connection.execute(text("SELECT 1"))
            one.record({"kind": "queue_paused", "queue": "unsigned_users"})
    finally:
        made.dispose()


def leading(at: Place) -> None:
    candidacy = Candidacy(at.database, lane=f"waits{next(LANES)}")
    try:
        assert candidacy.try_to_lead()
        candidacy.holds_lock()
        candidacy.sign()
    finally:
        candidacy.close()


def standing_by(at: Place) -> None:
    candidacy = Candidacy(at.database, lane=LED)
    try:
        assert candidacy.try_to_lead() is None, "another leads"
        candidacy.sign()
    finally:
        candidacy.close()


def reading(at: Place, seconds: float = STATEMENT_SECONDS) -> None:
    made = connect(
        at.database, name="waits", statement_timeout=timedelta(seconds=seconds), pool_size=2
    )
    try:
        with made.begin() as connection:
            connection.execute(text("SELECT 1"))
            connection.execute(text("SELECT 2"))
    finally:
        made.dispose()


def pooled(at: Place) -> None:
    """A long statement, where the server's own process is not known."""
    made = connect(
        at.database, name=POOLED, statement_timeout=timedelta(seconds=process.JOB_SECONDS)
    )
    try:
        with made.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.exchange_seconds -= process.JOB_SECONDS
            connection.execute(text("SELECT 1"))
    finally:
        made.dispose()


def check_out(at: Place) -> None:
    """The pool's only connection is in use."""
    made = connect(at.database, name="waits", statement_timeout=timedelta(seconds=1))
    try:
        with made.connect(), pytest.raises(PoolTimeout):
            made.connect()
    finally:
        made.dispose()


def starting(at: Place) -> None:
    direct_url(settings(at))


def listening(at: Place, *, until_idle: bool) -> None:
    made = connect(
        at.database, name="waits", statement_timeout=timedelta(seconds=STATEMENT_SECONDS)
    )

    async def listen() -> None:
        feed = Feed(made, at.database)
        following = asyncio.create_task(feed._follow())
        started = asyncio.create_task(feed.started.wait())
        await asyncio.wait([following, started], return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if following.done():
            return following.result()
        if until_idle:
            assert at.wire
            at.wire.cut()
            return await following
        following.cancel()
        await asyncio.wait([following])
        return None

    try:
        asyncio.run(listen())
    finally:
        made.dispose()


def sending(url: str, repeats: int = 2) -> None:
    async def send() -> None:
        way = sender(url)
        try:
            for number in range(repeats):
                said = message(
                    "assignment.probe",
                    [],
                    {},
                    task_id=f"waits-{number}",
                    celery_queue="waits",
                    expires=None,
                )
                await way.send("waits", said)
        finally:
            await way.close()

    asyncio.run(send())


def clock(at: Place) -> None:
    async def read() -> None:
        server = connect_redis(at.redis)
        try:
            await DatabaseClock(server, monotonic).read()
        finally:
            await server.aclose()

    asyncio.run(read())


def calling(at: Place) -> None:
    """A caller whom nobody answers, whatever comes back."""
    client = Client.connect(at.redis, broker_url=settings(at).broker_url)
    client.request_next(1, timeout=timedelta(seconds=CALL_SECONDS))
    Thread(target=client.close).start()


def hanging_up(at: Place) -> None:
    """A client that has just sent something."""
    with Client.connect(at.redis, broker_url=settings(at).broker_url) as client:
        client.request_next(1, timeout=timedelta(seconds=CALL_SECONDS))


def settings(at: Place) -> Settings:
    given = {"DATABASE_URL": at.database, "REDIS_URL": at.redis}
    if at.wire and str(at.broker) == at.wire.url:
        given |= {"BROKER_URL": at.broker, "ASSIGNMENT_WORKERS_CELERY_CONFIG": at.config}
    return Settings.from_environment(given)


def result(at: Place) -> None:
    app = create_app(settings(at))
    app.backend.store_result("waits", {"outcome": "done"}, "SUCCESS")


def probing(at: Place) -> None:
    app = create_app(settings(at))
    try:
        for _ in range(2):
            process._send_probe(app, "maintenance")
    finally:
        app.close()


def publishing(at: Place) -> None:
    """What a job sends, tried again once in place of thirty times."""
    app = create_app(settings(at))
    app.conf.task_publish_retry_policy["max_retries"] = 1
    try:
        app.send_task("generation.publish", [1], queue="maintenance", ignore_result=True)
    finally:
        app.close()


def checking(at: Place) -> None:
    process._check_redis(settings(at))


def beating(at: Place) -> None:
    app = create_app(settings(at))
    scheduler = Scheduler(app=app, lazy=True)
    scheduler.tick()


def schedule(at: Place) -> None:
    Schedule(gateway._redis(settings(at)))._read()


def forgetting(at: Place) -> None:
    class Nobody:
        def is_named(self, _: str) -> bool:
            return False

    forget_results_at(at.redis, Nobody())  # type: ignore[arg-type]


def crm(at: Place, what: Callable[[Crm], object]) -> None:
    read = Crm(at.crm, MAPPINGS["original"], timeout=timedelta(seconds=2))
    try:
        what(read)
    finally:
        read.close()


def everything(read: Crm) -> None:
    for _ in read.everything():
        pass


WALKS: dict[str, list[Walk]] = {
    "a connection to PostgreSQL": [Walk(connecting, "database")],
    "an exchange of a turn, its COMMIT among them": [Walk(transaction, "database")],
    "the lock and the signs of life, leading": [Walk(leading, "database")],
    "the lock and the leader's signs, standing by": [Walk(standing_by, "database")],
    "a statement for an answer or a page": [Walk(reading, "database")],
    "LISTEN": [Walk(partial(listening, until_idle=False), "database")],
    "a notification": [Walk(partial(listening, until_idle=True), "database", less=14)],
    "a job's statement": [Walk(partial(reading, seconds=process.JOB_SECONDS), "database", less=9)],
    "a job's statement behind a pooler": [Walk(pooled, "database", less=process.JOB_SECONDS)],
    "a free connection of its own pool": [Walk(check_out, "", less=29)],
    "the address of PostgreSQL itself, at the start": [Walk(starting, "database")],
    "a message sent over Redis": [Walk(lambda at: sending(at.redis), "redis")],
    "the database's clock, by Redis": [Walk(clock, "redis")],
    "an answer": [
        Walk(calling, "redis", less=10 - CALL_SECONDS),
        Walk(calling, "broker", less=10 - CALL_SECONDS),
    ],
    "the end of a client": [Walk(hanging_up, to, less=-CALL_SECONDS) for to in ("redis", "broker")],
    "a result stored": [Walk(result, "redis")],
    "a probe sent over Redis": [Walk(probing, "redis")],
    "what a job sends over Redis": [Walk(publishing, "redis", less=262)],
    "the kind of Redis, at the start": [Walk(checking, "redis")],
    "the schedule and its lock": [Walk(beating, "redis")],
    "the next times of jobs, for a page": [Walk(schedule, "redis")],
    "results that name a person": [Walk(forgetting, "redis")],
    "a message sent over RabbitMQ": [Walk(lambda at: sending(at.broker), "broker")],
    "a probe sent over RabbitMQ": [Walk(probing, "broker")],
    "what a job sends over RabbitMQ": [Walk(publishing, "broker", less=262)],
    "facts of a CRM elsewhere": [
        Walk(partial(crm, what=lambda read: read.facts([1])), to) for to in ("crm", "mysql")
    ],
    "a CRM elsewhere whole, each batch": [
        Walk(partial(crm, what=everything), to, less=55) for to in ("crm", "mysql")
    ],
    "the tables of a CRM elsewhere, at the start": [
        Walk(partial(crm, what=Crm.check), to) for to in ("crm", "mysql")
    ],
}
"""By the first cell of a row."""
BY_PROCESSES = {
    "an event of a worker",
    "a message taken from Redis",
    "a message taken from RabbitMQ, by a sequencer or heartbeats",
    "a message taken from RabbitMQ, by maintenance",
}
"""Rows of a process's own loop: see the tests of those whose sessions are swallowed."""


def walked(walk: Walk, place: Place) -> list[float]:
    """Seconds of the session, by the sending from which on nothing came back."""
    if not walk.to:
        began = monotonic()
        walk.session(place)
        return [monotonic() - began]
    whole = cut(walk, place, None)
    assert whole.sent, "the session sent nothing"
    most = min(whole.sent, POINTS)
    points = {round(each * whole.sent / most) for each in range(most)}
    with ThreadPoolExecutor(most) as pool:
        found = list(pool.map(partial(cut, walk, place), sorted(points)))
    assert any(each.is_cut for each in found), "it is cut at its points"
    return [each.seconds for each in found]


@dataclass(frozen=True)
class Went:
    """One going through a session: seconds, sendings, whether it was cut at one of them."""

    seconds: float
    sent: int
    is_cut: bool


def cut(walk: Walk, place: Place, point: int | None) -> Went:
    """Go through a session, whole or until a point from which on nothing comes back."""
    with AT_ONCE, wire(getattr(place, walk.to)) as line:
        if point is not None:
            line.cut_after(point)
        addresses: dict[str, Any] = {"crm" if walk.to == "mysql" else walk.to: line.url}
        at = replace(place, wire=line, **addresses)
        began = monotonic()
        try:
            walk.session(at)
        except ENDS:
            if point is None and not line.is_cut:
                raise
        return Went(monotonic() - began, line.sent, line.is_cut)


@pytest.fixture(scope="module")
def place(
    module_database_url: str, valkey_server: str, rabbit: Rabbit, maria: Maria
) -> Iterator[Place]:
    """The servers, with what the sessions look for in them."""
    config = PAGE.parents[1] / "celeryconfig.py"
    redis_url = f"{valkey_server.rpartition('/')[0]}/2"
    maria.run("CREATE DATABASE waits")
    for url in (module_database_url, f"{maria.url}waits"):
        OtherCrm(url, "original")
    with (
        tempfile.TemporaryDirectory() as folder,
        Connection(rabbit.url) as connection,
        closing(Candidacy(module_database_url, lane=LED)) as leader,
    ):
        for name in ("waits", "maintenance"):
            Queue(name, channel=connection.channel(), queue_arguments=QUORUM).declare()
        over_rabbit = Path(folder) / "celeryconfig.py"
        told = '_address("BROKER_URL") or '
        said = config.read_text()
        assert told in said
        over_rabbit.write_text(said.replace(told, f"{rabbit.url!r} or "))
        assert leader.try_to_lead()
        yield Place(
            database=module_database_url,
            direct=module_database_url,
            redis=redis_url,
            crm=module_database_url,
            broker=rabbit.url,
            mysql=f"{maria.url}waits",
            config=str(over_rabbit),
        )
        maria.run("DROP DATABASE waits")  # the module may be entered again by the same process
        for name in ("waits", "maintenance"):
            Queue(name, channel=connection.channel()).delete()
        with redis.Redis.from_url(redis_url) as server:
            server.flushdb()


@contextmanager
def walks(place: Place) -> Iterator[dict[str, list[Future[list[float]]]]]:
    """Every session at each of its points, all at once: most of it is waiting."""
    is_pooled = engines._is_pooled

    def looks_pooled(connection: psycopg.Connection[Any]) -> bool:
        return POOLED in connection.info.dsn or is_pooled(connection)

    with pytest.MonkeyPatch.context() as hurried, ThreadPoolExecutor(len(WALKS) * 2) as pool:
        hurried.setattr(engines, "LOOK_SECONDS", 1.0)
        hurried.setattr(engines, "_is_pooled", looks_pooled)
        hurried.setattr(
            terms, "key", lambda name: key(f"terms {get_ident()}" if name == "terms" else name)
        )
        hurried.setattr(feeds, "SILENCE_SECONDS", 1.0)
        hurried.setattr(crms, "BATCH_SECONDS", 2.0)
        yield {
            name: [pool.submit(walked, each, place) for each in sessions]
            for name, sessions in WALKS.items()
        }


def test_every_row_is_walked_and_every_session_has_its_row() -> None:
    assert {row.name for row in rows()} == {*WALKS, *BY_PROCESSES}


@pytest.mark.timeout(240)
def test_no_point_of_a_session_waits_longer_than_the_page_says(place: Place) -> None:
    """One test, because the rows are walked at the same time, in one process."""
    late = []
    with walks(place) as walking:
        for row in rows():
            for walk, future in zip(
                WALKS.get(row.name, []), walking.get(row.name, []), strict=True
            ):
                bound = max(
                    row.seconds - walk.less, CONNECT_SECONDS if walk.to == "database" else 0.0
                )
                late += [
                    f"{row.name}, {walk.to}, point {point}: {took:.1f} s, at most {bound:g} s"
                    for point, took in enumerate(future.result())
                    if took > bound + SLACK
                ]
    assert not late, "\n".join(late)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("broker", ["RabbitMQ", "Redis"] if POINTS > FEW else ["Redis"])
def test_workers_whose_sessions_are_swallowed_go_on(
    broker: str, database_url: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Those that they have are silent, and a new one is served: as where a host has hung."""
    seconds = {row.name.removeprefix("a message taken from "): row.seconds for row in rows()}
    config = (PAGE.parents[1] / "celeryconfig.py").read_text()
    own = tmp_path / "celeryconfig.py"
    own.write_text(f"{config}\nbroker_heartbeat = {HEARTBEAT}\n")
    with ExitStack() as keep:
        stack = keep.enter_context(running(database_url, redis_url, tmp_path))
        if broker == "RabbitMQ":
            rabbit: Rabbit = request.getfixturevalue("rabbit")
            keep.enter_context(rabbit.queues())
            stack.broker_url = rabbit.url
            quick = seconds["RabbitMQ, by a sequencer or heartbeats"]
            jobs = seconds["RabbitMQ, by maintenance"] - 2 * 120 + 2 * HEARTBEAT
        else:
            quick = jobs = seconds["Redis"]
        stack.seed(users=1000)
        client = stack.client()
        line = keep.enter_context(wire(stack.broker_url or stack.redis_url))
        if stack.broker_url:
            stack.broker_url = line.url
        else:
            stack.redis_url = line.url
        keep.enter_context(Keeper(stack, "sequencer", "sequencer", "heartbeats"))
        stack.start("maintenance", celery_config=str(own))
        stack.wait_for_leader(seconds=90.0)
        stack.regenerate(client)
        line.freeze()
        began = monotonic()
        went: dict[str, float] = {}

        def assigned() -> bool:
            return isinstance(client.request_next(1, timeout=timedelta(seconds=30)), Assigned)

        def noted() -> bool:
            return isinstance(client.heartbeat(2, timeout=timedelta(seconds=30)), Noted)

        begun = "SELECT count(*) FROM assignment.job_runs WHERE job = 'queue.regenerate'"
        before = stack.value(begun)

        def taken() -> bool:
            assert isinstance(client.regenerate("unsigned_users"), str)
            return bool(wait_until(lambda: stack.value(begun) > before, "the job to begin"))

        def timed(what: Callable[[], bool]) -> None:
            assert what(), what.__name__
            went[what.__name__] = monotonic() - began

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(timed, (assigned, noted, taken)))
        assert went["assigned"] < quick + SLACK_OF_STACK, went
        assert went["noted"] < max(quick, jobs) + SLACK_OF_STACK, went
        assert went["taken"] < jobs + SLACK_OF_STACK, went


@pytest.mark.timeout(120)
@pytest.mark.parametrize("broker", ["RabbitMQ", "Redis"] if POINTS > FEW else ["Redis"])
def test_flower_hears_of_events_again_when_its_session_is_swallowed(
    broker: str, database_url: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (row,) = (row for row in rows() if row.name == "an event of a worker")
    with ExitStack() as keep:
        stack = keep.enter_context(running(database_url, redis_url, tmp_path))
        address = redis_url
        if broker == "RabbitMQ":
            rabbit: Rabbit = request.getfixturevalue("rabbit")
            keep.enter_context(rabbit.queues())
            address = rabbit.url
        line = keep.enter_context(wire(address))
        stack.redis_url, stack.broker_url = redis_url, line.url
        port = free_port()
        stack.start("flower", flower_port=str(port), flower_basic_auth="ann:hunter2")
        app = Celery(broker=address, set_as_current=False)
        connection = keep.enter_context(app.connection_for_write())
        events = keep.enter_context(app.events.Dispatcher(connection, enabled=True))
        login = {"Authorization": f"Basic {b64encode(b'ann:hunter2').decode()}"}

        def is_told_of(worker: str) -> bool:
            events.hostname = worker
            events.send("worker-heartbeat")
            with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as flower:
                try:
                    flower.request("GET", "/metrics", headers=login)
                    return worker in flower.getresponse().read().decode()
                except OSError:
                    return False

        wait_until(partial(is_told_of, "waits-before"), "Flower to hear of an event", seconds=60)
        line.freeze()
        began = monotonic()
        wait_until(partial(is_told_of, "waits-after"), "Flower to hear of another", seconds=60)
        assert monotonic() - began < row.seconds + SLACK_OF_STACK
