"""What a request costs its caller, alone and among 256, beside what one would use otherwise.

.venv/bin/python -m benchmarks.requests
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from celery import Celery
from celery.result import AsyncResult, ResultSet
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import ClauseElement, Engine, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from assignment_workers import memory
from assignment_workers.assignment import candidates, claim, grants, ledger
from assignment_workers.client import Assigned, AsyncClient, Client, Finished, HttpClient, commands
from assignment_workers.client.asking import Asking
from assignment_workers.client.commands import Command
from assignment_workers.client.reading import as_finish_answer, as_request_answer
from assignment_workers.gateway.serve import is_alive
from assignment_workers.identity import new_id
from assignment_workers.policy.queues import UNSIGNED_USERS
from assignment_workers.settings import Settings
from benchmarks.stage import (
    Servers,
    build_and_publish,
    ending,
    engine,
    milliseconds,
    seed,
    servers,
    show,
)

T = TypeVar("T")

AGENTS = 256
CONNECTIONS = 8
QUEUE = UNSIGNED_USERS.queue
PLAIN = "one plain Celery task each"
LONG = timedelta(seconds=60)
IN_TURN = 20
"""Calls of a lone caller, one way, before the next way has its turn."""

NO_OP = Celery("no_op")
NO_OP.conf.update(
    broker_url=os.environ.get("REDIS_URL"),  # noqa: TID251 - the worker's door
    result_backend=os.environ.get("REDIS_URL"),  # noqa: TID251
    task_default_queue="no_op",
)
"""What a lone request is compared with: Celery as it comes, on the same Valkey."""
POOLS = ("solo", "prefork")
"""The sequencer's, which is quicker for one task at a time, and Celery's default."""


@NO_OP.task(name="no_op")
def no_op() -> None:
    """Nothing."""


@dataclass
class Figures:
    """What was measured of one way to ask."""

    name: str
    claims: list[float] = field(default_factory=list)
    """Claims a second, one for each round in which all ask once."""
    waits: list[float] = field(default_factory=list)
    """Seconds of each claim of those rounds."""
    both: list[float] = field(default_factory=list)
    """Claims a second where each is finished too."""


@dataclass
class Way:
    """A way for all agents to ask, and to finish."""

    name: str
    ask: Callable[[int], Awaitable[tuple[UUID, int]]]
    finish: Callable[[int, tuple[UUID, int]], Awaitable[None]]


async def measure(way: Way, rounds: int) -> Figures:
    """All agents ask at once and then all finish, so many rounds; the first is not counted."""
    figures = Figures(way.name)

    async def one(agent: int) -> tuple[tuple[UUID, int], float]:
        began = time.perf_counter()
        given = await way.ask(agent)
        return given, time.perf_counter() - began

    for number in range(rounds + 1):
        began = time.perf_counter()
        given = await asyncio.gather(*(one(agent) for agent in range(1, AGENTS + 1)))
        claimed = time.perf_counter()
        await asyncio.gather(
            *(way.finish(agent, each) for agent, (each, _) in enumerate(given, start=1))
        )
        ended = time.perf_counter()
        if number:
            figures.claims.append(AGENTS / (claimed - began))
            figures.both.append(AGENTS / (ended - began))
            figures.waits += [seconds for _, seconds in given]
    return figures


def coalesced(client: AsyncClient) -> Way:
    """Through one coalescing client."""

    async def ask(agent: int) -> tuple[UUID, int]:
        return _given(await client.request_next(agent, queue=QUEUE, timeout=LONG))

    async def finish(agent: int, given: tuple[UUID, int]) -> None:
        _finished(await client.complete(given[0], agent, "no_answer", version=1, timeout=LONG))

    return Way("one coalescing client", ask, finish)


@dataclass
class Tasks:
    """Tasks of a Celery application that hand out and finish, as Celery itself sends them."""

    name: str
    claim: Callable[[int], AsyncResult[Any]]
    finish: Callable[[Any], AsyncResult[Any]]
    """Of what `claim` returned."""


def measure_tasks(tasks: Tasks, rounds: int) -> Figures:
    """As `measure`: all agents' tasks are sent, then their results awaited as they come."""
    figures = Figures(tasks.name)
    for number in range(rounds + 1):
        began = time.perf_counter()
        sent: dict[str, float] = {}
        results = []
        for agent in range(1, AGENTS + 1):
            sent_at = time.perf_counter()
            results.append(tasks.claim(agent))
            sent[results[-1].id] = sent_at
        waits, given = [], []
        for task, meta in ResultSet(results).iter_native(timeout=60):
            waits.append(time.perf_counter() - sent[task])
            given.append(meta["result"])
        claimed = time.perf_counter()
        ResultSet([tasks.finish(each) for each in given]).join_native(timeout=60)
        done = time.perf_counter()
        if number:
            figures.claims.append(AGENTS / (claimed - began))
            figures.both.append(AGENTS / (done - began))
            figures.waits += waits
    return figures


