"""The data types of an explanation and of a funnel."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from assignment_workers.assignment.answers import Held
from assignment_workers.schema.tables import (
    Source,
)


class RuleVerdict(BaseModel):
    """One rule of a dialer queue; `holds` is True if the rule holds for the user.

    `kind` is the consequence of a broken rule: converted, blocked, or resting until `until`.
    """

    rule: str
    holds: bool
    kind: str
    means: str
    until: datetime | None


class QueuePosition(BaseModel):
    """The user's entry in the published generation. `ahead` stops at `AHEAD_AT_MOST`."""

    generation: int
    rank: int
    ahead: int
    state: str
    available_from: datetime | None
    reason: str | None


class QueueVerdict(BaseModel):
    """The verdict of one dialer queue on the user.

    `why` is `claimable`, or the first obstacle: `held`, the name of a rule, `paused`,
    `never_built`, `waiting`, `taken_out` or `not_in_generation`. `free_at` is the time at which the
    obstacle ends without intervention, if known.
    """

    queue: str
    why: str
    means: str
    free_at: datetime | None
    rules: list[RuleVerdict]
    place: QueuePosition | None


class PromiseFound(BaseModel):
    """A callback or missed call of the user that is pending.

    `why` is `due`, or the first obstacle: `held`, `not_due`, `postponed`, `put_off`, `paused` or
    the name of a rule. `queue` is the dialer queue of the user by their facts, if any. `kept_for`
    is the only agent who may have the user for `callback_preferred` from `due_at` on.
    """

    source: Source
    id: UUID
    due_at: datetime
    queue: str | None
    why: str
    means: str
    free_at: datetime | None
    kept_for: int | None


class Facts(BaseModel):
    """The values of the user's score row; times are UTC."""

    queue: str | None
    score: int
    attempts: int
    last_outcome: str | None
    last_call_at: datetime | None
    next_call_after: datetime | None


class NotFor(BaseModel):
    """An agent who skipped the user and is not offered the user again before `until`."""

    agent_id: int
    until: datetime


class UserEvent(BaseModel):
    """An event of the user."""

    at: datetime
    kind: str
    agent_id: int | None
    queue: str | None
    details: dict[str, Any]


class Explanation(BaseModel):
    """The position of a user at `at`. `offered` is True if some source would hand them out now.

    `due` lists their callbacks, then their missed calls, which come before every dialer queue.
    `events` lists the latest `EVENTS`, the last first.
    """

    at: datetime
    user_id: int
    offered: bool
    hold: Held | None
    facts: Facts | None
    due: list[PromiseFound]
    queues: list[QueueVerdict]
    not_for: list[NotFor]
    events: list[UserEvent]


class Step(BaseModel):
    """One reason that holds users of the pool back; `left` is the number of users after this step.

    `next_free_at` is the time at which the first of them is free again without intervention, if
    known.
    """

    why: str
    means: str
    users: int
    left: int
    next_free_at: datetime | None


class Funnel(BaseModel):
    """The steps from the users of the pool to the claimable ones, at `at`; each user counts once.

    If `complete` is False, the pool is larger, and these are its first `EXPLAINED_AT_MOST` users by
    score. The `claimable` users would be handed out if the dialer queue is not paused.
    """

    at: datetime
    queue: str
    paused: bool
    generation: int | None
    published_at: datetime | None
    complete: bool
    pool: int
    steps: list[Step]
    claimable: int
