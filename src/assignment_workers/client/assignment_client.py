"""The interface that a caller programs against, whichever way its commands travel."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self
from uuid import UUID

from assignment_workers.assignment.answers import (
    Assigned,
    FinishAnswer,
    Finished,
    HeartbeatAnswer,
    Held,
    Refused,
    RequestAnswer,
    StateAnswer,
)

TIMEOUT = timedelta(seconds=10)
RENEWALS_A_LEASE = 3
"""A renewal may fail twice before the lease lapses."""
SOONEST_SECONDS = 0.2


class AssignmentClient(ABC):
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


class Hold:
    """One assignment of one agent; a thread of its own renews it. Made by `holding`.

    The first renewal accepts the offer.

    `lost` is set once a renewal was refused: the user may be somebody else's then.
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
    def user_id(self) -> int:
        """Whom to call."""
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
        """The call was made and `outcome` came of it."""
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
        """Not me: later for everyone, and for this agent last."""
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
        """Later, for everyone: not before a time, or for so many seconds."""
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
        """The user is out of this dialer queue until an operator lifts it."""
        held = self.assignment
        return self._end(
            self._client.close_user(
                held.id, held.agent_id, why, version=held.version, timeout=self._timeout
            )
        )

    def release(self) -> FinishAnswer:
        """Give the user back untouched."""
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
                        lease = until - renewed.accepted_at  # work lasts longer than an offer
                        held = renewed
                case Refused():
                    if not self._ended.is_set():
                        self.lost.set()
                    return
                case _:
                    pass  # asked again, sooner the nearer the end of the lease is

    @staticmethod
    def _pause(lease: timedelta, until: datetime) -> float:
        """A third of a lease; less for one that was asked for again when part of it had gone."""
        left = min(until - datetime.now(UTC), lease)
        return max(left.total_seconds() / RENEWALS_A_LEASE, SOONEST_SECONDS)