def plain(redis_url: str) -> Tasks:
    """One plain Celery task for each request and each finish, as any program with Celery asks."""
    NO_OP.conf.update(broker_url=redis_url, result_backend=redis_url)

    def send(task: str, said: dict[str, Any]) -> AsyncResult[Any]:
        return NO_OP.send_task(f"assignment.{task}", kwargs=said, queue="assignment")

    def finish(answer: dict[str, Any]) -> AsyncResult[Any]:
        hold = as_request_answer(answer)
        said = {"assignment_id": str(_given(hold)[0]), "agent_id": answer["assignment"]["agent_id"]}
        return send("complete", said | {"outcome": "no_answer"})

    return Tasks(PLAIN, lambda agent: send("request", {"agent_id": agent, "queue": QUEUE}), finish)


def one_by_one(client: AsyncClient) -> Way:
    """Our client, with one message for each request and for each finish."""
    chance = Random()

    async def ask(agent: int) -> tuple[UUID, int]:
        name = str(new_id(datetime.now(UTC), chance))
        asked = replace(commands.request(agent, QUEUE, name, timeout=LONG), many=None)
        return _given(as_request_answer(await client.ask(asked, LONG)))

    async def finish(agent: int, given: tuple[UUID, int]) -> None:
        said = {"assignment_id": str(given[0]), "agent_id": agent, "outcome": "no_answer"}
        _finished(as_finish_answer(await client.ask(Command("assignment.complete", said), LONG)))

    return Way("our client, a message each", ask, finish)


