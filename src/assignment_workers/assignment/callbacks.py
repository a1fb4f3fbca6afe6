"""Callbacks: promises to call a user at a time. Each is kept, or ends for a reason that is told.

A callback stays pending while its user is held, so whatever ends the hold without a call (release,
a lapsed lease, a lost sequencer) gives it back by itself (hazard C2). It ends as kept or cancelled
in the transaction that completes a call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Row,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    update,
)

from assignment_workers.assignment.answers import Held
from assignment_workers.assignment.holds import ACTIVE
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.policy.outcomes import Outcome
from assignment_workers.policy.queues import Policy, off_for_good, place_of
from assignment_workers.policy.rules import ACTIVE as IS_ACTIVE
from assignment_workers.schema.base import Instant, NaiveInstant, word
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import Agent, Callback, UserCallScore
from assignment_workers.schema.tables import Assignment, Source
from assignment_workers.settings import Settings

AT_A_TIME = 64
"""Callbacks that one read takes."""

GIVEN_UP_AFTER = timedelta(days=1)
"""A callback whose user is disabled or the like is tried again for so long, then cancelled."""

PENDING = word("pending")


@dataclass(frozen=True)
class DueCallback:
    """A callback that may be handed out now, from the dialer queue where its user belongs."""

    source_id: UUID
    user_id: int
    queue: str
    scheduled_for: datetime
    kept_for: int | None
    """The agent who may have it for now; None: anybody."""
    score: int

    rank: ClassVar = 0
    source: ClassVar = Source.CALLBACK
    reason: ClassVar = "callback"

    @property
    def details(self) -> dict[str, Any]:
        """What the event of the grant tells of it besides."""
        return {
            "source": Source.CALLBACK,
            "source_id": self.source_id,
            "scheduled_for": self.scheduled_for,
            "kept_for": self.kept_for,
        }


@dataclass
class Due:
    """The callbacks that are due, the oldest promise first, read only as far as somebody asks."""

    turn: Turn
    policies: Mapping[str, Policy]
    settings: Settings
    taken: set[int]
    """Users handed out in this transaction: shared with the heads of the dialer queues."""
    _found: list[DueCallback] = field(default_factory=list)
    _unfit: list[dict[str, Any]] = field(default_factory=list)
    _after: tuple[datetime, int] | None = None
    _exhausted: bool = False

    def take(
        self, agent: int, queues: Collection[str], excluded: Collection[int]
    ) -> DueCallback | None:
        """The oldest promise that this agent may keep, once only; None where there is none.

        Its user belongs to one of these dialer queues by their facts and is not in `excluded`.
        """
        position = 0
        while True:
            while position < len(self._found):
                found = self._found[position]
                if (
                    found.queue in queues
                    and found.kept_for in (None, agent)
                    and found.user_id not in excluded
                    and found.user_id not in self.taken
                ):
                    self.taken.add(found.user_id)
                    return self._found.pop(position)
                position += 1
            if self._exhausted:
                return None
            self._read()

    def put_aside(self) -> None:
        """Postpone or cancel those whose users may not be called, so that nobody meets them again.

        Who opted out or converted is owed no call any more. Who is disabled, inactive or out of the
        CRM may come back: their promise is tried again, for a day after its time.
        """
        if not self._unfit:
            return
        self.turn.connection.execute(_BECOME, {"callbacks": self._unfit, "now": self.turn.now})
        self.turn.record(*(_told(row, row["status"]) for row in self._unfit))
        self._unfit.clear()

    def _read(self) -> None:
        now = self.turn.now
        at, user = self._after or (now - timedelta(days=36_500), 0)
        found = self.turn.connection.execute(
            _judged(tuple(self.policies.values())),
            {"now": now, "after_at": at, "after_user": user},
        ).all()
        for row in found:
            self._after = (row.scheduled_for, row.user_id)
            if row.held:
                continue
            if row.broken is not None:
                self._unfit.append(self._aside(row))
                continue
            lately = now < row.scheduled_for + self.settings.callback_preferred
            kept_for = row.preferred_agent_id if lately and row.is_there else None
            self._found.append(
                DueCallback(row.id, row.user_id, row.place, row.scheduled_for, kept_for, row.score)
            )
        self._exhausted = len(found) < AT_A_TIME

    def _aside(self, row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
        now = self.turn.now
        ended = off_for_good(row.broken) or now >= row.scheduled_for + GIVEN_UP_AFTER
        return {
            "id": row.id,
            "user_id": row.user_id,
            "queue": row.queue_type,
            "status": "cancelled" if ended else "pending",
            "until": None if ended else now + self.settings.callback_retry,
            "reason": row.broken,
            "called": False,
        }


def after_move(
    hold: Held, callback: UUID, *, outcome: Outcome | None, until: datetime | None
) -> dict[str, Any]:
    """What becomes of the callback that a hold was for, as a row for `settle`.

    `outcome` of its call; None: the user was skipped, and the callback waits `until` then. A call
    that nobody answered does not keep the promise (hazard C3).
    """
    row: dict[str, Any] = {
        "id": callback,
        "user_id": hold.user_id,
        "agent_id": hold.agent_id,
        "assignment_id": hold.id,
        "queue": hold.queue,
        "until": until,
        "called": outcome is not None,
    }
    if outcome is None:
        return row | {"status": "pending", "reason": "skipped"}
    if outcome.retried:
        return row | {"status": "pending", "reason": outcome.name, "again": True}
    kept = outcome.keeps
    return row | {"status": "completed" if kept else "cancelled", "reason": outcome.name}


def settle(turn: Turn, settled: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write what became of callbacks; returns the event of each, to be recorded by the caller.

    One that had its last attempt is cancelled, and its user goes back to the dialer queue with
    their history. One that somebody else has ended meanwhile stays as it is.
    """
    given = {"callbacks": list(settled), "now": turn.now}
    became = {row.id: row.status for row in turn.connection.execute(_BECOME, given)}
    return [_told(row, became.get(row["id"])) for row in settled]


