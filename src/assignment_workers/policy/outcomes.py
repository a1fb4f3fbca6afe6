"""The effects of a call's outcome: score, delay until the next call, and actions for others.

The outcomes themselves are the dialer's (`dialerconfig.py`). The scale of scores is that of
original-dialer section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import BigInteger, ColumnElement, SQLColumnExpression, case, cast, func

from assignment_workers.schema.base import sql_text
from assignment_workers.schema.dialer import UserCallScore

SCORE_CEILING = 200
LARGEST = 2**31 - 1
"""The largest value of a score or a counter, where it stays. A dialer may have left such rows."""


@dataclass(frozen=True)
class Action:
    """A task that an outcome asks other systems to do, named by the event of the completed call."""

    name: str
    """The word in the event: small letters, digits and underscores."""
    means: str
    """A sentence that tells the other system what to do."""


REVIEW = Action("review", "Have an operator look at the user.")
"""The action that `Outcome.review_after` and `Outcome.review_unpromised` ask for."""


@dataclass(frozen=True)
class Outcome:
    """An outcome that an agent may give to a call, and its effects on the user.

    Agents see the outcomes in the order of the dialer.
    """

    name: str
    """The word of the interfaces and of the records: small letters, digits and underscores."""
    title: str
    """The words on an agent's button."""
    score: int = 0
    """The number that is added to the user's score. A higher score is called later."""
    delay: timedelta = timedelta(0)
    """The time until the user may be called again, unless a callback time is given."""
    terminal: bool = False
    """True if the user is never offered again, neither by a dialer queue nor for a callback."""
    success: bool = False
    """True if the call counts towards the user's `successful_calls`."""
    capped: bool = False
    """True if this outcome does not raise a score beyond `SCORE_CEILING`; a higher score stays."""
    callback: bool = False
    """True if a callback time may be given."""
    needs_callback: bool = False
    """True if a callback time has to be given."""
    keeps: bool = True
    """True if the call fulfils a promised callback; False if nobody was reached."""
    converts: bool = False
    """True if the call may have reached the dialer queue's goal, so the facts are checked."""
    retried: bool = False
    """True if a callback that ended with this outcome is tried once more."""
    needs_notes: bool = False
    """True if notes have to be given."""
    actions: tuple[Action, ...] = ()
    review_after: int | None = None
    """Number of earlier calls with this outcome from which an operator is to review the user."""
    review_unpromised: bool = False
    """True if an operator is to review the user unless a callback was promised."""
    meaning: str = ""
    """A sentence that tells agents when to choose the outcome."""

    def asks_for(self, *, earlier: int, promised: bool) -> list[str]:
        """Return the names of the tasks for other systems, such as a text message.

        `earlier` is the number of earlier calls of the user with this outcome. `promised` is True
        if a callback was promised.
        """
        repeated = self.review_after is not None and earlier >= self.review_after
        review = repeated or (self.review_unpromised and not promised)
        asked = [*self.actions, *([REVIEW] if review else [])]
        return [action.name for action in asked]

    @property
    def first_score(self) -> int:
        """The score of a user after a first call with this outcome, when no penalty applies."""
        return min(self.score, SCORE_CEILING) if self.capped else self.score


def attempt_penalty(attempt: int) -> int:
    """Return the score that the `attempt`-th call adds: 0 up to the 5th, 1 up to the 10th, then 3.

    The original added the whole penalty so far at every call, which grew with the square of the
    attempts and fell from 5 to 3 at the 11th (section 4). Here each call adds only its own step.
    """
    if attempt <= 5:
        return 0
    return 1 if attempt <= 10 else 3


def raised(number: SQLColumnExpression[int], *by: ColumnElement[int] | int) -> ColumnElement[int]:
    """Return a SQL expression: an integer plus others, at most `LARGEST`."""
    total: ColumnElement[int] = cast(number, BigInteger)
    for each in by:
        total += each
    return func.least(LARGEST, total)


def score_after(
    added: ColumnElement[int], name: ColumnElement[str], outcomes: Iterable[Outcome]
) -> ColumnElement[int]:
    """Return a SQL expression over the score row: the user's score after a call.

    `name` is the outcome of the call, and `added` is that outcome's score. `outcomes`: those
    of the dialer. The score changes in one atomic update, without a read before it (hazard
    D5).
    """
    earlier = UserCallScore.total_attempts
    penalty = case((earlier < 5, 0), (earlier < 10, 1), else_=3)
    grown: ColumnElement[int] = func.greatest(
        0, raised(UserCallScore.current_score, added, penalty)
    )
    capped = [sql_text(each.name) for each in outcomes if each.capped]
    if not capped:
        return grown
    # The score never falls: a cap that lowered a score would move an unpromising user to the front.
    upto = func.greatest(UserCallScore.current_score, func.least(SCORE_CEILING, grown))
    return case((name.in_(capped), upto), else_=grown)
