"""A hold for as long as a block runs: renewed meanwhile, released unless it was finished."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from assignment_workers.assignment.answers import FinishAnswer, Finished, Held, Refused

if TYPE_CHECKING:
    from assignment_workers.client.asking import Asking

RENEWALS_A_LEASE = 3
"""A renewal may fail twice before the lease lapses."""
SOONEST_SECONDS = 0.2


class Hold:
    """One assignment of one agent; a thread of its own renews it. Made by `Asking.holding`.

    The first renewal accepts the offer.

    `lost` is set once a renewal was refused: the user may be somebody else's then.
    """

    def __init__(self, client: Asking, assignment: Held, *, timeout: timedelta) -> None:
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
