"""Send the messages of many callers to the workers, and return each answer to its caller.

A message is sent to its Celery queue. All results arrive on one subscription in Redis, which is
made before the first message is sent. If the subscription is lost, it is made again, and the
results that were stored meanwhile are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent import futures
from contextvars import Context
from datetime import timedelta
from random import Random
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from assignment_workers.assignment.answer_counts import AnswerTally, kind_of
from assignment_workers.assignment.answers import Code, Refused, RequestAnswer, Unavailable
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.client import commands
from assignment_workers.client.reading import database_time, down
from assignment_workers.client.wire.batcher import TOGETHER, UNDER_WAY, Batch, Batcher, Call
from assignment_workers.client.wire.brokers import connect_redis, sender
from assignment_workers.client.wire.database_clock import DatabaseClock
from assignment_workers.client.wire.lane_router import LaneRouter
from assignment_workers.client.wire.message import (
    DEAD_LETTER,
    RESULT_PREFIX,
    Result,
    message,
    result,
    unsendable,
)
from assignment_workers.client.wire.outages import SOCKET_SECONDS, unreachable
from assignment_workers.clock import Clock, system_clock
from assignment_workers.errors import BrokerUnavailable
from assignment_workers.identity import new_id
from assignment_workers.traces import NO_TRACES, Tracing, sending

log = logging.getLogger(__name__)

FAILED = "the workers failed on it; their log and the dead letters tell how"
"""The reason that a caller is given if the task failed. The text of the task's exception is left
out, because it may contain personal data.
"""

CLIENT_FAILED = "the client failed; its log has the error"
"""The reason that a caller is given if an unexpected error occurred in this client.

Because of the error, the client could not make or send the call's message, could not subscribe to
results, or could not read the result. If a server is unavailable, another reason is given.
"""

TICK_SECONDS = 0.25
"""Seconds between checks for lost messages, and between removals of used results from Redis."""
RECONNECT_SECONDS = 0.1
COUNTED_EVERY = timedelta(minutes=1)
"""The interval between two messages with this client's counts of answers."""
LAST_COUNTS_SECONDS = 1.0
"""The most seconds for which `close` waits until the last counts of answers are sent."""
SKEW = timedelta(seconds=5)
"""The greatest tolerated difference between the clocks of a worker's host and of the database.

The deadline of a message is a time of the database's clock. Celery drops a message that has expired
according to the clock of the worker's host. So each message expires five seconds (this constant)
after its deadline. Celery then drops no message that could still be answered before its deadline.
"""


