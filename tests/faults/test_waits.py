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
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from threading import Semaphore, get_ident
from time import monotonic
from typing import Any

import psycopg
import pytest
import redis
from celery import Celery
from kombu import Connection, Queue
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.answers import Assigned, Noted
from assignment_workers.assignment.crm import external_crm as crms
from assignment_workers.assignment.locks import key
from assignment_workers.errors import AssignmentWorkersError
from assignment_workers.gateway.events import feed as feeds
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import engine as engines
from assignment_workers.sequencer import term as terms
from assignment_workers.sequencer.term import Candidacy
from tests.faults.walks import LED, POOLED, QUORUM, WALKS, Place, Walk
from tests.support.celery_programs import ended
from tests.support.external_crm import OtherCrm
from tests.support.processes import Keeper, running, wait_until
from tests.support.root import ROOT
from tests.support.servers import Maria, Rabbit, free_port, wire

PAGE = ROOT / "docs" / "waits.md"
SLACK = 5.0
"""Seconds that a busy machine may take on top: sixty sessions share one process."""
SLACK_OF_STACK = 12.0
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
FEW = 4
POINTS = int(os.environ.get("WAITS_POINTS", str(FEW)))
"""Of a longer session, so many points, evenly spread; `make waits` walks through all."""
WHOLE_TRIES = 4
"""Goings through a session that nothing cuts, which is to learn how often it sends."""
WHOLE_AT_ONCE = 6
"""Of those; the cut ones wait, which costs no processor, and go all at once."""
AT_ONCE = Semaphore(60)
"""PostgreSQL serves a hundred connections."""
HEARTBEAT = 4
"""Seconds, for Celery's two minutes, between a maintenance worker and RabbitMQ."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    process: str
    seconds: float


def rows() -> list[Row]:
    """The table of the document."""
    found = []
    for line in re.findall(r"^\| (.+ \| .+ \| \d.+) \|$", PAGE.read_text(), re.MULTILINE):
        name, processes, at_most = line.split(" | ")
        found.append(Row(name, processes, float(at_most.split()[0].replace(",", ""))))
    return found


BY_PROCESSES = {
    "an event of a worker",
    "a message taken from Redis",
    "a message taken from RabbitMQ, by a sequencer or heartbeats",
    "a message taken from RabbitMQ, by maintenance",
}
"""Rows of a process's own loop: see the tests of those whose sessions are swallowed."""


def sendings(walk: Walk, place: Place) -> int:
    """How often a whole session sends; one that a busy machine ends is gone through again."""
    if not walk.to:
        return 0
    for _ in range(WHOLE_TRIES - 1):
        with suppress(*ENDS):
            return cut(walk, place, None).sent
    return cut(walk, place, None).sent


def walked(walk: Walk, place: Place, sent: int) -> list[float]:
    """Seconds of the session, by the sending from which on nothing came back."""
    if not walk.to:
        began = monotonic()
        walk.session(place)
        return [monotonic() - began]
    assert sent, "the session sent nothing"
    most = min(sent, POINTS)
    points = {round(each * sent / most) for each in range(most)}
    with ThreadPoolExecutor(most) as pool:
        found = list(pool.map(partial(cut, walk, place), sorted(points)))
    assert any(each.is_cut for each in found), "it is cut at its points"
    return [each.seconds for each in found]


@dataclass(frozen=True)
class Went:
    """One going through a session: seconds since the cut, sendings, whether it was cut."""

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
        # A busy machine takes seconds for what is exchanged before the wire is cut.
        return Went(monotonic() - (line.cut_at or began), line.sent, line.is_cut)


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
        closing(Candidacy(module_database_url, dialer=loaded(), lane=LED)) as leader,
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
        with ThreadPoolExecutor(WHOLE_AT_ONCE) as few:
            sent = {
                name: few.map(partial(sendings, place=place), sessions)
                for name, sessions in WALKS.items()
            }
        yield {
            name: [
                pool.submit(walked, each, place, count)
                for each, count in zip(sessions, sent[name], strict=True)
            ]
            for name, sessions in WALKS.items()
        }


def test_every_row_is_walked_and_every_session_has_its_row() -> None:
    assert {row.name for row in rows()} == {*WALKS, *BY_PROCESSES}


@pytest.mark.timeout(240)
def test_no_point_of_a_session_waits_longer_than_the_page_says(place: Place) -> None:
    """One test, because the rows are walked at the same time, in one process.

    A session that seems too late is walked once more by itself, when all the others are over: a
    processor that sixty sessions want may have been waited for.
    """
    late, seems_late = [], []
    with walks(place) as walking:
        for row in rows():
            for walk, future in zip(
                WALKS.get(row.name, []), walking.get(row.name, []), strict=True
            ):
                bound = max(
                    row.seconds - walk.less, CONNECT_SECONDS if walk.to == "database" else 0.0
                )
                if max(future.result()) > bound + SLACK:
                    seems_late.append((row.name, walk, bound))
        for name, walk, bound in seems_late:
            late += [
                f"{name}, {walk.to}, point {point}: {took:.1f} s, at most {bound:g} s"
                for point, took in enumerate(walked(walk, place, sendings(walk, place=place)))
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
        app = keep.enter_context(ended(Celery(broker=address, set_as_current=False)))
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