def call_off(turn: Turn, users: Collection[int], reason: str) -> list[dict[str, Any]]:
    """Cancel what these users were promised; returns the events, to be recorded by the caller."""
    given = {"users": list(users), "now": turn.now}
    return [
        _told(
            {"id": row.id, "user_id": row.user_id, "queue": row.queue_type, "reason": reason},
            "cancelled",
        )
        for row in turn.connection.execute(_CALL_OFF, given)
    ]


def _told(row: Mapping[str, Any], status: str | None) -> dict[str, Any]:
    columns = {name: row[name] for name in ("agent_id", "assignment_id") if name in row}
    details = {"callback_id": row["id"], "reason": row["reason"]}
    if status is None:
        details["reason"] = "ended_elsewhere"
    elif status == "pending":
        details["until"] = row["until"]
    return {
        "kind": _KINDS[status],
        "queue": row["queue"],
        "user_id": row["user_id"],
        **columns,
        "details": details,
    }


_KINDS = {
    "pending": EventKind.CALLBACK_POSTPONED,
    "completed": EventKind.CALLBACK_KEPT,
    "cancelled": EventKind.CALLBACK_CANCELLED,
    None: EventKind.CALLBACK_CANCELLED,
}

_NOW = bindparam("now", type_=NaiveInstant)

ANY_DUE = exists(
    select(1)
    .select_from(Callback)
    .where(
        Callback.status == PENDING,
        Callback.scheduled_for <= _NOW,
        or_(Callback.available_from.is_(None), Callback.available_from <= _NOW),
    )
)
"""Whether any callback is due: one probe of ix_callbacks_pending, which ends at the first."""


@cache
def _judged(policies: tuple[Policy, ...]) -> Select[*tuple[Any, ...]]:
    """The next due callbacks, with where their users belong and what keeps them from a call.

    Index: ix_callbacks_pending, in order and no further than the limit, fenced as in the head.
    """
    head = (
        select(
            Callback.id,
            Callback.user_id,
            Callback.scheduled_for,
            Callback.queue_type,
            Callback.preferred_agent_id,
        )
        .where(
            Callback.status == PENDING,
            Callback.scheduled_for <= _NOW,
            or_(Callback.available_from.is_(None), Callback.available_from <= _NOW),
            tuple_(Callback.scheduled_for, Callback.user_id)
            > tuple_(
                bindparam("after_at", type_=NaiveInstant),
                bindparam("after_user", type_=BigInteger),
            ),
        )
        .order_by(Callback.scheduled_for, Callback.user_id)
        .limit(literal_column(str(AT_A_TIME)))
        .cte("head")
        .prefix_with("MATERIALIZED")
    )
    place = place_of(policies)
    out = case(
        *((head.c.queue_type == word(each.queue), each.out_of_place()) for each in policies),
        else_=policies[0].out_of_place(),
    )
    inactive = func.coalesce(IS_ACTIVE.holds, false()).is_(False)
    held = (
        select(1)
        .select_from(Assignment)
        .where(Assignment.user_id == head.c.user_id, Assignment.state == ACTIVE)
    )
    return (
        select(
            *head.c,
            place.label("place"),
            case((place.is_(None), out), (inactive, word("inactive")), else_=null()).label(
                "broken"
            ),
            exists(held).label("held"),
            func.coalesce(Agent.is_active, false()).label("is_there"),
            func.coalesce(UserCallScore.current_score, 0).label("score"),
        )
        .select_from(head)
        .outerjoin(UserCallScore, UserCallScore.user_id == head.c.user_id)
        .outerjoin(CrmUser, CrmUser.id == head.c.user_id)
        .outerjoin(Agent, Agent.id == head.c.preferred_agent_id)
        .order_by(head.c.scheduled_for, head.c.user_id)
    )


_given = rows(
    "callbacks",
    id=Uuid(),
    status=Text(),
    until=Instant,
    assignment_id=Uuid(),
    called=Boolean(),
    again=Boolean(),
)
_last = and_(_given.c.again, Callback.retry_count >= Callback.max_retries)
_status = case((_last, word("cancelled")), else_=_given.c.status)
_BECOME = (
    update(Callback)
    .where(Callback.id == _given.c.id, Callback.status == PENDING)
    .values(
        status=_status,
        available_from=case((_status == PENDING, func.timezone("UTC", _given.c.until))),
        retry_count=Callback.retry_count + case((and_(_given.c.again, ~_last), 1), else_=0),
        last_attempt_at=case((_given.c.called, _NOW), else_=Callback.last_attempt_at),
        completed_at=case((_status == word("completed"), _NOW)),
        completed_call_session_id=case((_status == word("completed"), _given.c.assignment_id)),
        updated_at=_NOW,
    )
    .returning(Callback.id, Callback.status)
)

_CALL_OFF = (
    update(Callback)
    .where(
        Callback.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
        Callback.status == PENDING,
    )
    .values(status=word("cancelled"), updated_at=_NOW)
    .returning(Callback.id, Callback.user_id, Callback.queue_type)
)
