"""The moves of an agent: five that end an assignment, accepting it, and renewing its lease."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar
from uuid import UUID

from assignment_workers.assignment.answers import Code, Ended, Refused
from assignment_workers.policy.outcomes import OUTCOMES
from assignment_workers.schema.tables import AssignmentState, EndedHow


@dataclass(frozen=True)
class Owner:
    """The assignment that an agent's command is about, and the agent.

    `version`: that of the assignment which the agent knows; None: any version.
    """

    assignment_id: UUID
    agent_id: int
    version: int | None = None


@dataclass(frozen=True)
class Complete:
    """Complete the call with an outcome.

    The assignment ends, the score and the time of the next call follow the outcome, a promised
    callback is stored, and the user leaves the published generations (guarantee 10). If the call
    was made for a callback, that is marked as kept or cancelled, as the outcome says; if nobody
    answered, the callback is tried again after `retry`, a limited number of times. Refused, with
    nothing changed: an unknown outcome, and a callback time or notes that do not fit the outcome.
    """

    owner: Owner
    outcome: str
    notes: str | None = None
    callback_at: datetime | None = None
    retry: timedelta = timedelta(minutes=15)

    becomes = AssignmentState.COMPLETED
    how = None
    word: ClassVar[Ended] = "completed"


@dataclass(frozen=True)
class Skip:
    """Skip the user, who is then not offered to any agent for a while, and longer not to this one.

    `everyone` is the time for all agents; for this agent, the setting `skip_agent` applies.
    """

    owner: Owner
    everyone: timedelta

    becomes = AssignmentState.SKIPPED
    how = None
    word: ClassVar[Ended] = "skipped"


@dataclass(frozen=True)
class Defer:
    """Defer the user: no agent is offered the user before `until`, or for `rest` from now.

    Exactly one of `until` and `rest` is set. Afterwards the user may be offered to any agent, this
    one included. Refused: a time that has passed, and one that is more than `most` from now.
    """

    owner: Owner
    most: timedelta
    until: datetime | None = None
    rest: timedelta | None = None
    why: str | None = None

    becomes = AssignmentState.SKIPPED
    how = EndedHow.DEFERRED
    word: ClassVar[Ended] = "deferred"


@dataclass(frozen=True)
class Close:
    """Close this dialer queue for the user, until an operator lifts the suppression.

    The user's pending callbacks are cancelled. A suppression of the kind `closed` stores the
    closure; the policy reads it, so builds, claims and explanations apply it.
    """

    owner: Owner
    why: str

    becomes = AssignmentState.SKIPPED
    how = EndedHow.CLOSED
    word: ClassVar[Ended] = "closed"


@dataclass(frozen=True)
class Release:
    """Give the user back without a call: claimable at once, by any agent, at the same position."""

    owner: Owner
    by: str | None = None
    """Person or program other than the agent that releases the user; None: the agent."""
    why: str | None = None

    becomes = AssignmentState.RELEASED
    how = None
    word: ClassVar[Ended] = "released"


@dataclass(frozen=True)
class Accept:
    """Accept the offer, which becomes work.

    The lease ends `lease` from now, or later if it did already. The version stays the same.
    Repeating the move changes nothing.
    """

    owner: Owner
    lease: timedelta

    becomes = AssignmentState.ACTIVE
    how = None
    word: ClassVar[Ended] = "accepted"


@dataclass(frozen=True)
class Renew:
    """Renew the lease; an offer is accepted by the same move.

    The lease ends `lease` from now, or later if it did already. The version stays the same, so that
    a call that ends during a renewal is not refused because of it.
    """

    owner: Owner
    lease: timedelta

    becomes = AssignmentState.ACTIVE
    how = None
    word: ClassVar[Ended] = "renewed"


Move = Complete | Skip | Defer | Close | Release | Accept | Renew


def misused(move: Complete) -> Refused | None:
    """Return the refusal of a move with an unknown outcome or unsuitable values, or None."""
    rule = OUTCOMES.get(move.outcome)
    if rule is None:
        return Refused(
            code=Code.UNKNOWN_OUTCOME,
            reason=f"no outcome {move.outcome!r}; there are {', '.join(OUTCOMES)}",
        )
    if rule.needs_callback and move.callback_at is None:
        wrong = f"outcome {rule.name} needs callback_at, a time with a zone"
    elif move.callback_at is not None and not rule.callback:
        takers = ", ".join(name for name, other in OUTCOMES.items() if other.callback)
        wrong = f"outcome {rule.name} takes no callback_at; these do: {takers}"
    elif rule.needs_notes and not (move.notes and move.notes.strip()):
        wrong = f"outcome {rule.name} needs notes"
    else:
        return None
    return Refused(code=Code.MALFORMED, reason=wrong)
