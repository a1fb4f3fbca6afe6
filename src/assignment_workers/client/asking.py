"""The interface that a caller programs against, whichever way its commands travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self
from uuid import UUID

from assignment_workers.assignment.answers import (
    Assigned,
    FinishAnswer,
    HeartbeatAnswer,
    RequestAnswer,
    StateAnswer,
)
from assignment_workers.client.holding import Hold

TIMEOUT = timedelta(seconds=10)


class Asking(ABC):
    """An agent's moves. Every one waits `timeout` at the most, and may be said twice."""

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
        """Give back the connections."""

    @abstractmethod
    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> RequestAnswer:
        """The next user for this agent.

        Waits `timeout` at the most; that is the request's deadline too, so nobody is assigned after
        it. A lost message is asked again meanwhile. `Unavailable` when no answer came: the request
        may have been met in the last instant, and asking again with the same `request_id` tells.
        """

    @abstractmethod
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
        """The call was made and `outcome` came of it. Saying it twice gets the same answer."""

    @abstractmethod
    def skip(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Not me: later for everyone, and for this agent last."""

    @abstractmethod
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
        """Later, for everyone: offered to nobody before `until`, or for so many seconds."""

    @abstractmethod
    def close_user(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        why: str,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """The user is out of this dialer queue, for `why`, until an operator lifts it."""

    @abstractmethod
    def accept(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """The offer is taken up: it is work now, and the lease runs anew."""

    @abstractmethod
    def state(
        self,
        agent_id: int,
        becomes: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> StateAnswer:
        """The agent is available, on_call, wrap_up, break or offline from now on.

        On break or offline an offer that is not accepted is released; accepted work is kept.
        """

    @abstractmethod
    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> HeartbeatAnswer:
        """The agent is there. What they have accepted lives by it; it changes no state.

        The first one that names an offer in `assignment_id` accepts it.
        """

    @abstractmethod
    def release(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Give the user back untouched."""

    @abstractmethod
    def renew(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Still at it: the lease runs anew."""

    @contextmanager
    def holding(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Iterator[Hold | RequestAnswer]:
        """Ask, and keep what is assigned alive for as long as the block runs.

            with client.holding(26, queue="unsigned_users") as hold:
                if isinstance(hold, Hold):
                    hold.complete(call(hold.user_id))

        Where nobody is assigned the block gets the answer. A hold that the block leaves unfinished
        is released, by an error too, so that the user is offered again at once.
        """
        answer = self.request_next(agent_id, queue=queue, request_id=request_id, timeout=timeout)
        if not isinstance(answer, Assigned):
            yield answer
            return
        with Hold(self, answer.assignment, timeout=timeout) as hold:
            yield hold
