"""The Python client over Celery, which may send several requests or commands in one message."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from datetime import timedelta
from random import Random
from typing import Any, TypeVar

from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.client.assignment_client import AssignmentClient
from assignment_workers.client.commands import CommandCall
from assignment_workers.client.core import (
    Ask,
    CeleryCore,
    CeleryExchange,
    Count,
    LookUp,
    OperatorMethods,
    Pause,
    Send,
)
from assignment_workers.client.reading import no_answer
from assignment_workers.client.wire.batcher import TOGETHER, UNDER_WAY, Call
from assignment_workers.client.wire.brokers import check_addresses
from assignment_workers.client.wire.dispatcher import Dispatcher
from assignment_workers.clock import Clock, system_clock
from assignment_workers.traces import NO_TRACES, Tracing

T = TypeVar("T")


class Client(OperatorMethods, AssignmentClient):
    """A client that sends requests and commands over Celery and waits for the answers.

    The client is safe to share between threads. Its first method call starts one background thread,
    which sends the requests and commands of all threads that use the client.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        broker_url: str | None = None,
        together: int = TOGETHER,
        under_way: int = UNDER_WAY,
        lanes: Lanes = ONE_LANE,
        clock: Clock = system_clock,
        randomness: Random | None = None,
        key: str | None = None,
        tracing: Tracing = NO_TRACES,
    ) -> None:
        check_addresses(redis_url, broker_url)
        randomness = randomness or Random()
        self.core: CeleryCore = CeleryCore(clock, randomness)
        self._make: Callable[[], Dispatcher] = lambda: Dispatcher(
            redis_url,
            broker_url,
            together=together,
            under_way=under_way,
            clock=clock,
            randomness=randomness,
            lanes=lanes,
            key=key,
            tracing=tracing,
        )
        self._tracing = tracing
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def connect(
        cls,
        redis_url: str,
        *,
        broker_url: str | None = None,
        lanes: Lanes = ONE_LANE,
        key: str | None = None,
        tracing: Tracing = NO_TRACES,
    ) -> Client:
        """Return a client of the workers that use this Redis, without contacting a server.

        Raises `UsageError` for an invalid address. If a server does not answer, the first call
        returns `Unavailable`. `key` is the value of `ASSIGNMENT_WORKERS_COMMAND_KEY`; it signs the
        commands that name an operator. `tracing`: see `traces.follow`.
        """
        return cls(redis_url, broker_url=broker_url, lanes=lanes, key=key, tracing=tracing)

    def close(self) -> None:
        """Close the connections. Method calls that still wait return `Unavailable`."""
        with self._starting:
            loop, self._loop = self._loop, None
            if loop is None:
                return
            asyncio.run_coroutine_threadsafe(self._dispatcher.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def exchange(self, exchange: CeleryExchange) -> Any:  # noqa: ANN401 - of the exchange's kind
        """Carry out one exchange (such as a command and its answer) and return its result.

        An `Ask` sends a command and waits for the answer. Its result is `Unavailable` if the broker
        or Redis is down. A `Send` sends a message and does not wait for an answer. It raises
        `BrokerUnavailable` if the broker does not accept the message. A `LookUp` reads the stored
        result of a task. It raises `BrokerUnavailable` if Redis does not answer.
        """
        match exchange:
            case Ask(command, timeout):
                return self.ask(command, timeout)
            case Send(task, args, kwargs, celery_queue):
                return self.send_again(task, args, kwargs, celery_queue)
            case LookUp(task_id):
                return self._run(lambda dispatcher: dispatcher.stored_result(task_id))
            case Count(answer):
                return self._dispatcher.count(answer)
            case Pause(seconds):
                return time.sleep(seconds)

    def send_again(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        queue: str,
        *,
        dead_letter: int | None = None,
    ) -> str:
        """Send the message of a dead letter unchanged to a Celery queue; return its new id.

        `dead_letter` is the number of the dead letter. Raises `BrokerUnavailable` if the broker
        does not accept the message.
        """
        return self._run(
            lambda dispatcher: dispatcher.send(task, args, kwargs, queue, dead_letter=dead_letter)
        )

    def ask(self, command: CommandCall, timeout: timedelta) -> object:
        """Send a command and return the task's result; `Unavailable` if none arrives in time."""
        seconds = timeout.total_seconds()
        future: Future[object] = Future()
        loop = self._running()

        traced = self._tracing.ask(command.task, command.arguments)

        call = Call(command, loop.time() + seconds, future, traced)
        try:
            loop.call_soon_threadsafe(self._dispatcher.post, call)
            return future.result(seconds)
        except TimeoutError:
            waiting = self._dispatcher.waiting(call)
            return no_answer(timeout, waiting=waiting) if future.cancel() else future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            if traced is not None:
                traced.end()

    def _run(self, what: Callable[[Dispatcher], Coroutine[Any, Any, T]]) -> T:
        loop = self._running()
        return asyncio.run_coroutine_threadsafe(what(self._dispatcher), loop).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._dispatcher = self._make()
                self._thread = threading.Thread(
                    target=_keep_running, args=(self._loop,), name="client", daemon=True
                )
                self._thread.start()
            return self._loop


def _keep_running(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(asyncio.sleep(0))  # lets closed transports finish
    finally:
        loop.close()
