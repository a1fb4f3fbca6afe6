"""The sessions of the processes with servers, which a test walks through point by point."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from threading import Thread
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.client import Client
from assignment_workers.client.erasing import forget_results_at
from assignment_workers.client.wire.brokers import connect_redis, sender
from assignment_workers.client.wire.database_clock import DatabaseClock
from assignment_workers.client.wire.message import message
from assignment_workers.gateway import app as gateway
from assignment_workers.gateway.dashboard.schedule import Schedule
from assignment_workers.gateway.events.feed import Feed
from assignment_workers.gateway.serve import STATEMENT_SECONDS
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.deadline import BoundedConnection
from assignment_workers.schema.engine import connect, direct_url
from assignment_workers.sequencer.term import Candidacy
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from assignment_workers.tasks import process
from assignment_workers.tasks.app import create_app
from assignment_workers.tasks.beat import Scheduler
from tests.support.celery_programs import ended
from tests.support.dialers import DIALERS
from tests.support.servers import Wire

LANES = count(1)
POOLED = "waits pooled"
CALL_SECONDS = 3.0
LED = "waits-led"
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}


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
        with TransactionRunner(
            made, dialer=loaded(), term=1, term_id=UUID(int=1), lane=lane
        ).transaction() as one:
            one.connection.execute(text("SELECT 1"))
            one.record({"kind": "queue_paused", "queue": "unsigned_users"})
    finally:
        made.dispose()


def leading(at: Place) -> None:
    candidacy = Candidacy(at.database, dialer=loaded(), lane=f"waits{next(LANES)}")
    try:
        assert candidacy.try_to_lead()
        candidacy.holds_lock()
        candidacy.sign()
    finally:
        candidacy.close()


def standing_by(at: Place) -> None:
    candidacy = Candidacy(at.database, dialer=loaded(), lane=LED)
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
    with ended(create_app(settings(at))) as app:
        app.backend.store_result("waits", {"outcome": "done"}, "SUCCESS")


def probing(at: Place) -> None:
    with ended(create_app(settings(at))) as app:
        for _ in range(2):
            process._send_probe(app, "maintenance")


def publishing(at: Place) -> None:
    """What a job sends, tried again once in place of thirty times."""
    with ended(create_app(settings(at))) as app:
        app.conf.task_publish_retry_policy["max_retries"] = 1
        app.send_task("generation.publish", [1], queue="maintenance", ignore_result=True)


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
    declared = DIALERS["claims"].external_facts("original", {})
    read = Crm(at.crm, declared, timeout=timedelta(seconds=2))
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
        Walk(partial(crm, what=lambda read: read.facts({1: 1})), to) for to in ("crm", "mysql")
    ],
    "a CRM elsewhere whole, each batch": [
        Walk(partial(crm, what=everything), to, less=55) for to in ("crm", "mysql")
    ],
    "the tables of a CRM elsewhere, at the start": [
        Walk(partial(crm, what=Crm.check), to) for to in ("crm", "mysql")
    ],
}
"""By the first cell of a row."""
