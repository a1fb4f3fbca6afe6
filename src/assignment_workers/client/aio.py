"""The client for asyncio: one event loop, two tasks, any number of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from random import Random
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from assignment_workers import traces
from assignment_workers.assignment.answers import (
    CommandAnswer,
    FinishAnswer,
    Finished,
    HeartbeatAnswer,
    RequestAnswer,
    StateAnswer,
    Unavailable,
)
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.client import commands
from assignment_workers.client.accepted import Accepted
from assignment_workers.client.assignment_client import TIMEOUT
from assignment_workers.client.commands import CommandCall
from assignment_workers.client.reading import (
    as_command_answer,
    as_finish_answer,
    as_heartbeat_answer,
    as_request_answer,
    as_state_answer,
    no_answer,
)
from assignment_workers.client.wire.batcher import TOGETHER, UNDER_WAY, Call
from assignment_workers.client.wire.brokers import check_addresses
from assignment_workers.client.wire.dispatcher import Dispatcher, down
from assignment_workers.clock import Clock, system_clock
from assignment_workers.errors import BrokerUnavailable
from assignment_workers.identity import new_id


class AsyncClient:
    """`Client` with coroutines. It must be made and used in one event loop.

    If a caller is cancelled before its request is sent, the request is dropped. If the request was
    sent, the function `orphaned` is called with the call and its answer.
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
    ) -> None:
        """Prepare the client without contacting a server.

        `together`: the most calls in one message. `under_way`: the most messages of one kind that
        wait for an answer at once. `orphaned` is called with each answer whose caller was
        cancelled. `key` signs the commands of operators.
        """
        check_addresses(redis_url, broker_url)
        self._clock = clock
        self._randomness = randomness or Random()
        self._accepted = Accepted()
        self._dispatcher = Dispatcher(
            redis_url,
            broker_url,
            together=together,
            under_way=under_way,
            clock=clock,
            randomness=self._randomness,
            lanes=lanes,
            orphaned=orphaned,
            key=key,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._dispatcher.close()

    async def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109 - it is the request's deadline too
    ) -> RequestAnswer:
        """Request the next user for this agent, from `queue` or any queue allowed to the agent.

        See `AssignmentClient.request_next`.
        """
        name = request_id or str(new_id(self._clock(), self._randomness))
        command = commands.request(agent_id, queue, name, timeout=timeout)
        answer = as_request_answer(await self.ask(command, timeout))
        self._dispatcher.count(answer)
        return answer

    async def complete(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        outcome: str,
        *,
        version: int | None = None,
        notes: str | None = None,
        callback_at: datetime | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> FinishAnswer:
        """End the assignment with the outcome of the call.

        See `AssignmentClient.complete`.
        """
        command = commands.complete(
            assignment_id,
            agent_id,
            outcome,
            version=version,
            notes=notes,
            callback_at=callback_at,
        )
        return as_finish_answer(await self.ask(command, timeout))

    async def skip(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> FinishAnswer:
        """End the assignment, because the agent does not want to call this user now.

        See `AssignmentClient.skip`.
        """
        command = commands.skip(assignment_id, agent_id, version=version)
        return as_finish_answer(await self.ask(command, timeout))

    async def defer(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        until: datetime | None = None,
        seconds: int | None = None,
        why: str | None = None,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> FinishAnswer:
        """End the assignment; offer the user to nobody before `until`, or for `seconds`.

        See `AssignmentClient.defer`.
        """
        command = commands.defer(
            assignment_id, agent_id, version=version, until=until, seconds=seconds, why=why
        )
        return as_finish_answer(await self.ask(command, timeout))

    async def close_user(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        why: str,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> FinishAnswer:
        """End the assignment and close this dialer queue for the user, for the reason `why`.

        See `AssignmentClient.close_user`.
        """
        command = commands.close(assignment_id, agent_id, why, version=version)
        return as_finish_answer(await self.ask(command, timeout))

    async def accept(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> FinishAnswer:
        """Accept the offer: the assignment becomes accepted work with a new lease.

        See `AssignmentClient.accept`.
        """
        command = commands.accept(assignment_id, agent_id, version=version)
        return as_finish_answer(await self.ask(command, timeout))

    async def state(
        self,
        agent_id: int,
        becomes: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> StateAnswer:
        """Set the agent's state to `becomes`, such as `available` or `break`.

        See `AssignmentClient.state`.
        """
        command = commands.state(agent_id, becomes, by=by, why=why)
        return as_state_answer(await self.ask(command, timeout))

    async def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> HeartbeatAnswer:
        """Record that the agent is present; the first one that names an offer accepts it.

        See `AssignmentClient.heartbeat`.
        """
        if assignment_id is not None and not self._accepted.knows(agent_id, assignment_id):
            taken = await self.accept(assignment_id, agent_id, timeout=timeout)
            if not isinstance(taken, Finished):
                return taken
            self._accepted.add(agent_id, assignment_id)
        command = commands.heartbeat(agent_id, timeout=timeout)
        return as_heartbeat_answer(await self.ask(command, timeout))

    async def release(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> FinishAnswer:
        """End the assignment; the user can be offered again at once.

        See `AssignmentClient.release`.
        """
        command = commands.release(assignment_id, agent_id, version=version)
        return as_finish_answer(await self.ask(command, timeout))

    async def renew(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,  # noqa: ASYNC109
    ) -> FinishAnswer:
        """Renew the lease of the assignment: it starts again from now.

        See `AssignmentClient.renew`.
        """
        command = commands.renew(assignment_id, agent_id, version=version)
        return as_finish_answer(await self.ask(command, timeout))

    async def pause(
        self, queue: str, *, by: str | None = None, why: str | None = None
    ) -> CommandAnswer:
        """Pause this dialer queue: hand out nobody from it."""
        return as_command_answer(await self.ask(commands.pause(queue, by, why), TIMEOUT))

    async def resume(
        self, queue: str, *, by: str | None = None, why: str | None = None
    ) -> CommandAnswer:
        """Resume this dialer queue: hand out its users again."""
        return as_command_answer(await self.ask(commands.resume(queue, by, why), TIMEOUT))

    async def regenerate(self, queue: str | None = None) -> str | Unavailable:
        """Request a build of one dialer queue, or of all; return the id of the build task."""
        command = commands.regenerate(queue)
        try:
            return await self._dispatcher.send(
                command.task, command.args, command.arguments, command.celery_queue
            )
        except BrokerUnavailable as error:
            return down(error)

    async def send_again(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        queue: str,
        *,
        dead_letter: int | None = None,
    ) -> str | Unavailable:
        """Send a stored message unchanged to the Celery queue `queue`; return its new id.

        `dead_letter` is the number of the dead letter that held the message.
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
        """Send a command and return the result of its task; `Unavailable` if none came in time."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        seconds = timeout.total_seconds()
        traced = traces.ask(command.task, command.arguments)
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
