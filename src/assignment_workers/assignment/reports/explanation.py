"""The data types of an explanation and of a funnel.

An explanation says why one user is or is not offered to agents. A funnel counts the users of a
dialer queue by the reason that holds them back.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from assignment_workers.assignment.answers import Held
from assignment_workers.assignment.suppressions import StandingSuppression
from assignment_workers.identity import UserId
from assignment_workers.schema.tables import Source


class RuleVerdict(BaseModel):
    """The verdict of one rule of a dialer queue on the user.

    `holds` is True if the user satisfies the rule. `kind` is the consequence for a user who breaks
    the rule: `converted` (the user has reached the queue's goal), `blocked` (until a fact about the
    user changes), or `resting` (until the time `until`).
    """

    rule: str
    holds: bool
    kind: str
    means: str
    until: datetime | None


class QueuePosition(BaseModel):
    """The user's position in a dialer queue's published generation.

    `ahead` is the number of claimable users with better ranks, counted up to 100,000
    (`AHEAD_AT_MOST`).
    """

    generation: int
    rank: int
    ahead: int
    state: str
    available_from: datetime | None
    reason: str | None


class QueueVerdict(BaseModel):
    """The verdict of one dialer queue on the user.

    `why` is `claimable` if an agent can get the user from the dialer queue now. Otherwise, `why` is
    the first obstacle, and the obstacles are checked in the following order. `held`: an agent has
    the user. The name of a rule: the user breaks this rule. `paused`: an operator paused the dialer
    queue. `never_built`: no generation (build) of the dialer queue is published.
    `not_in_generation`: the user is not in the published generation. `drained`: the user was
    removed from the published generation, because an operator drained the dialer queue.
    `taken_out`: the user was removed from it for another reason. `waiting`: the user has to wait
    for a while, for example after a skip.

    `free_at` is the time at which the obstacle ends without intervention; null: no such time is
    known. `in_force` describes the calling rules that apply, such as calling hours.
    """

    queue: str
    why: str
    means: str
    free_at: datetime | None
    rules: list[RuleVerdict]
    place: QueuePosition | None
    in_force: str


class PromiseFound(BaseModel):
    """A pending callback or a pending missed call of the user.

    `why` is `due` if an agent can get the user for this callback or missed call now. Otherwise,
    `why` is the first obstacle, and the obstacles are checked in the following order. `held`: an
    agent has the user. `not_due`: the time `due_at` has not come yet. `postponed`: the callback or
    missed call was postponed to a later time. `put_off`: the user was skipped or deferred, and has
    to wait. `followed_up`: another record of the same missed call was followed up already. The name
    of a rule: the user breaks this rule. `paused`: an operator paused the dialer queue `queue`.

    `queue` is the dialer queue to which the user belongs by the CRM's facts; null: to none.
    `kept_for` is the only agent who may get the user, until the duration in the setting
    `callback_preferred` has passed since `due_at`. Null: any agent may get the user.
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
    """A recorded change that concerns the user, such as an assignment or its end."""

    at: datetime
    kind: str
    agent_id: int | None
    queue: str | None
    details: dict[str, Any]


class Explanation(BaseModel):
    """The explanation why a user is or is not offered to agents at the time `at`.

    `offered` is True if an agent could get the user now: from a dialer queue, for a callback or for
    a missed call. `due` lists the user's pending callbacks first, then the pending missed calls.
    Agents get the users of due callbacks and missed calls before the users of dialer queues.
    `events` lists the newest ten events of the user (`EVENTS`), the newest first.
    `settings_version` is the version of the operational settings in force; None: the settings of
    the environment are in force.
    """

    at: datetime
    user_id: UserId
    offered: bool
    hold: Held | None
    facts: Facts | None
    due: list[PromiseFound]
    queues: list[QueueVerdict]
    not_for: list[NotFor]
    suppressions: list[StandingSuppression] = []
    """The suppressions of the user that were not lifted, including closures by agents.

    Suppressions of the user's phone number are not among them.
    """
    events: list[UserEvent]
    settings_version: int | None = None


class Step(BaseModel):
    """One reason for which users of a dialer queue are not claimable, and the number of such users.

    The steps of a funnel have a fixed order: first the rules in the order of the dialer queue, then
    `held`, `waiting`, `drained`, `taken_out` and `not_in_generation`. A reason that holds no user
    back is left out. `left` is the number of users who count neither for this reason nor for the
    reason of an earlier step. `next_free_at` is the earliest time at which the reason ends without
    intervention for one of the users; None: no such time is known.
    """

    why: str
    means: str
    users: int
    left: int
    next_free_at: datetime | None


class Funnel(BaseModel):
    """The users of a dialer queue at the time `at`, counted by the reason that holds them back.

    Each user counts once, even if several reasons hold the user back. A user whom an agent holds
    counts as `held`. Any other user who breaks a rule counts for the first broken rule, in the
    order of the dialer queue's rules. A user who breaks no rule counts by the position in the
    published generation: `not_in_generation` (no position), `drained`, `taken_out`, `waiting` or
    `claimable`. The claimable users, whom no reason holds back, are handed out unless the dialer
    queue is paused. If `complete` is False, only the 200,000 users with the best scores were judged
    (`EXPLAINED_AT_MOST`). `in_force` describes the calling rules that apply, such as calling hours.
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
    in_force: str
