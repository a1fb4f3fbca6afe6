"""What the agents saw: every answer, when it came, and who had whom by their own account."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from assignment_workers.assignment.answers import Held


class AgentActivity(StrEnum):
    """What an agent does."""

    AWAY = "away"
    ASKING = "asking"
    TALKING = "talking"
    WRITING = "writing up"
    RESTING = "on break"
    IDLE = "nobody to call"


@dataclass(frozen=True)
class Wait:
    """One request: when it was answered, in seconds of the run, how long it took, and with what."""

    at: float
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Fault:
    """Something that was broken on purpose, and when."""

    at: float
    what: str


@dataclass(frozen=True)
class Sample:
    """One second of the run."""

    at: float
    states: dict[AgentActivity, int]
    assigned: int
    """So far."""
    claimable: int | None
    """In both dialer queues; None while the database could not say."""


@dataclass
class KnownAssignment:
    """What an agent was told of an assignment."""

    agent: int
    user: int
    claimed_at: datetime
    lease_until: datetime
    ended: str | None = None
    """The outcome with which the agent was told that it had ended."""
    state: str | None = None


@dataclass
class Recorder:
    """Of one run; belongs to one thread."""

    began: float = field(default_factory=time.monotonic)
    states: dict[int, AgentActivity] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    assignments: dict[UUID, KnownAssignment] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    """What no guarantee allows: the verdict names each."""
    _has: dict[int, UUID] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def is_in(self, agent: int, state: AgentActivity) -> None:
        """The agent does this now."""
        self.states[agent] = state

    def answered(self, outcome: str, seconds: float) -> None:
        """A request was answered for good, after so long from its first sending."""
        self.waits.append(Wait(self.now, seconds, outcome))

    def record(self, held: Held) -> None:
        """An agent was told that this user is theirs; maybe long after it was so."""
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
        """The lease runs on."""
        told = self.assignments[held.id]
        told.lease_until = max(told.lease_until, held.lease_expires_at)

    def gives_up(self, held: Held) -> None:
        """The agent is about to end it: from now on the user may be anybody's."""
        if self._has.get(held.user_id) == held.id:
            del self._has[held.user_id]

    def ended(self, held: Held, state: str, outcome: str | None) -> None:
        """The agent was told that it has ended so."""
        self.assignments[held.id].state = state
        self.assignments[held.id].ended = outcome

    def fault(self, what: str) -> None:
        """Something was broken on purpose."""
        self.faults.append(Fault(self.now, what))

    def back_after(self, fault: Fault) -> float | None:
        """Seconds from a fault to the first answer to a request that was sent after it."""
        after = [
            wait.at - fault.at
            for wait in self.waits
            if wait.outcome in {"assigned", "empty"} and wait.at - wait.seconds >= fault.at
        ]
        return min(after, default=None)
