"""Values of table columns that clients use too, in a module that does not import SQLAlchemy."""

from __future__ import annotations

from enum import StrEnum

DEFAULT_LANE = "default"


class AssignmentState(StrEnum):
    """The states of an assignment: active → completed, skipped, released or expired."""

    ACTIVE = "active"
    COMPLETED = "completed"
    SKIPPED = "skipped"
    RELEASED = "released"
    EXPIRED = "expired"


class EndedHow(StrEnum):
    """The way in which an assignment ended, if its state alone does not show it.

    `deferred` and `closed` belong to the state skipped, `offer_lapsed` to the state expired.
    """

    DEFERRED = "deferred"
    CLOSED = "closed"
    OFFER_LAPSED = "offer_lapsed"
    """The agent did not accept the assignment in time."""


class AnswerKind(StrEnum):
    """The kinds of answers to requests for a user, as gateways and clients count them."""

    ASSIGNED = "assigned"
    EMPTY = "empty"
    PAUSED = "paused"
    RULED = "ruled"
    """The request was refused because of a rule about the agent, such as a break that is due."""
    TOO_LATE = "too_late"
    UNAVAILABLE = "unavailable"
    """The request could not be handled, for example because the database or the broker was down.

    Also a request to which no answer came within the caller's time limit.
    """
    LEFT = "left"
    """The caller disconnected before the answer was sent."""
    FAILED = "failed"
    """An internal error."""
    MISTAKE = "mistake"
    """The caller's error: its request was malformed, not allowed, or past its deadline when it was
    sent.
    """
    DROPPED = "dropped"
    """Answers that are no longer counted by their own kind, because the counts became too old.

    While the database is unavailable, gateways and clients keep their counts in memory, for 48
    hours at most. Of older counts, only the number of answers is kept, and is counted as this kind.
    """
