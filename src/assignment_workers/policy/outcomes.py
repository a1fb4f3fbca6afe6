"""The effects of a call's outcome: the score, the delay until the next call, and the actions.

An action is a task that another system carries out after the call, such as to send a text message.
Each dialer defines its own outcomes, for example in a file `dialerconfig.py`. Scores have the scale
that docs/original-dialer.md describes (original-dialer section 4): a user with a lower score is
called sooner, unless a dialer queue has an order of its own.
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
"""The largest value of a score or a counter: the largest that fits into the integer column.

A value does not grow beyond it. The original dialer may have left rows with this value. An
addition to such a value must not fail.
"""


@dataclass(frozen=True)
class Action:
    """A task for another system after a call, such as to send a text message.

    The field `actions` of an outcome lists its actions. The event of the completed call names the
    actions that follow the call.
    """

    name: str
    """The action's name, by which the event of the completed call refers to the action.

    The name has small letters, digits and underscores only.
    """
    means: str
    """A sentence that describes the task, such as `Have an operator look at the user.`"""


REVIEW = Action("review", "Have an operator look at the user.")
"""The action that follows a call if an operator has to examine the user."""


@dataclass(frozen=True)
class Outcome:
    """An outcome that an agent may choose for a call, and its effects on the user."""

    name: str
    """The outcome's name in interfaces and tables: small letters, digits and underscores."""
    title: str
    """The text on the agent's button."""
    score: int = 0
    """The number that is added to the user's score.

    Users with a higher score are called later, unless a dialer queue has an order of its own.
    """
    delay: timedelta = timedelta(0)
    """The shortest time from the completion of the call until a dialer queue offers the user again.

    If the agent promises a callback, the promised time replaces the end of the delay. A due
    callback or missed call of the user does not wait for the end of the delay.
    """
    terminal: bool = False
    """True if the user is never offered again, neither by a dialer queue nor for a callback."""
    success: bool = False
    """True if the call counts towards the user's `successful_calls`."""
    capped: bool = False
    """True if this outcome raises a user's score to 200 at most.

    A score that is already above 200 stays unchanged.
    """
    callback: bool = False
    """True if the agent may give a time for a callback."""
    needs_callback: bool = False
    """True if the agent must give a time for a callback."""
    keeps: bool = True
    """True if the call fulfils a promised callback; False if the user was not reached."""
    converts: bool = False
    """True if a call with this outcome may mean that the user has reached the dialer queue's goal.

    The CRM facts of the user are then checked.
    """
    retried: bool = False
    """True if a callback is tried again after a call with this outcome.

    The number of retries is limited by the column `max_retries` of the callback.
    """
    needs_notes: bool = False
    """True if the agent must write notes."""
    actions: tuple[Action, ...] = ()
    review_after: int | None = None
    """The number of earlier calls with this outcome that is enough for a review by an operator.

    A call with this outcome leads to a review of the user if the user had at least this number of
    earlier calls with the same outcome. None: no number of such calls leads to a review.
    """
    review_unpromised: bool = False
    """True if an operator is to review the user when no callback was promised."""
    meaning: str = ""
    """A sentence that explains to agents when to choose the outcome."""

    def asks_for(self, *, earlier: int, promised: bool) -> list[str]:
        """Return the names of the actions, such as `review`, that follow a call with this outcome.

        `earlier` is the number of earlier calls of the user with this outcome. `promised` is True
        if a callback was promised.
        """
        repeated = self.review_after is not None and earlier >= self.review_after
        review = repeated or (self.review_unpromised and not promised)
        asked = [*self.actions, *([REVIEW] if review else [])]
        return [action.name for action in asked]

    @property
    def first_score(self) -> int:
        """The score of a user whose first call ends with this outcome."""
        return min(self.score, SCORE_CEILING) if self.capped else self.score


def attempt_penalty(attempt: int) -> int:
    """Return the score that the `attempt`-th call adds: 0 up to the 5th, 1 up to the 10th, then 3.

    The original dialer had other numbers (original-dialer section 4). It added 1, 2, 3, 4 and 5 at
    the 6th to the 10th call. At the 11th call it added only 3, at the 12th 6, at the 13th 9, and so
    on.
    """
    if attempt <= 5:
        return 0
    return 1 if attempt <= 10 else 3


def raised(number: SQLColumnExpression[int], *by: ColumnElement[int] | int) -> ColumnElement[int]:
    """Return a SQL expression for the sum of `number` and all of `by`.

    The sum is limited to `LARGEST`, so that it fits into the column.
    """
    total: ColumnElement[int] = cast(number, BigInteger)
    for each in by:
        total += each
    return func.least(LARGEST, total)


def score_after(
    added: ColumnElement[int], name: ColumnElement[str], outcomes: Iterable[Outcome]
) -> ColumnElement[int]:
    """Return a SQL expression for the user's new score after a call.

    The expression is for an UPDATE of the user's score row. PostgreSQL then computes the new score
    from the old one, so that no concurrent change is lost. The new score includes the penalty for
    many calls (`attempt_penalty`).

    `name`: the name of the call's outcome. `added`: the number that this outcome adds to the score.
    `outcomes`: all outcomes of the dialer. If the call's outcome is `capped`, it raises a score to
    200 at most (`SCORE_CEILING`), and leaves a score above 200 unchanged.
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
