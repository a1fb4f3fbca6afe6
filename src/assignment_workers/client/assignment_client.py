"""The common base of the agents' clients over Celery and over HTTP."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from assignment_workers.assignment.answers import (
    Assigned,
    FinishAnswer,
    Finished,
    Held,
    Refused,
    RequestAnswer,
)
from assignment_workers.assignment.lifecycle.verb import TIMEOUT, VerbCall
from assignment_workers.client.core import AgentMethods, Core, Steps
from assignment_workers.errors import BrokerUnavailable
from assignment_workers.identity import UserId

T = TypeVar("T")

RENEWALS_A_LEASE = 3
"""The number of renewals per lease. With three, two renewals may fail before the lease ends."""
SOONEST_SECONDS = 0.2


class AssignmentClient(AgentMethods, ABC):
    """A client that sends an agent's requests and commands, over Celery or HTTP.

    A repeated command has no second effect. Each method waits at most `timeout`; `HttpClient` may
    wait two seconds longer for the response.
    """

    core: Core

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def exchange(self, exchange: Any) -> Any:  # noqa: ANN401 - of the core's kind
        """Carry out one exchange (such as a command and its answer) and return its result."""

    def run(self, steps: Steps[T]) -> T:
        """Carry out each step that the generator `steps` yields; return the generator's answer.

        A step is a piece of I/O, such as to send a command and to get the answer.
        """
        try:
            exchange = next(steps)
            while True:
                try:
                    result = self.exchange(exchange)
                except BrokerUnavailable as error:
                    exchange = steps.throw(error)
                else:
                    exchange = steps.send(result)
        except StopIteration as done:
            answer: T = done.value
            return answer

    def perform(self, call: VerbCall) -> FinishAnswer:
        """Send a command about an assignment, such as `complete`, and return the answer."""
        return self.run(self.core.act(call))

    @contextmanager
    def holding(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Iterator[Hold | RequestAnswer]:
        """Request a user, and renew the assignment while the block runs.

            with client.holding(26, queue="sales") as hold:
                if isinstance(hold, Hold):
                    hold.complete(call(hold.user_id))

        If nobody is assigned, the block gets the answer instead of a `Hold`. If the block ends
        without finishing the assignment, also by an exception, the assignment is released, so that
        the user is offered again at once.
        """
        answer = self.request_next(agent_id, queue=queue, request_id=request_id, timeout=timeout)
        if not isinstance(answer, Assigned):
            yield answer
            return
        with Hold(self, answer.assignment, timeout=timeout) as hold:
            yield hold


class AsyncAssignmentClient(AgentMethods, ABC):
    """`AssignmentClient` with coroutines. It must be made and used in one event loop."""

    core: Core

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    async def exchange(self, exchange: Any) -> Any:  # noqa: ANN401 - of the core's kind
        """Carry out one exchange (such as a command and its answer) and return its result."""

    async def run(self, steps: Steps[T]) -> T:
        """Carry out each step that the generator `steps` yields; return the generator's answer.

        A step is a piece of I/O, such as to send a command and to get the answer.
        """
        try:
            exchange = next(steps)
            while True:
                try:
                    result = await self.exchange(exchange)
                except BrokerUnavailable as error:
                    exchange = steps.throw(error)
                else:
                    exchange = steps.send(result)
        except StopIteration as done:
            answer: T = done.value
            return answer

    async def perform(self, call: VerbCall) -> FinishAnswer:
        """Send a command about an assignment, such as `complete`, and return the answer."""
        return await self.run(self.core.act(call))


class Hold:
    """An assignment that a background thread renews until the block of `holding` ends.

    The first renewal accepts the offer. If a renewal is refused, the `threading.Event` in `lost` is
    set; from then on, another agent may have the user.
    """

    def __init__(self, client: AssignmentClient, assignment: Held, *, timeout: timedelta) -> None:
        self.assignment = assignment
        self.lost = threading.Event()
        self._client = client
        self._timeout = timeout
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._renew, name=f"hold {assignment.id}", daemon=True
        )

    @property
    def user_id(self) -> UserId:
        """The CRM's id of the user to call: a number, or a string."""
        return self.assignment.user_id

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._ended.is_set() and not self.lost.is_set():
                self.release()
        finally:
            self._ended.set()
            self._thread.join()

    def complete(
        self, outcome: str, *, notes: str | None = None, callback_at: datetime | None = None
    ) -> FinishAnswer:
        """Complete the assignment with `outcome`, the result of the call."""
        return self._end(
            self._client.complete(
                self.assignment.id,
                self.assignment.agent_id,
                outcome,
                version=self.assignment.version,
                notes=notes,
                callback_at=callback_at,
                timeout=self._timeout,
            )
        )

    def skip(self) -> FinishAnswer:
        """Skip this user: the assignment ends, and the user is offered again later.

        By default, the user is offered to nobody for 15 minutes, and not to this agent for an hour.
        """
        held = self.assignment
        return self._end(
            self._client.skip(held.id, held.agent_id, version=held.version, timeout=self._timeout)
        )

    def defer(
        self,
        *,
        until: datetime | None = None,
        seconds: int | None = None,
        why: str | None = None,
    ) -> FinishAnswer:
        """Defer this user: the user is offered to nobody before `until`, or for `seconds`.

        Exactly one of the two must be set; otherwise the answer is `Refused`. The seconds count
        from the moment at which the command is carried out. `until` must have a time zone.
        """
        held = self.assignment
        return self._end(
            self._client.defer(
                held.id,
                held.agent_id,
                until=until,
                seconds=seconds,
                why=why,
                version=held.version,
                timeout=self._timeout,
            )
        )

    def close_user(self, why: str) -> FinishAnswer:
        """Close the user: the assignment's dialer queue offers the user to no agent any more.

        An operator can lift the closure.
        """
        held = self.assignment
        return self._end(
            self._client.close_user(
                held.id, held.agent_id, why, version=held.version, timeout=self._timeout
            )
        )

    def release(self) -> FinishAnswer:
        """End the assignment without an outcome; the user can be offered again at once."""
        held = self.assignment
        return self._end(
            self._client.release(
                held.id, held.agent_id, version=held.version, timeout=self._timeout
            )
        )

    def _end(self, answer: FinishAnswer) -> FinishAnswer:
        if isinstance(answer, Finished):
            self._ended.set()
        return answer

    def _renew(self) -> None:
        held = self.assignment
        lease = held.lease_expires_at - held.claimed_at
        until = held.lease_expires_at
        while not self._ended.wait(self._pause(lease, until)):
            answer = self._client.renew(
                held.id, held.agent_id, version=held.version, timeout=self._timeout
            )
            match answer:
                case Finished(assignment=renewed):
                    until = renewed.lease_expires_at
                    if held.accepted_at is None and renewed.accepted_at is not None:
                        lease = until - renewed.accepted_at  # accepted work has a longer lease
                        held = renewed
                case Refused():
                    if not self._ended.is_set():
                        self.lost.set()
                    return
                case _:
                    pass  # tried again; the closer the end of the lease, the sooner

    @staticmethod
    def _pause(lease: timedelta, until: datetime) -> float:
        """Return the seconds to wait before the next renewal of a lease that ends at `until`.

        The result is a third of the remaining time, but at most a third of `lease` (the length of a
        full lease) and at least 0.2 seconds (`SOONEST_SECONDS`).
        """
        left = min(until - datetime.now(UTC), lease)
        return max(left.total_seconds() / RENEWALS_A_LEASE, SOONEST_SECONDS)
