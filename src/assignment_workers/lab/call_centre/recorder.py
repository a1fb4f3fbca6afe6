"""The agents' own records: every answer, its time, and the users whom each agent had."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from assignment_workers.assignment.answers import Held


class AgentActivity(StrEnum):
    """An agent's activity."""

    AWAY = "away"
    ASKING = "asking"
    TALKING = "talking"
    WRITING = "writing up"
    RESTING = "on break"
    IDLE = "nobody to call"


@dataclass(frozen=True)
class Wait:
    """One answered request: when in the run (s), after how many seconds, and its outcome."""

    at: float
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Fault:
    """A deliberate fault, and its second of the run."""

    at: float
    what: str


@dataclass(frozen=True)
class Sample:
    """The figures of one second of the run."""

    at: float
    states: dict[AgentActivity, int]
    assigned: int
    """The number of assignments so far."""
    claimable: int | None
    """The number of claimable users in both dialer queues; None if the database did not answer."""


@dataclass
class KnownAssignment:
    """An assignment as its agent knows it from the answers."""

    agent: int
    user: int
    claimed_at: datetime
    lease_until: datetime
    ended: str | None = None
    """The outcome in the answer that ended the assignment."""
    state: str | None = None


@dataclass
class Recorder:
    """The records of one run; they belong to one thread."""

    began: float = field(default_factory=time.monotonic)
    states: dict[int, AgentActivity] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    assignments: dict[UUID, KnownAssignment] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    """Descriptions of answers that break a guarantee; the verdict shows each."""
    _has: dict[int, UUID] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def is_in(self, agent: int, state: AgentActivity) -> None:
        """Record `state` as the agent's present activity."""
        self.states[agent] = state

    def answered(self, outcome: str, seconds: float) -> None:
        """Record the final answer to a request, and the seconds since its first sending."""
        self.waits.append(Wait(self.now, seconds, outcome))

    def record(self, held: Held) -> None:
        """Record an assignment from an answer, which may come long after the assignment began."""
        if held.id in self.assignments:
            self.renewed(held)
        else:
            self.assignments[held.id] = KnownAssignment(
                held.agent_id, held.user_id, held.claimed_at, held.lease_expires_at
            )
        known = self._has.setdefault(held.user_id, held.id)
        first, second = sorted((known, held.id), key=lambda each: self.assignments[each].claimed_at)
        had, has = self.assignments[first], self.assignments[second]
        if first != second and has.claimed_at < had.lease_until:
            self.surprises.append(
                f"user {held.user_id} was given to agent {has.agent} while agent"
                f" {had.agent} had them until {had.lease_until:%H:%M:%S.%fZ}"
            )
        self._has[held.user_id] = second

    def renewed(self, held: Held) -> None:
        """Record the new end of a lease from the answer to a renewal."""
        told = self.assignments[held.id]
        told.lease_until = max(told.lease_until, held.lease_expires_at)

    def gives_up(self, held: Held) -> None:
        """Record that the agent is about to end the assignment.

        From now on another agent may have the user.
        """
        if self._has.get(held.user_id) == held.id:
            del self._has[held.user_id]

    def ended(self, held: Held, state: str, outcome: str | None) -> None:
        """Record the end of an assignment in `state`, with the outcome that was answered."""
        self.assignments[held.id].state = state
        self.assignments[held.id].ended = outcome

    def fault(self, what: str) -> None:
        """Record a deliberate fault."""
        self.faults.append(Fault(self.now, what))

    def back_after(self, fault: Fault) -> float | None:
        """Return the seconds from a fault to the first answer to a request sent after it."""
        after = [
            wait.at - fault.at
            for wait in self.waits
            if wait.outcome in {"assigned", "empty"} and wait.at - wait.seconds >= fault.at
        ]
        return min(after, default=None)