class Http:
    """One kept connection of one agent, as a browser has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON of the answer."""
        said = json.dumps(body).encode()
        self._writer.write(
            b"POST %s HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(said), said)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        answer: dict[str, Any] = json.loads(await self._reader.readexactly(length))
        if int(head.split()[1]) != HTTPStatus.OK:
            raise RuntimeError(f"the gateway answered {answer}")
        return answer

    def close(self) -> None:
        """Give the connection back."""
        self._writer.close()


def over_http(connections: Sequence[Http]) -> Way:
    """Through one gateway process, each agent on a connection of its own."""

    async def ask(agent: int) -> tuple[UUID, int]:
        said = {"agent_id": agent, "queue": QUEUE, "timeout_ms": 30_000}
        answer = await connections[agent - 1].post("/v1/requests", said)
        return _given(as_request_answer(answer))

    async def finish(agent: int, given: tuple[UUID, int]) -> None:
        said = {"agent_id": agent, "outcome": "no_answer", "version": 1}
        path = f"/v1/assignments/{given[0]}/complete"
        _finished(as_finish_answer(await connections[agent - 1].post(path, said)))

    return Way("one gateway process, HTTP", ask, finish)


class SkipLocked:
    """Eight connections that do the same work themselves: same checks, same rows, same finish.

    The statements of the claim are its own, compiled once; only the head is locked by FOR UPDATE
    SKIP LOCKED where the sequencer needs no lock.
    """

    def __init__(self, database_url: str, settings: Settings) -> None:
        self._url = database_url
        self._settings = settings
        self._work: queue.SimpleQueue[Callable[[psycopg.Connection[Any]], None] | None] = (
            queue.SimpleQueue()
        )
        self._threads = [threading.Thread(target=self._run) for _ in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads with their connections."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def way(self) -> Way:
        """Agents share the connections: whichever is free serves the next."""

        async def ask(agent: int) -> tuple[UUID, int]:
            return await self._do(lambda connection: self._claim(connection, agent))

        async def finish(agent: int, given: tuple[UUID, int]) -> None:
            await self._do(lambda connection: self._finish(connection, agent, *given))

        return Way(f"{CONNECTIONS} psycopg connections, SKIP LOCKED", ask, finish)

    async def _do(self, what: Callable[[psycopg.Connection[Any]], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def work(connection: psycopg.Connection[Any]) -> None:
            try:
                value = what(connection)
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, value)

        self._work.put(work)
        return await done

    def _run(self) -> None:
        with psycopg.connect(self._url, row_factory=dict_row, prepare_threshold=2) as connection:
            while (work := self._work.get()) is not None:
                work(connection)

    def _claim(self, connection: psycopg.Connection[Any], agent: int) -> tuple[UUID, int]:
        with connection.transaction():
            now = _one(connection, "SELECT clock_timestamp() AS now", {})["now"]
            name = str(new_id(now, Random()))
            asked = {"ids": [name], "agents": [agent], "since": now - self._settings.skip_agent}
            asker = _one(connection, LOOK_UP, asked)
            if not asker["is_active"] or asker["hold"] or QUEUE not in asker["allowed_queues"]:
                raise RuntimeError(f"agent {agent} may not ask")
            places = _rows(connection, PLACES, {"instant": now, "now": now}).fetchall()
            (generation,) = (each["generation_id"] for each in places if each["name"] == QUEUE)
            head = {"generation": generation, "after": -1, "now": now}
            while (found := _one(connection, HEAD, head))["broken"] or found["held"]:
                head["after"] = found["rank"]
            return self._keep(
                connection, agent, name, now, generation=generation, found=found
            ), found["user_id"]

    def _keep(
        self,
        connection: psycopg.Connection[Any],
        agent: int,
        name: str,
        now: datetime,
        *,
        generation: int,
        found: dict[str, Any],
    ) -> UUID:
        made, at = new_id(now, Random()), now.isoformat()
        until = (now + self._settings.lease).isoformat()
        hold = {
            "id": str(made),
            "user_id": found["user_id"],
            "agent_id": agent,
            "queue": QUEUE,
            "source": "queue",
            "reason": "new",
            "rank": found["rank"],
            "claimed_at": at,
            "lease_expires_at": until,
            "version": 1,
            "state": "active",
        }
        granted = {
            **hold,
            "request_id": name,
            "generation_id": generation,
            "score": found["score"],
            "term": 1,
            "details": {"rank": found["rank"], "lease_expires_at": until},
            "asked_queue": QUEUE,
            "answer": {"outcome": "assigned", "assignment": hold, "replayed": False},
        }
        _rows(connection, KEEP, {"granted": Jsonb([granted]), "answered": Jsonb([])})
        return made

    @staticmethod
    def _finish(
        connection: psycopg.Connection[Any], agent: int, assignment: UUID, user: int
    ) -> None:
        said = {"assignment": assignment, "agent": agent, "user": user, "queue": QUEUE}
        with connection.transaction():
            found = _one(connection, FIND, said)
            if (found["agent_id"], found["state"]) != (agent, "active"):
                raise RuntimeError(f"agent {agent} does not hold it")
            for statement in (END, TOLD, SCORE, LEAVE):
                _rows(connection, statement, said)


def _rows(
    connection: psycopg.Connection[Any], statement: str | Statement, said: dict[str, Any]
) -> psycopg.Cursor[Any]:
    made = statement if isinstance(statement, Statement) else Statement(statement, {})
    return connection.execute(made.sql.encode(), made.constants | said)


def _one(
    connection: psycopg.Connection[Any], statement: str | Statement, said: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] | None = _rows(connection, statement, said).fetchone()
    if found is None:
        raise RuntimeError("nobody is left to claim: give more --users")
    return found


@dataclass(frozen=True)
class Statement:
    """A statement of SQLAlchemy's as psycopg takes it, with the constants that stand in it."""

    sql: str
    constants: dict[str, Any]

    @classmethod
    def of(cls, statement: ClauseElement) -> Statement:
        """Compiled once."""
        made = statement.compile(dialect=PGDialect_psycopg())  # type: ignore[no-untyped-call]
        return cls(str(made), {k: v for k, v in made.params.items() if v is not None})


LOOK_UP = Statement.of(ledger._LOOK_UP)  # noqa: SLF001 - the same work is the point
PLACES = Statement.of(claim._PLACES)  # noqa: SLF001
KEEP = Statement.of(grants.KEEP)
_HEAD = Statement.of(candidates._judged(UNSIGNED_USERS, 1))  # noqa: SLF001
HEAD = replace(_HEAD, sql=_HEAD.sql.replace("LIMIT 1)", "LIMIT 1 FOR UPDATE SKIP LOCKED)"))
FIND = "SELECT * FROM assignment.assignments WHERE id = %(assignment)s FOR UPDATE"
END = (
    "UPDATE assignment.assignments SET state = 'completed', version = version + 1,"
    " ended_at = clock_timestamp(), ended_xid = pg_current_xact_id()::text::bigint,"
    " outcome = 'no_answer' WHERE id = %(assignment)s AND state = 'active'"
)
TOLD = (
    "INSERT INTO assignment.events (at, kind, term, queue, user_id, agent_id, assignment_id,"
    " details) VALUES (clock_timestamp(), 'completed', 1, %(queue)s, %(user)s, %(agent)s,"
    """ %(assignment)s, '{"outcome": "no_answer"}')"""
)
SCORE = (
    "UPDATE user_call_scores SET current_score = current_score + 1,"
    " total_attempts = total_attempts + 1, next_call_after = now() + interval '1 day',"
    " last_call_at = now(), last_outcome = 'no_answer', updated_at = now()"
    " WHERE user_id = %(user)s"
)
LEAVE = (
    "UPDATE assignment.entries SET state = 'out', available_from = NULL, reason = 'completed'"
    " WHERE generation_id IN (SELECT id FROM assignment.generations WHERE state = 'published')"
    " AND user_id = %(user)s AND state <> 'out'"
)


def _given(answer: object) -> tuple[UUID, int]:
    match answer:
        case Assigned(assignment=held, replayed=False):
            return held.id, held.user_id
        case other:
            raise RuntimeError(f"nobody was assigned: {other}")


def _finished(answer: object) -> None:
    match answer:
        case Finished():
            pass
        case other:
            raise RuntimeError(f"not finished: {other}")


def lone(at: Servers, gateway_url: str, calls: int) -> list[tuple[str, list[float]]]:
    """Seconds of each call by a caller who is alone: a few of each way in turn, again and again."""
    NO_OP.conf.update(broker_url=at.redis_url, result_backend=at.redis_url)

    def nothing(pool: str) -> float:
        began = time.perf_counter()
        NO_OP.send_task("no_op", queue=f"no_op_{pool}").get(timeout=10)
        return time.perf_counter() - began

    def asked(asking: Asking) -> float:
        began = time.perf_counter()
        answer = asking.request_next(1, queue=QUEUE)
        seconds = time.perf_counter() - began
        _finished(asking.complete(_given(answer)[0], 1, "no_answer"))
        return seconds

    with Client.connect(at.redis_url) as client, HttpClient(gateway_url) as http:
        ways: dict[str, Callable[[], float]] = {
            "a no-op Celery task, solo pool": lambda: nothing("solo"),
            "a no-op Celery task, prefork pool (the default)": lambda: nothing("prefork"),
            "a request, Python client": lambda: asked(client),
            "a request, HTTP": lambda: asked(http),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(calls // IN_TURN):
            for name, way in ways.items():
                found[name] += [way() for _ in range(IN_TURN + 1)][1:]  # the first finds it cold
    return list(found.items())


def merge(into: dict[str, Figures], figures: Figures) -> None:
    """Add the figures of one more turn."""
    kept = into.setdefault(figures.name, Figures(figures.name))
    kept.claims += figures.claims
    kept.waits += figures.waits
    kept.both += figures.both


async def together(
    at: Servers, port: int, settings: Settings, rounds: int, turns: int
) -> list[Figures]:
    """Every way in turn, again and again, so that a noisy moment hits them all."""
    found: dict[str, Figures] = {}
    skip_locked = SkipLocked(at.database_url, settings)
    try:
        async with AsyncExitStack() as keep:
            connections = []
            for _ in range(AGENTS):
                connections.append(Http(*await asyncio.open_connection("127.0.0.1", port)))
                keep.callback(connections[-1].close)
            client = await keep.enter_async_context(AsyncClient(at.redis_url))
            ways = [one_by_one(client), coalesced(client), over_http(connections)]
            for _ in range(turns):
                merge(found, await measure(skip_locked.way(), rounds))
                merge(found, await asyncio.to_thread(measure_tasks, plain(at.redis_url), rounds))
                for way in ways:
                    merge(found, await measure(way, rounds))
    finally:
        skip_locked.close()
    return list(found.values())


@contextmanager
def processes(at: Servers, port: int, logs: Path) -> Iterator[None]:
    """A sequencer, a gateway and two workers for the no-op task."""
    environment = os.environ | {  # noqa: TID251 - handed on
        "DATABASE_URL": at.database_url,
        "REDIS_URL": at.redis_url,
        "ASSIGNMENT_WORKERS_EMBEDDED": "true",
        "ASSIGNMENT_WORKERS_GATEWAY_PORT": str(port),
        "ASSIGNMENT_WORKERS_GATEWAY_AGENT_RATE": "100000",
    }
    ours = [sys.executable, "-m", "assignment_workers", "process"]
    no_op_worker = [sys.executable, "-m", "celery", "-A", "benchmarks.requests:NO_OP", "worker"]
    started: list[subprocess.Popen[bytes]] = []
    with ending(started):
        for name, command in (
            ("sequencer", [*ours, "sequencer"]),
            ("gateway", [*ours, "gateway"]),
            *(
                (f"no-op-{pool}", [*no_op_worker, "--pool", pool, "-Q", f"no_op_{pool}"])
                for pool in POOLS
            ),
        ):
            with (logs / f"{name}.log").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        given = Settings.from_environment({"ASSIGNMENT_WORKERS_GATEWAY_PORT": str(port)})
        ends = time.monotonic() + 60
        while not is_alive(given):
            if time.monotonic() > ends:
                raise RuntimeError("the gateway does not answer")
            time.sleep(0.1)
        yield


def prepare(on: Engine, users: int, settings: Settings) -> None:
    """A dialer queue of so many users, and agents enough."""
    seed(on, users=users)
    with on.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO agents (id, email, first_name, last_name, created_at, updated_at)"
                " SELECT n, 'more' || n, 'A', n::text, now(), now()"
                " FROM generate_series(101, :last) n"
            ),
            {"last": AGENTS},
        )
    build_and_publish(on, UNSIGNED_USERS, settings)


def main() -> None:
    """Measure, and print two tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--users", type=int, default=60_000)
    options.add_argument("--calls", type=int, default=300, help="calls of the lone caller")
    options.add_argument("--rounds", type=int, default=3, help="rounds of all agents in a turn")
    options.add_argument("--turns", type=int, default=3, help="turns through all the ways")
    given = options.parse_args()
    settings = Settings.from_environment({})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with servers() as at, engine(at.database_url) as on:
        prepare(on, given.users, settings)
        memory.keep()
        with tempfile.TemporaryDirectory() as logs, processes(at, port, Path(logs)):
            url = f"http://127.0.0.1:{port}"
            lone(at, url, 30)
            runs = [lone(at, url, given.calls) for _ in range(3)]
            found = asyncio.run(together(at, port, settings, given.rounds, given.turns))
    show_lone(runs)
    show_together(found)


def show_lone(runs: list[list[tuple[str, list[float]]]]) -> None:
    """The lone caller's figures, each the median of the runs' medians."""
    merged = [
        (same[0][0], [second for _, seconds in same for second in seconds])
        for same in zip(*runs, strict=True)
    ]
    base = statistics.median(merged[0][1])
    show(
        "A lone caller, ms",
        ["", "median", "p99", "times the first"],
        [(n, *milliseconds(s), f"{statistics.median(s) / base:.2f}") for n, s in merged],
    )


def show_together(found: list[Figures]) -> None:
    """Medians of the rounds, and how many times the others' figures they are."""
    alone, plainly = (statistics.median(each.claims) for each in found[:2])
    rows = []
    for each in found:
        rate = statistics.median(each.claims)
        rows.append(
            (
                each.name,
                f"{rate:,.0f}",
                milliseconds(each.waits)[1],
                f"{rate / alone:.1f}",
                f"{rate / plainly:.1f}",
                f"{statistics.median(each.both):,.0f}",
            )
        )
    show(
        f"{AGENTS} agents at once",
        ["", "claims/s", "p99 ms", "x SKIP LOCKED", "x plain", "with finish, /s"],
        rows,
    )


if __name__ == "__main__":
    main()
