"""The Python client over Celery. Calls that wait at the same time share a message."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from random import Random
from typing import Any, TypeVar
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
from assignment_workers.client.assignment_client import TIMEOUT, AssignmentClient
from assignment_workers.client.commands import CommandCall
from assignment_workers.client.reading import (
    Built,
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
from assignment_workers.client.wire.message import Result
from assignment_workers.clock import Clock, system_clock
from assignment_workers.errors import BrokerUnavailable
from assignment_workers.identity import new_id

T = TypeVar("T")

LOOK_SECONDS = 0.05
"""Seconds between two checks of `built` for the result of a build, because a build takes seconds.
"""


class Client(AssignmentClient):
    """Sends commands over Celery and waits for the answers. Safe to share between threads.

    The first call starts one thread, which sends the calls of all callers.
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
    ) -> None:
        check_addresses(redis_url, broker_url)
        self._clock = clock
        self._randomness = randomness or Random()
        self._accepted = Accepted()
        self._make: Callable[[], Dispatcher] = lambda: Dispatcher(
            redis_url,
            broker_url,
            together=together,
            under_way=under_way,
            clock=clock,
            randomness=self._randomness,
            lanes=lanes,
            key=key,
        )
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
    ) -> Client:
        """Return a client of the stack on this Redis, without contacting a server.

        Raises `UsageError` for an address that is none of Redis or the broker. If a server does not
        answer, the first call returns `Unavailable`. `key` is `ASSIGNMENT_WORKERS_COMMAND_KEY`, for
        a program that knows which operator acts.
        """
        return cls(redis_url, broker_url=broker_url, lanes=lanes, key=key)

    def close(self) -> None:
        """Close the connections. Calls that still wait are answered `Unavailable`."""
        with self._starting:
            loop, self._loop = self._loop, None
            if loop is None:
                return
            asyncio.run_coroutine_threadsafe(self._dispatcher.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> RequestAnswer:
        """Request the next user for this agent, from `queue` or any queue allowed to the agent.

        See `AssignmentClient.request_next`.
        """
        name = request_id or str(new_id(self._clock(), self._randomness))
        command = commands.request(agent_id, queue, name, timeout=timeout)
        answer = as_request_answer(self.ask(command, timeout))
        self._dispatcher.count(answer)
        return answer

    def complete(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        outcome: str,
        *,
        version: int | None = None,
        notes: str | None = None,
        callback_at: datetime | None = None,
        timeout: timedelta = TIMEOUT,
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
        return as_finish_answer(self.ask(command, timeout))

    def skip(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment, because the agent does not want to call this user now.

        See `AssignmentClient.skip`.
        """
        command = commands.skip(assignment_id, agent_id, version=version)
        return as_finish_answer(self.ask(command, timeout))

    def defer(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        until: datetime | None = None,
        seconds: int | None = None,
        why: str | None = None,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment; offer the user to nobody before `until`, or for `seconds`.

        See `AssignmentClient.defer`.
        """
        command = commands.defer(
            assignment_id, agent_id, version=version, until=until, seconds=seconds, why=why
        )
        return as_finish_answer(self.ask(command, timeout))

    def close_user(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        why: str,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment and close this dialer queue for the user, for the reason `why`.

        See `AssignmentClient.close_user`.
        """
        command = commands.close(assignment_id, agent_id, why, version=version)
        return as_finish_answer(self.ask(command, timeout))

    def accept(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Accept the offer: the assignment becomes accepted work with a new lease.

        See `AssignmentClient.accept`.
        """
        command = commands.accept(assignment_id, agent_id, version=version)
        return as_finish_answer(self.ask(command, timeout))

    def state(
        self,
        agent_id: int,
        becomes: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> StateAnswer:
        """Set the agent's state to `becomes`, such as `available` or `break`.

        See `AssignmentClient.state`.
        """
        command = commands.state(agent_id, becomes, by=by, why=why)
        return as_state_answer(self.ask(command, timeout))

    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> HeartbeatAnswer:
        """Record that the agent is present; the first one that names an offer accepts it.

        See `AssignmentClient.heartbeat`.
        """
        if assignment_id is not None and not self._accepted.knows(agent_id, assignment_id):
            taken = self.accept(assignment_id, agent_id, timeout=timeout)
            if not isinstance(taken, Finished):
                return taken
            self._accepted.add(agent_id, assignment_id)
        command = commands.heartbeat(agent_id, timeout=timeout)
        return as_heartbeat_answer(self.ask(command, timeout))

    def release(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """End the assignment; the user can be offered again at once.

        See `AssignmentClient.release`.
        """
        command = commands.release(assignment_id, agent_id, version=version)
        return as_finish_answer(self.ask(command, timeout))

    def renew(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Renew the lease of the assignment: it starts again from now.

        See `AssignmentClient.renew`.
        """
        command = commands.renew(assignment_id, agent_id, version=version)
        return as_finish_answer(self.ask(command, timeout))

    def pause(
        self,
        queue: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> CommandAnswer:
        """Pause this dialer queue: hand out nobody from it."""
        return as_command_answer(self.ask(commands.pause(queue, by, why), timeout))

    def resume(
        self,
        queue: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> CommandAnswer:
        """Resume this dialer queue: hand out its users again."""
        return as_command_answer(self.ask(commands.resume(queue, by, why), timeout))

    def command(
        self, command: commands.CommandCall, *, timeout: timedelta = TIMEOUT
    ) -> CommandAnswer:
        """Send the command of an operator and return its answer."""
        return as_command_answer(self.ask(command, timeout))

    def repair(self, *, timeout: timedelta = TIMEOUT) -> CommandAnswer:
        """Correct the published entries that contradict the active assignments."""
        return as_command_answer(self.ask(commands.repair(), timeout))

    def regenerate(self, queue: str | None = None) -> str | Unavailable:
        """Request a build of one dialer queue, or of all; return the id of the build task."""
        command = commands.regenerate(queue)
        try:
            return self.send_again(command.task, (), command.arguments, command.celery_queue)
        except BrokerUnavailable as error:
            return down(error)

    def built(self, task_id: str, *, timeout: timedelta) -> Built | Unavailable:
        """Wait for the build with this task id, which `regenerate` returned.

        `Unavailable` if the build is not finished in time, or failed.
        """
        ends = time.monotonic() + timeout.total_seconds()
        while True:
            try:
                found: Result | None = self._run(
                    lambda dispatcher: dispatcher.stored_result(task_id)
                )
            except BrokerUnavailable as error:
                return down(error)
            match found:
                case Result(failure=str(reason)):
                    return Unavailable(retry_after=1.0, reason=f"the build failed: {reason}")
                case Result(value=dict(built)) if all(isinstance(v, dict) for v in built.values()):
                    return built
                case Result(value=other):
                    return Unavailable(retry_after=1.0, reason=f"the build failed: {other}")
                case None:
                    pass
            if time.monotonic() >= ends:
                return Unavailable(retry_after=1.0, reason=f"not built within {timeout}")
            time.sleep(LOOK_SECONDS)

    def send_again(
        self,
        task: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        queue: str,
        *,
        dead_letter: int | None = None,
    ) -> str:
        """Send a stored message unchanged to the Celery queue `queue`; return its new id.

        `dead_letter` is the number of the dead letter that held the message. Raises
        `BrokerUnavailable`.
        """
        return self._run(
            lambda dispatcher: dispatcher.send(task, args, kwargs, queue, dead_letter=dead_letter)
        )

    def ask(self, command: CommandCall, timeout: timedelta) -> object:
        """Send a command and return the result of its task; `Unavailable` if none came in time."""
        seconds = timeout.total_seconds()
        future: Future[object] = Future()
        loop = self._running()

        traced = traces.ask(command.task, command.arguments)

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
