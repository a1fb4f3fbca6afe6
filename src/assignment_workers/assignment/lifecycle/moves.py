"""What an agent may do with a hold: end it in one of five ways, take it up, keep it alive."""

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
    """Whose assignment is meant. `version` None: whichever it has."""

    assignment_id: UUID
    agent_id: int
    version: int | None = None


@dataclass(frozen=True)
class Complete:
    """The call was made and this came of it.

    The assignment ends, the score and the time of the next call follow the outcome, a promised
    callback is written, the user leaves the published generations (guarantee 10). A callback that
    the call was for is kept by it; or tried again after `retry`, once, if nobody answered. Refused,
    with nothing changed: an unknown outcome, and a callback time or notes that it does not take so.
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
    """Not me: this agent is not offered the user for `skip_agent`, nobody for `everyone`.

    Both are remembered by the assignment itself, so they survive any rebuild (hazards A9, B3).
    """

    owner: Owner
    everyone: timedelta

    becomes = AssignmentState.SKIPPED
    how = None
    word: ClassVar[Ended] = "skipped"


@dataclass(frozen=True)
class Defer:
    """Later, for everyone: nobody is offered the user before `until`, or for `rest` from now.

    One of the two. Remembered as a skip is; whoever the user is offered to then, this agent may be
    one of them. Refused: a time that has passed, and one more than `most` from now.
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
    """The user is out of this dialer queue, for good, until an operator lifts it.

    What they were promised in it is called off. A suppression of the kind `closed` remembers it,
    which the policy reads: builds, claims and explanations know it.
    """

    owner: Owner
    why: str

    becomes = AssignmentState.SKIPPED
    how = EndedHow.CLOSED
    word: ClassVar[Ended] = "closed"


@dataclass(frozen=True)
class Release:
    """Give the user back untouched: claimable at once, by anybody, at the place they had."""

    owner: Owner
    by: str | None = None
    """Who else asked for it, an operator say; None: its agent did."""
    why: str | None = None

    becomes = AssignmentState.RELEASED
    how = None
    word: ClassVar[Ended] = "released"


@dataclass(frozen=True)
class Accept:
    """The agent takes the offer up: it is work from now on, and the lease runs so long from now.

    The version stays. Said again, nothing changes.
    """

    owner: Owner
    lease: timedelta

    becomes = AssignmentState.ACTIVE
    how = None
    word: ClassVar[Ended] = "accepted"


@dataclass(frozen=True)
class Renew:
    """The agent is still at it: the lease runs anew from now, for so long. An offer is accepted.

    The version stays, so a call that ends while a renewal is under way is not refused for it.
    """

    owner: Owner
    lease: timedelta

    becomes = AssignmentState.ACTIVE
    how = None
    word: ClassVar[Ended] = "renewed"


Move = Complete | Skip | Defer | Close | Release | Accept | Renew


def misused(move: Complete) -> Refused | None:
    """Why nobody completes so: there is no such outcome, or it takes or needs something else."""
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
