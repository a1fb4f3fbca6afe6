"""What one would pick otherwise, doing the same job: agents take the next user, and finish them.

None of the others judges a user by fresh facts, keeps an answer for a request id or leaves an
event: their figures are what handing out costs without all that. Each as its documentation says:

* bare SKIP LOCKED: one table, a partial index, `UPDATE ... WHERE id = (SELECT ... FOR UPDATE SKIP
  LOCKED) RETURNING`, on eight psycopg connections with prepared statements;
* plain Celery: a task for each request, a prefork worker of two processes, results in Redis; the
  task runs that same statement;
* Procrastinate: a job for each user, agents fetch from its async pool of eight connections;
* PgQueuer: a job for each user, eight psycopg connections; one at a time, and, as its workers do,
  one dequeue for all agents who wait.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

from assignment_workers.settings import Settings
from benchmarks.same_work import CONNECTIONS, SkipLocked
from benchmarks.ways import Figures, Tasks, Way, application, measure, merge

BARE_TABLE = """
CREATE TABLE bare_queue (id bigint PRIMARY KEY, user_id bigint NOT NULL, rank bigint NOT NULL,
                         state text NOT NULL DEFAULT 'ready', agent int);
CREATE INDEX ON bare_queue (rank) WHERE state = 'ready';
INSERT INTO bare_queue (id, user_id, rank) SELECT n, n, n FROM generate_series(1, %(users)s) n;
ANALYZE bare_queue
"""
BARE_CLAIM = (
    "UPDATE bare_queue SET state = 'assigned', agent = %(agent)s WHERE id ="
    " (SELECT id FROM bare_queue WHERE state = 'ready' ORDER BY rank LIMIT 1"
    " FOR UPDATE SKIP LOCKED) RETURNING id, user_id"
)
BARE_FINISH = (
    "UPDATE bare_queue SET state = 'completed' WHERE id = %(id)s AND agent = %(agent)s RETURNING id"
)


class Bare(SkipLocked):
    """Nothing but the claim."""

    @staticmethod
    def prepare(database_url: str, users: int) -> None:
        """The queue."""
        with psycopg.connect(database_url) as connection:
            for statement in BARE_TABLE.split(";"):
                connection.execute(statement.replace("%(users)s", str(users)).encode())

    def way(self) -> Way:
        """The same agents on the same connections."""
        found = super().way()
        return Way("bare FOR UPDATE SKIP LOCKED", found.ask, found.finish)

    def _claim(self, connection: psycopg.Connection[Any], agent: int) -> tuple[UUID, int]:
        with connection.transaction():
            row = connection.execute(BARE_CLAIM, {"agent": agent}).fetchone()
        if row is None:
            raise RuntimeError("nobody is left to claim: give more users")
        return UUID(int=row["id"]), row["user_id"]

    @staticmethod
    def _finish(
        connection: psycopg.Connection[Any], agent: int, assignment: UUID, user: int
    ) -> None:
        with connection.transaction():
            done = connection.execute(BARE_FINISH, {"agent": agent, "id": assignment.int})
            if done.fetchone() is None:
                raise RuntimeError(f"agent {agent} does not hold {user}")


PLAIN = application("hand_out")
WORKER = ("-A", "benchmarks.peers:PLAIN", "worker", "-P", "prefork", "-c", "2", "-O", "fair")
WORKER_OPTIONS = ("-Q", "hand_out", "--without-gossip", "--without-mingle", "-l", "WARNING")
_connections: list[psycopg.Connection[Any]] = []


def _connection() -> psycopg.Connection[Any]:
    """One for each process of the worker."""
    if not _connections:
        url = os.environ["DATABASE_URL"]  # noqa: TID251 - the worker's door
        _connections.append(psycopg.connect(url, autocommit=True, prepare_threshold=2))
    return _connections[0]


@PLAIN.task(name="hand_out")
def hand_out(agent: int) -> list[int]:
    """The next user: the row and the user."""
    row = _connection().execute(BARE_CLAIM, {"agent": agent}).fetchone()
    if row is None:
        raise RuntimeError("nobody is left to claim: give more users")
    return [row[0], row[1]]


@PLAIN.task(name="finish")
def finish(agent: int, row: int) -> bool:
    """The call was made."""
    return _connection().execute(BARE_FINISH, {"agent": agent, "id": row}).fetchone() is not None


def plain_celery(redis_url: str) -> Tasks:
    """A task for each, on a worker of Celery's own."""
    PLAIN.conf.update(broker_url=redis_url, result_backend=redis_url)
    name = "plain Celery, a task each, bare"
    return Tasks(name, hand_out.delay, lambda given: finish.delay(0, given[0]))


