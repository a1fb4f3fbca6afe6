"""Conversion of a task's result to the answer type that its caller is promised."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TypeAlias

from pydantic import ValidationError

from assignment_workers.assignment.answers import (
    Answer,
    Assigned,
    CommandAnswer,
    Done,
    Empty,
    FinishAnswer,
    Finished,
    HeartbeatAnswer,
    Noted,
    Paused,
    Refused,
    RequestAnswer,
    StateAnswer,
    Stated,
    TooLate,
    Unavailable,
    from_json,
)
from assignment_workers.errors import BrokerUnavailable

log = logging.getLogger(__name__)

Built: TypeAlias = dict[str, dict[str, int | str]]
"""The result of a build: for each dialer queue, the number of the `generation` and its `size`.

The size is a number of users. If nothing was built for a dialer queue, `skipped` has the reason.
"""


def database_time(value: object) -> datetime | None:
    """Return the time of the database's clock in a `too_late` answer; None for any other answer.

    It is the time at which the sequencer found that the deadline of the request had passed. The
    client uses it to correct its estimate of the database's clock.
    """
    match value:
        case {"outcome": "too_late", "database_time": str(said)}:
            try:
                found = datetime.fromisoformat(said)
            except ValueError:
                return None
            return found if found.tzinfo else None
        case _:
            return None


def as_request_answer(value: object) -> RequestAnswer:
    """Return a task's result as the typed answer to an agent's request for a user."""
    match _read(value):
        case (Assigned() | Empty() | Paused() | Unavailable() | TooLate() | Refused()) as answer:
            return answer
        case other:
            return _not_understood(other)


def as_finish_answer(value: object) -> FinishAnswer:
    """Return a task's result as the typed answer to a command about an assignment."""
    match _read(value):
        case (Finished() | Unavailable() | Refused()) as answer:
            return answer
        case other:
            return _not_understood(other)


def as_command_answer(value: object) -> CommandAnswer:
    """Return a task's result as the typed answer to an operator's command."""
    match _read(value):
        case (Done() | Unavailable() | Refused()) as answer:
            return answer
        case other:
            return _not_understood(other)


def as_state_answer(value: object) -> StateAnswer:
    """Return a task's result as the typed answer to a change of an agent's state."""
    match _read(value):
        case (Stated() | Unavailable() | Refused()) as answer:
            return answer
        case other:
            return _not_understood(other)


def as_heartbeat_answer(value: object) -> HeartbeatAnswer:
    """Return a task's result as the typed answer to a heartbeat."""
    match _read(value):
        case (Noted() | Unavailable() | Refused()) as answer:
            return answer
        case other:
            return _not_understood(other)


def no_answer(timeout: timedelta, *, waiting: int | None = None) -> Unavailable:
    """Return the answer `Unavailable` for a command that was not answered within `timeout`.

    `waiting`: how many messages the Celery queue had when the command was sent, if known.
    """
    reason = f"no answer within {timeout.total_seconds():g} s"
    if waiting is not None and waiting > 1:
        reason += f"; {waiting:,} messages waited in the queue"
    return Unavailable(retry_after=1.0, reason=reason)


def down(error: BrokerUnavailable) -> Unavailable:
    """Return the answer `Unavailable` to a caller, because the broker or result backend is down."""
    return Unavailable(retry_after=2.0, reason=error.general)


def _read(value: object) -> Answer | object:
    if isinstance(value, Unavailable):
        return value
    try:
        return from_json(value)
    except ValidationError:
        return value


def _not_understood(value: object) -> Unavailable:
    log.error("the workers answered what this version cannot read: a %s", type(value).__name__)
    return Unavailable(retry_after=1.0, reason="the workers answered what this version cannot read")
