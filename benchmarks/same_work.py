"""The same work without a sequencer: same checks, same rows, same finish, by SKIP LOCKED.

The statements of the claim are our own, compiled once; only the head is locked by FOR UPDATE SKIP
LOCKED where the sequencer needs no lock. On eight connections, and in the tasks of a worker as
Celery starts it on two processors.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from assignment_workers.assignment.claims import candidates, claim, idempotency, new_assignments
from assignment_workers.identity import new_id
from assignment_workers.settings import Settings
from benchmarks.dialer import UNSIGNED_USERS
from benchmarks.ways import Tasks, Way, application

T = TypeVar("T")

CONNECTIONS = 8
QUEUE = UNSIGNED_USERS.queue

PLAIN = application("same_work")
WORKER = ("-A", "benchmarks.same_work:PLAIN", "worker", "-c", "2", "-O", "fair", "-l", "WARNING")
_SETTINGS = Settings.from_environment({})
_connections: list[psycopg.Connection[Any]] = []


def _connection() -> psycopg.Connection[Any]:
    """One for each process of the worker."""
    if not _connections:
        url = os.environ["DATABASE_URL"]  # noqa: TID251 - the worker's door
        made = psycopg.connect(url, row_factory=dict_row, prepare_threshold=2)
        _connections.append(made)
    return _connections[0]


@PLAIN.task(name="take")
def take_by_task(agent: int) -> list[Any]:
    """The agent, the assignment and the user."""
    made, user = take(_connection(), agent, _SETTINGS)
    return [agent, str(made), user]


@PLAIN.task(name="end")
def end_by_task(agent: int, assignment: str, user: int) -> None:
    """The call was made."""
    end(_connection(), agent, UUID(assignment), user)


def plain_celery(redis_url: str) -> Tasks:
    """A task for each, on a worker of Celery's own."""
    PLAIN.conf.update(broker_url=redis_url, result_backend=redis_url)
    name = "plain Celery, a task each, SKIP LOCKED"
    return Tasks(name, take_by_task.delay, lambda given: end_by_task.delay(*given))


class SkipLocked:
    """Eight connections, and no sequencer."""

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

    def _claim(self, connection: psycopg.Connection[Any], agent: int) -> tuple[UUID, int]:
        return take(connection, agent, self._settings)

    @staticmethod
    def _finish(
        connection: psycopg.Connection[Any], agent: int, assignment: UUID, user: int
    ) -> None:
        end(connection, agent, assignment, user)

    def _run(self) -> None:
        with psycopg.connect(self._url, row_factory=dict_row, prepare_threshold=2) as connection:
            while (work := self._work.get()) is not None:
                work(connection)


def take(connection: psycopg.Connection[Any], agent: int, settings: Settings) -> tuple[UUID, int]:
    """One claim: the assignment and the user."""
    with connection.transaction():
        now = _one(connection, "SELECT clock_timestamp() AS now", {})["now"]
        name = str(new_id(now, Random()))
        asked = {"ids": [name], "agents": [agent], "since": now - settings.skip_agent}
        asker = _one(connection, LOOK_UP, asked)
        if not asker["is_active"] or asker["hold"] or QUEUE not in asker["allowed_queues"]:
            raise RuntimeError(f"agent {agent} may not ask")
        places = _rows(connection, PLACES, {"instant": now, "now": now}).fetchall()
        (generation,) = (each["generation_id"] for each in places if each["name"] == QUEUE)
        head = {"generation": generation, "after": -1, "now": now}
        while (found := _one(connection, HEAD, head))["broken"] or found["held"]:
            head["after"] = found["rank"]
        return _keep(
            connection, agent, name, now, settings, generation=generation, found=found
        ), found["user_id"]


def _keep(
    connection: psycopg.Connection[Any],
    agent: int,
    name: str,
    now: datetime,
    settings: Settings,
    *,
    generation: int,
    found: dict[str, Any],
) -> UUID:
    made, at = new_id(now, Random()), now.isoformat()
    until = (now + settings.lease).isoformat()
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


def end(connection: psycopg.Connection[Any], agent: int, assignment: UUID, user: int) -> None:
    """The call was made, and nobody answered."""
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


LOOK_UP = Statement.of(idempotency._LOOK_UP)  # noqa: SLF001 - the same work is the point
PLACES = Statement.of(claim._PLACES)  # noqa: SLF001
KEEP = Statement.of(new_assignments.KEEP)
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