class Dispatcher:
    """The part of a client that sends calls to the workers and receives the answers.

    A call is a request or a command of one caller. Several calls may share a message. `post` and
    `send` must always be used in the same event loop.
    """

    def __init__(
        self,
        redis_url: str,
        broker_url: str | None = None,
        *,
        together: int = TOGETHER,
        under_way: int = UNDER_WAY,
        clock: Clock = system_clock,
        randomness: Random | None = None,
        lanes: Lanes = ONE_LANE,
        orphaned: Callable[[Call, object], None] | None = None,
        key: str | None = None,
        tracing: Tracing = NO_TRACES,
    ) -> None:
        """Prepare the dispatcher without contacting a server.

        A call is a request or a command of one caller. `together`: the greatest number of calls in
        one message. `under_way`: the greatest number of unanswered messages with the same task and
        Celery queue. `randomness`: the source of random message ids. `orphaned`: a function that is
        called with a call and its answer if the answer arrives after the call's future was
        cancelled. `key`: the key that signs a message in which an operator or a token is named (see
        `message.SIGNATURE`).
        """
        self._key = key
        self._tracing = tracing
        self._urls = (broker_url or redis_url, redis_url)
        self._clock = clock
        self._chance = randomness or Random()
        self._prefix = f"{new_id(clock(), self._chance)}-"
        self._batcher = Batcher(
            lambda: f"{self._prefix}{self._chance.getrandbits(48):012x}",
            together=together,
            under_way=under_way,
        )
        self._routes = LaneRouter(lanes)
        self._orphaned = orphaned
        self._tasks: list[asyncio.Task[None]] = []
        self._handled: list[str] = []
        self._waiting: dict[str, int | None] = {}
        self._unlinked_at = 0.0
        self._counts = AnswerTally(clock)
        self._counts_sent_at = clock()
        self._counting: asyncio.Task[None] | None = None

    def post(self, call: Call) -> None:
        """Send a call soon. The call's future gets the task's result, `Unavailable`, or a refusal.

        If an argument of the call cannot be written as JSON in UTF-8, the call is not sent. Its
        future then gets the answer `Refused`, as a dict, with the code `malformed`. If the call
        were sent, the worker would refuse the whole message, with the calls of other callers.
        """
        self._start()
        if (wrong := unsendable(call.command.args, call.command.arguments)) is not None:
            _settle(call, Refused(code=Code.MALFORMED, reason=wrong).model_dump(mode="json"))
            return
        call.command = self._routes.way(call.command)
        self._batcher.add(call)
        self._wake.set()

    def count(self, answer: RequestAnswer) -> None:
        """Count the answer to a request. May be called from any thread.

        The counts are sent to the workers once a minute. While the broker is unavailable, they stay
        in memory.
        """
        self._counts.add(kind_of(answer))
        now = self._clock()
        if now - self._counts_sent_at >= COUNTED_EVERY and self._tasks:
            self._counts_sent_at = now
            self._loop.call_soon_threadsafe(self._send_counts_soon)

    @property
    def now(self) -> float:
        """The time of the event loop's clock in seconds."""
        return asyncio.get_running_loop().time()

    def waiting(self, call: Call) -> int | None:
        """Return the number of messages in the call's Celery queue when this client last sent one.

        None if this client has sent no message to the queue, or if the broker does not report the
        number.
        """
        return self._waiting.get(call.command.celery_queue)

    async def stored_result(self, task_id: str) -> Result | None:
        """Return the stored result of the task with this id, or None if there is none yet.

        Raises `BrokerUnavailable` if Redis does not answer.
        """
        self._start()
        try:
            data = await self._results.get(f"{RESULT_PREFIX}{task_id}")
        except (RedisError, OSError) as error:
            raise unreachable("Redis", error) from error
        return None if data is None else result(data)

    async def send(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        to: str,
        *,
        dead_letter: int | None = None,
    ) -> str:
        """Send one message to the Celery queue `to`; return its id without waiting for a result.

        `dead_letter`: the number of the dead letter whose message is sent again. Raises
        `BrokerUnavailable` if the broker does not accept the message.
        """
        self._start()
        name = str(new_id(self._clock(), self._chance))  # not under `_prefix`: its result is kept
        again = {} if dead_letter is None else {DEAD_LETTER: dead_letter}
        data = message(
            task,
            args,
            kwargs,
            task_id=name,
            celery_queue=to,
            expires=None,
            traced=self._tracing.inject_headers() | again,
        )
        await self._broker.send(to, data)
        return name

    def _send_counts_soon(self) -> None:
        self._counting = asyncio.create_task(self._send_counts(), context=Context())

    async def _send_counts(self) -> None:
        hours = self._counts.take()
        if not hours:
            return
        counts = commands.count_answers([each.model_dump(mode="json") for each in hours])
        try:
            await self.send(counts.task, counts.args, counts.arguments, counts.celery_queue)
        except Exception as error:  # noqa: BLE001 - the counts are sent with the next ones
            _log_unforeseen(error)
            self._counts.put_back(hours)

    async def close(self) -> None:
        """Answer all unanswered calls with `Unavailable`, and close the connections.

        First, this method handles the counts of answers that are still in memory (see `count`).
        The service levels are computed from such counts and from the answers that the database has.
        The database may have nothing about a request that got the answer `Unavailable`. So if the
        counts include such an answer, all counts are sent to the workers. Counts that cannot be
        sent within `LAST_COUNTS_SECONDS` are lost. If the counts include no such answer, they are
        dropped: the database has most answers other than `Unavailable`.

        Then each unanswered call gets the answer `Unavailable`, and the connections are closed.
        These last answers are in no count that is sent, because nothing can be sent any more. So
        the service levels may lack their requests.
        """
        if self._tasks and self._counts.has_lost():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_COUNTS_SECONDS):
                    await self._send_counts()
        pending = set(self._tasks)
        while pending:  # a running read may swallow a cancellation
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=TICK_SECONDS)
        if not self._tasks:
            return
        self._tasks = []
        self._give_up("the client was closed")
        try:
            await self._unlink()
        except Exception as error:  # noqa: BLE001 - results that are left expire
            _log_unforeseen(error)
        await self._broker.close()
        await self._results.aclose()

    def _start(self) -> None:
        if self._tasks:
            return
        self._broker, self._results = sender(self._urls[0]), connect_redis(self._urls[1])
        self._database = DatabaseClock(self._results, asyncio.get_running_loop().time)
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._listening = asyncio.Event()
        self._deaf: BrokerUnavailable | None = None
        # Each task has an empty context, so that it does not inherit the first caller's log and
        # trace.
        self._tasks = [
            asyncio.create_task(self._carry(), context=Context()),
            asyncio.create_task(self._hear(), context=Context()),
        ]

    def _give_up(self, reason: str) -> None:
        for call in self._batcher.calls():
            _settle(call, Unavailable(retry_after=1.0, reason=reason))

    async def _carry(self) -> None:
        while True:
            idle = self._batcher.is_idle() and not self._handled
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if idle else TICK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                for batch in self._batcher.take(self.now):
                    await self._push(batch)
                if self._handled and self.now >= self._unlinked_at + TICK_SECONDS:
                    await self._unlink()
            except Exception as error:  # noqa: BLE001 - no error may end the task that sends
                _log_unforeseen(error)

    async def _push(self, batch: Batch) -> None:
        command = batch.calls[0].command
        try:
            await self._until_listening()
            await self._database.read()
            with sending([call.traced for call in batch.calls]) as traced:
                data = message(
                    batch.task,
                    command.args,
                    batch.kwargs(self._database.at),
                    task_id=batch.id,
                    celery_queue=command.celery_queue,
                    expires=self._database.at(batch.ends) + SKEW,
                    about=batch.about,
                    traced=traced,
                    command_id=batch.repeats,
                    position=None if command.many else command.position,
                    senders=batch.senders,
                    key=self._key,
                )
                sent = await self._broker.send(command.celery_queue, data)
                self._waiting[command.celery_queue] = sent
        except Exception as error:  # noqa: BLE001 - no error may end the task that sends
            _log_unforeseen(error)
            if batch.tries > 1:
                return  # an earlier try may still be answered, and this one is sent again too
            if isinstance(error, BrokerUnavailable):
                self._answer(batch.id, down(error))
            elif isinstance(error, RedisError | OSError):
                self._answer(batch.id, down(unreachable("Redis", error)))
            else:
                self._answer(batch.id, Unavailable(retry_after=1.0, reason=CLIENT_FAILED))

    async def _until_listening(self) -> None:
        """Wait until this client is subscribed to the channel of its results in Redis.

        Raises `BrokerUnavailable` if Redis is unavailable or does not answer in time.
        """
        if not self._listening.is_set():
            try:
                async with asyncio.timeout(SOCKET_SECONDS):
                    await self._listening.wait()
            except TimeoutError:
                raise BrokerUnavailable(
                    "Redis cannot be reached: it did not let us listen for results"
                ) from None
        if self._deaf is not None:
            raise self._deaf

    async def _unlink(self) -> None:
        names, self._handled = self._handled, []
        self._unlinked_at = self.now
        if names:
            await self._results.unlink(*names)

    async def _hear(self) -> None:
        while True:
            try:
                pool = self._results.connection_pool
                connection = await pool.get_connection()  # type: ignore[no-untyped-call]
                try:
                    await self._subscribe(connection)
                    await self._listen(connection)
                finally:
                    await connection.disconnect()
                    await pool.release(connection)
            except Exception as error:  # noqa: BLE001 - no error may end the task that listens
                # Calls made now are answered `Unavailable`; the next attempt may reach Redis again.
                _log_unforeseen(error)
                if isinstance(error, RedisError | OSError):
                    self._deaf = unreachable("Redis", error)
                else:
                    self._deaf = BrokerUnavailable(CLIENT_FAILED)
                self._listening.set()
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _subscribe(self, connection: AbstractConnection) -> None:
        """Subscribe to the results of this client's messages, then read those already stored."""
        await connection.send_command("PSUBSCRIBE", f"{RESULT_PREFIX}{self._prefix}*")
        await connection.read_response(timeout=SOCKET_SECONDS)
        self._deaf = None
        self._database.forget()
        self._listening.set()
        under_way = self._batcher.unanswered()
        if under_way:
            found = await self._results.mget([f"{RESULT_PREFIX}{name}" for name in under_way])
            for name, data in zip(under_way, found, strict=True):
                if data is not None:
                    self._heard(name, data)

    async def _listen(self, connection: AbstractConnection) -> None:
        prefix = len(RESULT_PREFIX)
        pinged = False
        while True:
            # None: no message within the timeout. Then the server must answer one PING.
            said = await connection.read_response(timeout=SOCKET_SECONDS, disconnect_on_error=False)
            if said is None:
                if pinged:
                    raise RedisError("it is silent")
                await connection.send_command("PING")
            pinged = said is None
            if said is not None and said[0] == b"pmessage":
                self._heard(said[2].decode()[prefix:], said[3])

    def _heard(self, name: str, data: bytes | str) -> None:
        try:
            found = result(data)
            if found is None:
                return
            answer = found.value
            if found.failure is not None:
                answer = Unavailable(retry_after=1.0, reason=FAILED)
        except Exception as error:  # noqa: BLE001 - one result is not the end of the others
            _log_unforeseen(error)
            answer = Unavailable(retry_after=1.0, reason=CLIENT_FAILED)
        self._handled.append(f"{RESULT_PREFIX}{name}")
        self._answer(name, answer)

    def _answer(self, name: str, value: object) -> None:
        answered = self._batcher.answered(name, value)
        if self._batcher.has_waiting():
            self._wake.set()
        for call, answer in answered:
            if not _settle(call, answer) and call.future.cancelled() and self._orphaned:
                try:
                    self._orphaned(call, answer)
                except Exception as error:  # noqa: BLE001 - the other calls get their answers
                    _log_unforeseen(error)
            self._routes.heard(answer)
            if late := database_time(answer):
                self._database.reached(late)


def _log_unforeseen(error: Exception) -> None:
    """Log an unexpected error of a background task, with its traceback.

    If the error only shows that a server was unavailable, nothing is logged here.
    """
    if not isinstance(error, BrokerUnavailable | RedisError | OSError):
        log.error("the client failed, and goes on", exc_info=error)


def _settle(call: Call, answer: object) -> bool:
    """Set the call's future to `answer`; return False if the future is already done."""
    try:
        call.future.set_result(answer)
    except (asyncio.InvalidStateError, futures.InvalidStateError):
        return False
    return True
