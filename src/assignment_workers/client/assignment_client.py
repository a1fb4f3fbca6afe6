"""The interface of the clients, the same over Celery and over HTTP."""

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
"""The number of renewals in the time of one lease: two may fail before the lease lapses."""
SOONEST_SECONDS = 0.2


class AssignmentClient(ABC):
    """The requests and commands of an agent, by any client. Repeating one has no second effect.

    Each method waits at most `timeout`; `HttpClient` may wait two seconds longer for the response.
    """

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
    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> RequestAnswer:
        """Request the next user for this agent, from `queue` or any queue allowed to the agent.

        `timeout` is the longest wait and the deadline of the request: nobody is assigned after it.
        A message that is lost is sent again within that time. `Unavailable` means that no answer
        came. The request may have been answered in the last instant: repeat it with the same
        `request_id` to find out.
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
        """Complete the call with `outcome`. A repeated completion gets the same answer.

        `callback_at`: the time of a promised callback. `version`: the assignment's version in the
        last answer; the move is refused if it has changed since. None: any version.
        """

    @abstractmethod
    def skip(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Skip this user: by default no offers for 15 minutes, to this agent none for an hour.

        `version`: the assignment's version in the last answer; the move is refused if it has
        changed since. None: any version.
        """

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
        """Defer this user: offer the user to nobody before `until`, or for `seconds`.

        `version`: the assignment's version in the last answer; the move is refused if it has
        changed since. None: any version.
        """

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
        """Close the user in this dialer queue, for the reason `why`, until an operator lifts it.

        `version`: the assignment's version in the last answer; the move is refused if it has
        changed since. None: any version.
        """

    @abstractmethod
    def accept(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Accept the offer: it becomes accepted work, and its lease starts again.

        `version`: the assignment's version in the last answer; the move is refused if it has
        changed since. None: any version.
        """

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
        """Set the agent's state to `becomes`: available, on_call, wrap_up, break or offline.

        On break or offline, an offer that is not accepted is released. Accepted work is kept. `by`
        and `why`: the operator who sets the state, and the reason.
        """

    @abstractmethod
    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> HeartbeatAnswer:
        """Record that the agent is present, which keeps accepted work alive. No state changes.

        The first heartbeat that names an offer in `assignment_id` accepts the offer.
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
        """Release the assignment unchanged; the user can be offered again.

        `version`: the assignment's version in the last answer; the move is refused if it has
        changed since. None: any version.
        """

    @abstractmethod
    def renew(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Renew the lease: it starts again from now.

        `version`: the assignment's version in the last answer; the move is refused if it has
        changed since. None: any version.
        """

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

            with client.holding(26, queue="unsigned_users") as hold:
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


class Hold:
    """One assignment of one agent, renewed by a thread of its own. Made by `holding`.

    The first renewal accepts the offer.

    `lost` is set when a renewal is refused, because the user may then belong to another agent.
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
        """The id of the user to call."""
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
        """Complete the call with `outcome`."""
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
        """Skip this user: by default no offers for 15 minutes, to this agent none for an hour."""
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
        """Defer this user: offer the user to nobody before `until`, or for `seconds`."""
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
        """Close the user in this dialer queue until an operator lifts the closure."""
        held = self.assignment
        return self._end(
            self._client.close_user(
                held.id, held.agent_id, why, version=held.version, timeout=self._timeout
            )
        )

    def release(self) -> FinishAnswer:
        """Release the assignment unchanged."""
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
        """Return the seconds until the next renewal of a lease that ends at `until`.

        A third of the remaining time, or of a full `lease` if that is less.
        """
        left = min(until - datetime.now(UTC), lease)
        return max(left.total_seconds() / RENEWALS_A_LEASE, SOONEST_SECONDS)
