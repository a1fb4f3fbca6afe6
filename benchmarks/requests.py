"""What a request costs its caller, alone and among 256, beside what one would use otherwise.

.venv/bin/python -m benchmarks.requests
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from celery.result import AsyncResult
from sqlalchemy import Engine, text

from assignment_workers import memory
from assignment_workers.assignment import jobs, phones
from assignment_workers.client import Assigned, AsyncClient, Client, Finished, HttpClient, commands
from assignment_workers.client.assignment_client import AssignmentClient
from assignment_workers.client.commands import CommandCall
from assignment_workers.client.reading import as_finish_answer, as_request_answer
from assignment_workers.devstack.ports import answers_http
from assignment_workers.identity import new_id
from assignment_workers.settings import Settings
from benchmarks import same_work
from benchmarks.dialer import UNSIGNED_USERS
from benchmarks.same_work import QUEUE, SkipLocked
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
from benchmarks.ways import (
    AGENTS,
    Figures,
    Tasks,
    Way,
    application,
    measure,
    measure_tasks,
    merge,
)

LONG = timedelta(seconds=60)
IN_TURN = 20
"""Calls of a lone caller, one way, before the next way has its turn."""

NO_OP = application("no_op")
"""What a lone request is compared with: Celery as it comes, on the same Valkey."""
POOLS = ("solo", "prefork")
"""The sequencer's, which is quicker for one task at a time, and Celery's default."""


@NO_OP.task(name="no_op")
def no_op() -> None:
    """Nothing."""


def coalesced(client: AsyncClient) -> Way:
    """Through one coalescing client."""

    async def ask(agent: int) -> tuple[UUID, int]:
        return _given(await client.request_next(agent, queue=QUEUE, timeout=LONG))

    async def finish(agent: int, given: tuple[UUID, int]) -> None:
        _finished(await client.complete(given[0], agent, "no_answer", version=1, timeout=LONG))

    return Way("one coalescing client", ask, finish)


def plain(redis_url: str) -> Tasks:
    """One plain Celery task for each request and each finish, as any program with Celery asks."""
    NO_OP.conf.update(broker_url=redis_url, result_backend=redis_url)

    def send(task: str, said: dict[str, Any]) -> AsyncResult[Any]:
        return NO_OP.send_task(f"assignment.{task}", kwargs=said, queue="assignment")

    def finish(answer: dict[str, Any]) -> AsyncResult[Any]:
        hold = as_request_answer(answer)
        said = {"assignment_id": str(_given(hold)[0]), "agent_id": answer["assignment"]["agent_id"]}
        return send("complete", said | {"outcome": "no_answer"})

    name = "plain Celery, a task each, sequencer"
    return Tasks(name, lambda agent: send("request", {"agent_id": agent, "queue": QUEUE}), finish)


def one_by_one(client: AsyncClient) -> Way:
    """Our client, with one message for each request and for each finish."""
    chance = Random()

    async def ask(agent: int) -> tuple[UUID, int]:
        name = str(new_id(datetime.now(UTC), chance))
        asked = replace(commands.request(agent, QUEUE, name, timeout=LONG), many=None)
        return _given(as_request_answer(await client.ask(asked, LONG)))

    async def finish(agent: int, given: tuple[UUID, int]) -> None:
        said = {"assignment_id": str(given[0]), "agent_id": agent, "outcome": "no_answer"}
        _finished(
            as_finish_answer(await client.ask(CommandCall("assignment.complete", said), LONG))
        )

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
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
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


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[list[Http]]:
    """Open a connection for each agent; the gateway would close one that is unused for long."""
    async with AsyncExitStack() as keep:
        connections: list[Http] = []
        for _ in range(AGENTS):
            connections.append(Http(*await asyncio.open_connection("127.0.0.1", port)))
            keep.callback(connections[-1].close)
        yield connections


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


def _given(answer: object) -> tuple[UUID, int]:
    match answer:
        case Assigned(assignment=held, replayed=False):
            return held.id, held.user_number
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

    def asked(asking: AssignmentClient) -> float:
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


async def together(
    at: Servers, port: int, settings: Settings, rounds: int, turns: int
) -> list[Figures]:
    """Every way in turn, again and again, so that a noisy moment hits them all."""
    found: dict[str, Figures] = {}
    skip_locked = SkipLocked(at.database_url, settings)
    try:
        async with AsyncExitStack() as keep:
            client = await keep.enter_async_context(AsyncClient(at.redis_url))
            ways = [one_by_one(client), coalesced(client)]
            for _ in range(turns):
                merge(found, await measure(skip_locked.way(), rounds))
                for tasks in (same_work.plain_celery(at.redis_url), plain(at.redis_url)):
                    merge(found, await asyncio.to_thread(measure_tasks, tasks, rounds))
                for way in ways:
                    merge(found, await measure(way, rounds))
                async with _connected(port) as connections:
                    merge(found, await measure(over_http(connections), rounds))
    finally:
        skip_locked.close()
    return list(found.values())


@contextmanager
def processes(at: Servers, port: int, logs: Path) -> Iterator[None]:
    """A sequencer, a gateway, and Celery's own workers: for the no-op task, for the same work."""
    environment = os.environ | {  # noqa: TID251 - handed on
        "DATABASE_URL": at.database_url,
        "REDIS_URL": at.redis_url,
        "ASSIGNMENT_WORKERS_EMBEDDED": "true",
        "ASSIGNMENT_WORKERS_GATEWAY_TOKENS": "off",
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
            ("same-work", [sys.executable, "-m", "celery", *same_work.WORKER, "-Q", "same_work"]),
            *(
                (f"no-op-{pool}", [*no_op_worker, "--pool", pool, "-Q", f"no_op_{pool}"])
                for pool in POOLS
            ),
        ):
            with (logs / f"{name}.log").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        ends = time.monotonic() + 60
        while not answers_http("127.0.0.1", port, "/healthz"):
            if time.monotonic() > ends:
                raise RuntimeError("the gateway does not answer")
            time.sleep(0.1)
        yield


def prepare(on: Engine, users: int, settings: Settings) -> None:
    """Fill a dialer queue with users whose phone numbers are read, and add the agents."""
    seed(on, users=users)
    numbers = UNSIGNED_USERS.numbers
    jobs.run(on, jobs.Job("phones.read", "hand"), lambda work: phones.read(work, numbers))
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
        memory.freeze_loaded_objects()
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
    alone, plainly, ours = (statistics.median(each.claims) for each in found[:3])
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
                f"{rate / ours:.1f}",
                f"{statistics.median(each.both):,.0f}",
            )
        )
    show(
        f"{AGENTS} agents at once",
        ["", "claims/s", "p99 ms", "x first", "x second", "x third", "with finish, /s"],
        rows,
    )


if __name__ == "__main__":
    main()