@asynccontextmanager
async def procrastinate_way(database_url: str, users: int) -> AsyncIterator[Way]:
    """A job for each user, in the order of their rank."""
    from procrastinate import App, PsycopgConnector
    from procrastinate.jobs import Job, Status

    connector = PsycopgConnector(
        conninfo=database_url, min_size=CONNECTIONS, max_size=CONNECTIONS, timeout=60
    )
    app = App(connector=connector)

    call = app.configure_task("call", queue="users", allow_unknown=True)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(1, users + 1, 5000):
            await call.batch_defer_async(
                *({"user_id": user} for user in range(first, min(first + 5000, users + 1)))
            )
        worker = await app.job_manager.register_worker()
        jobs: dict[int, Job] = {}

        async def ask(agent: int) -> tuple[UUID, int]:
            job = await app.job_manager.fetch_job(queues=["users"], worker_id=worker)
            if job is None:
                raise RuntimeError("nobody is left to claim: give more users")
            jobs[agent] = job
            return UUID(int=job.id or 0), job.task_kwargs["user_id"]

        async def end(agent: int, _: tuple[UUID, int]) -> None:
            await app.job_manager.finish_job(jobs.pop(agent), Status.SUCCEEDED, delete_job=False)

        yield Way("Procrastinate", ask, end)


@dataclass
class _Dispatch:
    """One dequeue for all who wait."""

    free: asyncio.Queue[Any]
    parameters: dict[str, Any]
    waiting: list[asyncio.Future[Any]] = field(default_factory=list)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    async def next_job(self) -> Any:  # noqa: ANN401 - the library's job
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        if not self.running:
            task = asyncio.create_task(self._serve())
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        return await future

    async def _serve(self) -> None:
        await asyncio.sleep(0)
        while self.waiting:
            now, self.waiting = self.waiting, []
            queries = await self.free.get()
            jobs = await queries.dequeue(batch_size=len(now), **self.parameters)
            self.free.put_nowait(queries)
            for future, job in zip(now, jobs, strict=True):
                future.set_result(job)


@asynccontextmanager
async def pgqueuer_ways(database_url: str, users: int) -> AsyncIterator[list[Way]]:
    """A job for each user, in the order of their rank: one at a time, and a batch for who waits."""
    from pgqueuer.models import Job
    from pgqueuer.queries import EntrypointExecutionParameter, Queries

    async with AsyncExitStack() as keep:
        free: asyncio.Queue[Queries] = asyncio.Queue()
        for _ in range(CONNECTIONS):
            connection = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
            keep.push_async_callback(connection.close)
            free.put_nowait(Queries.from_psycopg_connection(connection))
        first = await free.get()
        await first.install()
        for start in range(1, users + 1, 5000):
            many = range(start, min(start + 5000, users + 1))
            payloads: list[bytes | None] = [str(user).encode() for user in many]
            await first.enqueue(["call"] * len(many), payloads, [0] * len(many))
        free.put_nowait(first)
        parameters: dict[str, Any] = {
            "entrypoints": {"call": EntrypointExecutionParameter(concurrency_limit=0)},
            "queue_manager_id": uuid4(),
            "global_concurrency_limit": None,
            "heartbeat_timeout": timedelta(minutes=5),
        }
        jobs: dict[int, Job] = {}
        dispatch = _Dispatch(free, parameters)

        def keep_job(agent: int, job: Job) -> tuple[UUID, int]:
            jobs[agent] = job
            return UUID(int=int(job.id)), int(job.payload or b"0")

        async def alone(agent: int) -> tuple[UUID, int]:
            queries = await free.get()
            try:
                (job,) = await queries.dequeue(batch_size=1, **parameters)
            finally:
                free.put_nowait(queries)
            return keep_job(agent, job)

        async def together(agent: int) -> tuple[UUID, int]:
            return keep_job(agent, await dispatch.next_job())

        async def end(agent: int, _: tuple[UUID, int]) -> None:
            queries = await free.get()
            try:
                await queries.log_jobs([(jobs.pop(agent), "successful", None)])
            finally:
                free.put_nowait(queries)

        yield [Way("PgQueuer, one at a time", alone, end), Way("PgQueuer, batches", together, end)]


async def peers(
    database_url: str, settings: Settings, *, users: int, rounds: int, turns: int
) -> list[Figures]:
    """Each in turn, again and again."""
    found: dict[str, Figures] = {}
    with _bare(database_url, settings, users) as bare:
        async with AsyncExitStack() as keep:
            ways = [
                bare.way(),
                await keep.enter_async_context(procrastinate_way(database_url, users)),
                *await keep.enter_async_context(pgqueuer_ways(database_url, users)),
            ]
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute("ANALYZE")
            for _ in range(turns):
                for way in ways:
                    merge(found, await measure(way, rounds))
    return list(found.values())


@contextmanager
def _bare(database_url: str, settings: Settings, users: int) -> Iterator[Bare]:
    Bare.prepare(database_url, users)
    made = Bare(database_url, settings)
    try:
        yield made
    finally:
        made.close()
