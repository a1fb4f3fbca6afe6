"""What the outcome of a call does to a user's score and to when they may be called again.

The numbers are those of original-dialer section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from sqlalchemy import ColumnElement, case, func

from assignment_workers.schema.base import word
from assignment_workers.schema.dialer import UserCallScore

SCORE_CEILING = 200


@dataclass(frozen=True)
class Outcome:
    """One outcome.

    `delay` is until the user may be called again unless a callback time says otherwise.
    """

    name: str
    score: int
    delay: timedelta
    terminal: bool = False
    """The user is never offered again, from any source."""
    success: bool = False
    """Counts towards `successful_calls`."""
    capped: bool = False
    """The score does not grow beyond `SCORE_CEILING`."""
    callback: bool = False
    """A callback time may be given."""
    needs_callback: bool = False
    keeps: bool = True
    """The call was one that the user was promised; without it nobody was reached."""
    converts: bool = False
    """What the dialer queue is for may have been reached by the call: the facts are looked at."""
    retried: bool = False
    """A callback is tried once more where it came of it."""
    needs_notes: bool = False


HOUR = timedelta(hours=1)

Part = Literal["score", "delay_seconds"]
"""What of an outcome can be overridden."""

OUTCOMES: dict[str, Outcome] = {
    outcome.name: outcome
    for outcome in (
        Outcome("completed_form", 0, 24 * HOUR, success=True, capped=True, converts=True),
        Outcome("going_to_complete", 0, 72 * HOUR, success=True, callback=True),
        Outcome("might_complete", 2, 24 * HOUR, callback=True),
        Outcome("call_back", 0, 24 * HOUR, success=True, callback=True, needs_callback=True),
        Outcome("no_answer", 1, 4 * HOUR, keeps=False, retried=True),
        Outcome("missed_call", 0, 0 * HOUR, callback=True, needs_callback=True),
        Outcome("hung_up", 2, 4 * HOUR),
        Outcome("bad_number", 50, 672 * HOUR, keeps=False),
        Outcome("no_claim", 200, 0 * HOUR, terminal=True, capped=True),
        Outcome("not_interested", 100, 672 * HOUR),
        Outcome("do_not_contact", 200, 0 * HOUR, terminal=True, capped=True, needs_notes=True),
    )
}

TERMINAL = tuple(outcome.name for outcome in OUTCOMES.values() if outcome.terminal)


def overridden(changes: Mapping[str, Mapping[Part, int]]) -> dict[str, Outcome]:
    """The outcomes, some with another score or `delay_seconds`; everything else stays as it is.

    Raises `ValueError` for an outcome that there is not, and for a delay of one that is terminal.
    """
    outcomes = dict(OUTCOMES)
    for name, change in changes.items():
        if name not in outcomes:
            raise ValueError(f"no outcome {name!r}; there are {', '.join(OUTCOMES)}")
        known = outcomes[name]
        delay = change.get("delay_seconds")
        if known.terminal and delay is not None:
            raise ValueError(f"outcome {name} takes no delay_seconds: it is for good")
        outcomes[name] = replace(
            known,
            score=change.get("score", known.score),
            delay=known.delay if delay is None else timedelta(seconds=delay),
        )
    return outcomes


def attempt_penalty(attempt: int) -> int:
    """What the `attempt`-th call (from 1) adds: nothing up to the 5th, 1 up to the 10th, then 3.

    The original added the whole penalty so far at every call, which grew with the square of the
    attempts and fell from 5 to 3 at the 11th (section 4). Here each call adds its own step only.
    """
    if attempt <= 5:
        return 0
    return 1 if attempt <= 10 else 3


CAPPED = tuple(outcome.name for outcome in OUTCOMES.values() if outcome.capped)


def score_after(added: ColumnElement[int], name: ColumnElement[str]) -> ColumnElement[int]:
    """The new score over the score row: one atomic update, nothing read before (hazard D5).

    `added` is the score of the outcome `name`.
    """
    attempt = UserCallScore.total_attempts + 1
    penalty = case((attempt <= 5, 0), (attempt <= 10, 1), else_=3)
    grown = func.greatest(0, UserCallScore.current_score + added + penalty)
    capped = name.in_([word(each) for each in CAPPED])
    return case((capped, func.least(SCORE_CEILING, grown)), else_=grown)
