"""What an explanation and a funnel say."""

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
    """One rule of a dialer queue, and whether it holds for the user.

    `kind` says what it means when it does not: converted, blocked, or resting until `until`.
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
    """What one dialer queue makes of the user.

    `why`: `claimable`, or what stands in the way first: `held`, the name of a rule, `paused`,
    `never_built`, `waiting`, `taken_out` or `not_in_generation`. `free_at`: when that ends by
    itself, where it is known.
    """

    queue: str
    why: str
    means: str
    free_at: datetime | None
    rules: list[RuleVerdict]
    place: QueuePosition | None


class PromiseFound(BaseModel):
    """A callback or missed call of the user that is pending.

    `why`: `due`, or what stands in the way first: `held`, `not_due`, `postponed`, `put_off`,
    `paused` or the name of a rule. `queue`: where they belong by their facts, if anywhere.
    `kept_for`: the agent who alone may have them for `callback_preferred` from `due_at` on.
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
    """What the user's score row says; times are UTC."""

    queue: str | None
    score: int
    attempts: int
    last_outcome: str | None
    last_call_at: datetime | None
    next_call_after: datetime | None


class NotFor(BaseModel):
    """An agent who is not offered the user, whom they skipped, before `until`."""

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
    """Where a user stands at `at`. `offered`: some source would hand them out now.

    `due`: their callbacks, then their missed calls, which come before every dialer queue. `events`:
    the latest `EVENTS`, the last first.
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
    """What holds some users of the pool back, and how many are left after it.

    `next_free_at`: when the first of them is free of it by itself, where that is known.
    """

    why: str
    means: str
    users: int
    left: int
    next_free_at: datetime | None


class Funnel(BaseModel):
    """From every user of the pool to the claimable ones, at `at`, each user counted once.

    `complete` False: the pool is larger, and these are its first `EXPLAINED_AT_MOST` by score.
    `claimable` would be handed out if the dialer queue is not paused.
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
