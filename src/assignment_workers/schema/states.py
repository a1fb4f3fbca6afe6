"""Values of the tables that clients know too: importing them does not import SQLAlchemy."""

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
    """The detail of an assignment's end that its state does not tell.

    Two of the values are of the state skipped, one is of expired.
    """

    DEFERRED = "deferred"
    CLOSED = "closed"
    OFFER_LAPSED = "offer_lapsed"
    """No agent accepted the offer in time."""


class AnswerKind(StrEnum):
    """The kinds of answers to requests for a user, as their callers get them."""

    ASSIGNED = "assigned"
    EMPTY = "empty"
    PAUSED = "paused"
    RULED = "ruled"
    """Refused by a rule for the agent, such as a break that is due."""
    TOO_LATE = "too_late"
    UNAVAILABLE = "unavailable"
    """Answered `unavailable`, or not at all within the caller's time."""
    LEFT = "left"
    """The caller disconnected before the answer."""
    FAILED = "failed"
    """An internal error."""
    MISTAKE = "mistake"
    """Malformed, not allowed, or past its deadline when it was sent: the caller's mistake."""
    DROPPED = "dropped"
    """Answers of any kind whose counts were dropped, because the database was away for too long."""
