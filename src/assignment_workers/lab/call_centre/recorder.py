"""The agents' own records of a run: the answers that they got, and their assignments.

The answer to each request is recorded with the time at which it arrived.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from assignment_workers.assignment.answers import Held
from assignment_workers.identity import UserId

UNDER_WAY_SECONDS = 15.0
"""The longest time in seconds from a commit to the arrival of the answer at the agent.

A fault can delay an answer by this much. An answer that arrives within this time after a jump of
the database's clock may therefore contain times from before the jump.
"""


class AgentActivity(StrEnum):
    """The activity of a simulated agent."""

    AWAY = "away"
    ASKING = "asking"
    TALKING = "talking"
    WRITING = "writing up"
    RESTING = "on break"
    IDLE = "nobody to call"


@dataclass(frozen=True)
class Wait:
    """An agent's wait for the answer to a request, recorded at the end of the wait.

    `at`: the time at which the wait ended, in seconds since the run began. `seconds`: the length of
    the wait. `outcome`: the outcome of the answer; it is `unavailable` if the agent gave up without
    an answer.
    """

    at: float
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Fault:
    """A deliberate fault in a run.

    `at`: the time at which the fault began. `served_from`: the time from which requests could be
    served. If requests could be served during the fault, this is the time at which the fault began.
    Otherwise it is the time at which the fault ended. Both times are in seconds since the run
    began.
    """

    at: float
    what: str
    served_from: float


@dataclass(frozen=True)
class Sample:
    """The figures of a run at one moment; `at` is its time, in seconds since the run began."""

    at: float
    states: dict[AgentActivity, int]
    assigned: int
    """The number of assignments since the run began."""
    claimable: int | None
    """The number of claimable users in all dialer queues; None if the database did not answer."""


@dataclass
class KnownAssignment:
    """An assignment as the answers to its agent describe it; the database may contradict them."""

    agent: int
    user: UserId
    claimed_at: datetime
    lease_until: datetime
    ended: str | None = None
    """The outcome of the call, such as `no_answer`, once an answer has confirmed the completion.

    None before that, and if the assignment ended without a call. The field `state` distinguishes
    these two cases.
    """
    state: str | None = None
    """The state in which the assignment ended, such as `completed` or `skipped`.

    None as long as no answer has confirmed that the assignment ended.
    """
    at: float = 0.0
    """The time at which the agent got the assignment, in seconds since the run began."""


@dataclass
class Recorder:
    """The agents' record of one run: the answers that they got, and their assignments.

    The answer to each request is recorded with the time at which it arrived, and with the length of
    the agent's wait for it. The recorder also stores the faults of the run, the figures of each
    second, and the answers that contradict a guarantee. It may be used in one thread only.
    """

    began: float = field(default_factory=time.monotonic)
    states: dict[int, AgentActivity] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    assignments: dict[UUID, KnownAssignment] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    untried: list[str] = field(default_factory=list)
    """A line for each kind of fault that cannot be caused in this stack."""
    steps: list[tuple[float, float]] = field(default_factory=list)
    """The jumps of the database's clock, each with its time and its size.

    The time is in seconds since the run began. The size is in seconds; it is negative if the clock
    was put back.
    """
    surprises: list[str] = field(default_factory=list)
    """A line for each answer that contradicts a guarantee. The verdict shows them."""
    _has: dict[UserId, UUID] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """The seconds since the run began."""
        return time.monotonic() - self.began

    def is_in(self, agent: int, state: AgentActivity) -> None:
        """Record the agent's current activity."""
        self.states[agent] = state

    def answered(self, outcome: str, seconds: float) -> None:
        """Record the final answer to a request, and the seconds since it was first sent."""
        self.waits.append(Wait(self.now, seconds, outcome))

    def record(self, held: Held) -> None:
        """Record the assignment that an answer to a request contains.

        The answer may arrive long after the assignment began. If two agents held the user at the
        same time, this is recorded as a surprise: an answer that contradicts a guarantee.
        """
        if held.id in self.assignments:
            self.renewed(held)
        else:
            self.assignments[held.id] = KnownAssignment(
                held.agent_id, held.user_id, held.claimed_at, held.lease_expires_at, at=self.now
            )
        known = self._has.setdefault(held.user_id, held.id)
        first, second = sorted((known, held.id), key=lambda each: self.assignments[each].claimed_at)
        had, has = self.assignments[first], self.assignments[second]
        overlap = has.claimed_at < had.lease_until and not self.has_stepped_since(had.at)
        if first != second and overlap:
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
        """Record that the agent is about to send the message that ends the assignment.

        From now on, it is no error if another agent gets the user.
        """
        if self._has.get(held.user_id) == held.id:
            del self._has[held.user_id]

    def ended(self, held: Held, state: str, outcome: str | None) -> None:
        """Record that an answer confirmed the end of an assignment.

        `state`: the final state, such as `completed`. `outcome`: the outcome of the call, if any.
        """
        self.assignments[held.id].state = state
        self.assignments[held.id].ended = outcome

    def fault(self, what: str, *, at: float, served_from: float) -> None:
        """Record a deliberate fault.

        `at`: the time at which the fault began. `served_from`: the time from which requests could
        be served again. Both are in seconds since the run began.
        """
        self.faults.append(Fault(at, what, served_from))

    def back_after(self, fault: Fault) -> float | None:
        """Return the seconds from `fault.served_from` to the first answer after that time.

        From `fault.served_from` on, requests could be served again. It is the beginning of the
        fault if requests could be served during the fault; otherwise it is the end of the fault.
        An answer counts only if its outcome is `assigned` or `empty`, and if its request was sent
        after the fault's beginning. None if there is no such answer.
        """
        after = [
            wait.at - fault.served_from
            for wait in self.waits
            if wait.outcome in {"assigned", "empty"}
            and wait.at >= fault.served_from
            and wait.at - wait.seconds >= fault.at
        ]
        return min(after, default=None)

    def stepped(self, seconds: float) -> None:
        """Record that the database's clock jumps now by `seconds`."""
        self.steps.append((self.now, seconds))

    @property
    def ahead(self) -> timedelta:
        """The time by which the database's clock is ahead of this machine's."""
        return timedelta(seconds=sum(seconds for _, seconds in self.steps))

    def has_stepped_since(self, at: float) -> bool:
        """Return True if the database's clock jumped after `at`, or less than 15 s before.

        `at`: the time at which an answer arrived, in seconds since the run began. Times of the
        database from before and after a jump cannot be compared. A jump before `at` counts too,
        because the answer may have been under way for up to 15 seconds (`UNDER_WAY_SECONDS`). Its
        times may then be from before the jump.
        """
        return any(when > at - UNDER_WAY_SECONDS for when, _ in self.steps)
