"""The effects of a call's outcome: score, delay until the next call, and actions for others.

The numbers and actions are those of original-dialer section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, case, func

from assignment_workers.schema.base import sql_text
from assignment_workers.schema.dialer import UserCallScore

SCORE_CEILING = 200


class Action(StrEnum):
    """A task that an outcome asks other systems to do, named by the event of the completed call."""

    SEND_SMS = "send_sms"
    """Send the user a text message."""
    SEND_MAGIC_LINK = "send_magic_link"
    """Send the user a link that signs them in."""
    FLAG_NUMBER = "flag_number"
    """Report the wrong phone number to the system that stores it."""
    REVIEW = "review"
    """Have an operator look at the user."""


@dataclass(frozen=True)
class Outcome:
    """An outcome that an agent may give to a call, and its effects on the user.

    `delay` is the time until the user may be called again, unless a callback time is given.
    """

    name: str
    score: int
    delay: timedelta
    terminal: bool = False
    """True if the user is never offered again, neither by a dialer queue nor for a callback."""
    success: bool = False
    """True if the call counts towards the user's `successful_calls`."""
    capped: bool = False
    """True if this outcome does not raise a score beyond `SCORE_CEILING`; a higher score stays."""
    callback: bool = False
    """True if a callback time may be given."""
    needs_callback: bool = False
    keeps: bool = True
    """True if the call fulfils a promised callback; False if nobody was reached."""
    converts: bool = False
    """True if the call may have reached the dialer queue's goal, so the facts are checked."""
    retried: bool = False
    """True if a callback that ended with this outcome is tried once more."""
    needs_notes: bool = False
    actions: tuple[Action, ...] = ()
    review_after: int | None = None
    """Number of earlier calls with this outcome from which an operator is to review the user."""
    review_unpromised: bool = False
    """True if an operator is to review the user unless a callback was promised."""
    meaning: str = ""
    """A sentence that tells agents when to choose the outcome."""

    def asks_for(self, *, earlier: int, promised: bool) -> list[Action]:
        """Return the tasks for other systems, such as a text message, after this outcome.

        `earlier` is the number of earlier calls of the user with this outcome. `promised` is True
        if a callback was promised.
        """
        repeated = self.review_after is not None and earlier >= self.review_after
        review = repeated or (self.review_unpromised and not promised)
        return [*self.actions, *([Action.REVIEW] if review else [])]

    @property
    def first_score(self) -> int:
        """The score of a user after a first call with this outcome, when no penalty applies."""
        return min(self.score, SCORE_CEILING) if self.capped else self.score


HOUR = timedelta(hours=1)

OUTCOMES: dict[str, Outcome] = {
    outcome.name: outcome
    for outcome in (
        Outcome(
            "completed_form",
            0,
            24 * HOUR,
            success=True,
            capped=True,
            converts=True,
            actions=(Action.SEND_SMS,),
            meaning="The user completed the form during the call.",
        ),
        Outcome(
            "going_to_complete",
            0,
            72 * HOUR,
            success=True,
            callback=True,
            actions=(Action.SEND_MAGIC_LINK, Action.SEND_SMS),
            review_unpromised=True,
            meaning="The user will complete the form soon.",
        ),
        Outcome(
            "might_complete",
            2,
            24 * HOUR,
            callback=True,
            actions=(Action.SEND_SMS,),
            review_unpromised=True,
            meaning="The user may complete the form.",
        ),
        Outcome(
            "call_back",
            0,
            24 * HOUR,
            success=True,
            callback=True,
            needs_callback=True,
            actions=(Action.SEND_SMS,),
            meaning="The user asked to be called at another time.",
        ),
        Outcome(
            "no_answer",
            1,
            4 * HOUR,
            keeps=False,
            retried=True,
            review_after=2,
            meaning="Nobody answered.",
        ),
        Outcome(
            "missed_call",
            0,
            0 * HOUR,
            callback=True,
            needs_callback=True,
            actions=(Action.SEND_SMS,),
            review_after=0,
            meaning="The user called and nobody took the call.",
        ),
        Outcome("hung_up", 2, 4 * HOUR, review_after=2, meaning="The user hung up."),
        Outcome(
            "bad_number",
            50,
            672 * HOUR,
            keeps=False,
            actions=(Action.FLAG_NUMBER,),
            review_after=0,
            meaning="The number is wrong or out of service.",
        ),
        Outcome(
            "no_claim", 200, 0 * HOUR, terminal=True, capped=True, meaning="The user has no claim."
        ),
        Outcome(
            "not_interested", 100, 672 * HOUR, review_after=1, meaning="The user does not want it."
        ),
        Outcome(
            "do_not_contact",
            200,
            0 * HOUR,
            terminal=True,
            capped=True,
            needs_notes=True,
            meaning="The user asked not to be called again.",
        ),
    )
}

TERMINAL = tuple(outcome.name for outcome in OUTCOMES.values() if outcome.terminal)


def overridden(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Outcome]:
    """Return all outcomes by name, with these changes applied.

    `changes`: by outcome, new values of some of `score`, `delay_seconds`, `actions`,
    `review_after`, `review_unpromised`. Raises `ValueError` for an unknown outcome or action, and
    for a delay of a terminal outcome.
    """
    outcomes = dict(OUTCOMES)
    for name, change in changes.items():
        if name not in outcomes:
            raise ValueError(f"no outcome {name!r}; there are {', '.join(OUTCOMES)}")
        given = dict(change)
        if "delay_seconds" in given:
            if outcomes[name].terminal:
                raise ValueError(f"outcome {name} takes no delay_seconds: it is for good")
            given["delay"] = timedelta(seconds=given.pop("delay_seconds"))
        if "actions" in given:
            given["actions"] = tuple(map(_action, given["actions"]))
        outcomes[name] = replace(outcomes[name], **given)
    return outcomes


def _action(said: str) -> Action:
    try:
        return Action(said)
    except ValueError:
        raise ValueError(f"no action {said!r}; there are {', '.join(Action)}") from None


def attempt_penalty(attempt: int) -> int:
    """Return the score that the `attempt`-th call adds: 0 up to the 5th, 1 up to the 10th, then 3.

    The original added the whole penalty so far at every call, which grew with the square of the
    attempts and fell from 5 to 3 at the 11th (section 4). Here each call adds only its own step.
    """
    if attempt <= 5:
        return 0
    return 1 if attempt <= 10 else 3


CAPPED = tuple(outcome.name for outcome in OUTCOMES.values() if outcome.capped)


def score_after(added: ColumnElement[int], name: ColumnElement[str]) -> ColumnElement[int]:
    """Return a SQL expression over the score row: the user's score after a call.

    `name` is the outcome of the call, and `added` is that outcome's score. The score changes in one
    atomic update, without a read before it (hazard D5).
    """
    attempt = UserCallScore.total_attempts + 1
    penalty = case((attempt <= 5, 0), (attempt <= 10, 1), else_=3)
    grown = func.greatest(0, UserCallScore.current_score + added + penalty)
    capped = name.in_([sql_text(each) for each in CAPPED])
    # The score never falls: a cap that lowered a score would move an unpromising user to the front.
    upto = func.greatest(UserCallScore.current_score, func.least(SCORE_CEILING, grown))
    return case((capped, upto), else_=grown)
