"""The rows of the dialer in memory: assignments, entries, generations, answers and conversions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from assignment_workers.assignment.answers import Code
from tests.model.rules import Centre, Missed, Promise


@dataclass
class Hold:
    """An assignment. It is known by the request that it answered."""

    request_id: str
    user: int
    agent: int
    queue: str
    source: str
    rank: int
    lease: datetime
    state: str = "active"
    version: int = 1
    ended_at: datetime | None = None
    outcome: str | None = None
    accepted_at: datetime | None = None
    how: str | None = None
    """How it ended, where its state leaves that open."""
    until: datetime | None = None
    """Before then nobody is offered the user."""
    claimed_at: datetime | None = field(default=None, compare=False)
    promise: Promise | None = field(default=None, compare=False)
    """The callback that it is for."""
    missed: Missed | None = field(default=None, compare=False)
    """The missed call that it is for."""
    ended: int | None = field(default=None, compare=False)
    """Which of all steps ended it."""


@dataclass
class Place:
    """An entry."""

    rank: int
    state: str = "ready"
    until: datetime | None = None
    reason: str | None = None

    def become(self, state: str, until: datetime | None = None, reason: str | None = None) -> None:
        self.state, self.until, self.reason = state, until, reason


@dataclass
class Build:
    """A generation. `begun` says after which of all steps."""

    queue: str
    places: dict[int, Place]
    begun: int
    state: str = "building"


@dataclass(frozen=True)
class Said:
    """What an answer says, as far as it can be known beforehand."""

    outcome: str
    code: Code | None = None
    hold: str | None = None
    """The request that the hold answered first."""
    replayed: bool = False


@dataclass(frozen=True)
class Came:
    """What came of a call, as the agent says it. `after`: a callback is promised for then."""

    outcome: str
    after: timedelta | None = None
    notes: str | None = "said so"

    def is_well_said(self, centre: Centre) -> bool:
        """What the outcome needs is given, and what it does not take is not."""
        outcome = centre.outcomes[self.outcome]
        if outcome.needs_notes and not self.notes:
            return False
        return outcome.callback if self.after is not None else not outcome.needs_callback


@dataclass(frozen=True)
class Converted:
    """A conversion, with the agents who are credited, the primary one first."""

    user: int
    queue: str
    kind: str
    episode: int
    score: int
    attempts: int
    agents: tuple[int, ...]
