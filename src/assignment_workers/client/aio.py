"""The Python client over Celery, for callers in an asyncio event loop.

Any number of callers share two asyncio tasks. One task sends the messages, and the other receives
the results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from typing import Any

from assignment_workers.assignment.answers import Unavailable
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.client.assignment_client import AsyncAssignmentClient
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
from assignment_workers.client.reading import down, no_answer
from assignment_workers.client.wire.batcher import TOGETHER, UNDER_WAY, Call
from assignment_workers.client.wire.brokers import check_addresses
from assignment_workers.client.wire.dispatcher import Dispatcher
from assignment_workers.clock import Clock, system_clock
from assignment_workers.errors import BrokerUnavailable
from assignment_workers.traces import NO_TRACES, Tracing


class AsyncClient(OperatorMethods, AsyncAssignmentClient):
    """`Client` with coroutines. It must be made and used in one event loop.

    A caller may be cancelled, or stop waiting because of its time-out, while it waits for the
    answer to its request or command. If the request or command is not sent yet, it is dropped. If
    it was sent already and its answer still arrives, the function `orphaned` is called with the
    request or command and the answer. This function is an argument of the constructor.
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
        orphaned: Callable[[Call, object], None] | None = None,
        key: str | None = None,
        tracing: Tracing = NO_TRACES,
    ) -> None:
        """Prepare the client without contacting a server.

        `together`: the greatest number of requests or commands in one message. `under_way`: the
        greatest number of unanswered messages with the same task and Celery queue. `orphaned`: a
        function that is called if the answer to a request or command arrives too late: after the
        caller who waited for it was cancelled, or after that caller's time-out. The arguments of
        the function are the request or command, and the answer. `key` signs the commands of
        operators. `tracing`: see `traces.follow`.
        """
        check_addresses(redis_url, broker_url)
        randomness = randomness or Random()
        self.core: CeleryCore = CeleryCore(clock, randomness)
        self._dispatcher = Dispatcher(
            redis_url,
            broker_url,
            together=together,
            under_way=under_way,
            clock=clock,
            randomness=randomness,
            lanes=lanes,
            orphaned=orphaned,
            key=key,
            tracing=tracing,
        )
        self._tracing = tracing

    async def close(self) -> None:
        """Close the connections to the broker and to Redis."""
        await self._dispatcher.close()

    async def exchange(self, exchange: CeleryExchange) -> Any:  # noqa: ANN401 - of the exchange's kind
        """Carry out one exchange (such as a command and its answer) and return its result.

        An `Ask` sends a command and waits for the answer. Its result is `Unavailable` if the broker
        or Redis is down. A `Send` sends a message and does not wait for an answer. It raises
        `BrokerUnavailable` if the broker does not accept the message. A `LookUp` reads the stored
        result of a task. It raises `BrokerUnavailable` if Redis does not answer.
        """
        match exchange:
            case Ask(command, timeout):
                return await self.ask(command, timeout)
            case Send(task, args, kwargs, celery_queue):
                return await self._dispatcher.send(task, args, kwargs, celery_queue)
            case LookUp(task_id):
                return await self._dispatcher.stored_result(task_id)
            case Count(answer):
                return self._dispatcher.count(answer)
            case Pause(seconds):
                return await asyncio.sleep(seconds)

    async def send_again(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        queue: str,
        *,
        dead_letter: int | None = None,
    ) -> str | Unavailable:
        """Send the message of a dead letter unchanged to a Celery queue; return its new id.

        `dead_letter` is the number of the dead letter. Returns `Unavailable` if the broker is
        unavailable.
        """
        try:
            return await self._dispatcher.send(task, args, kwargs, queue, dead_letter=dead_letter)
        except BrokerUnavailable as error:
            return down(error)

    async def ask(
        self,
        command: CommandCall,
        timeout: timedelta,  # noqa: ASYNC109
    ) -> object:
        """Send a command and return the task's result; `Unavailable` if none arrives in time."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        seconds = timeout.total_seconds()
        traced = self._tracing.ask(command.task, command.arguments)
        call = Call(command, self._dispatcher.now + seconds, future, traced)
        self._dispatcher.post(call)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return no_answer(timeout, waiting=self._dispatcher.waiting(call))
        finally:
            if traced is not None:
                traced.end()
