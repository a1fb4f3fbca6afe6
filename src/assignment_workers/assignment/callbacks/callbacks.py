"""Callbacks: promises to call a user at a time. Each is kept, or ends for a recorded reason.

A callback stays pending while its user is held, so an assignment that ends without a call (a
release, a lapsed lease, a lost sequencer) leaves the callback due without a further step (hazard
C2 in docs/hazards.md). The transaction that completes a call also ends its callback as kept or
cancelled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)

from assignment_workers.assignment.answers import Held
from assignment_workers.assignment.callbacks.due import DueKind, Found, judged, limited
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.policy.outcomes import Outcome
from assignment_workers.policy.queues import Policy, is_calling_rule, off_for_good
from assignment_workers.schema.base import Instant, NaiveInstant, sql_text
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.dialer import Callback
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Source
from assignment_workers.settings import Settings

GIVEN_UP_AFTER = timedelta(days=1)
"""Time from a callback's due time to its cancellation, if the user must not be called.

Until then the callback is postponed again and again. If a calling rule, such as the calling hours,
forbids the call, there is no such limit, because the user can be called later.
"""

PENDING = sql_text("pending")


def after_move(
    hold: Held, callback: UUID, *, outcome: Outcome | None, until: datetime | None
) -> dict[str, Any]:
    """Return the values with which the function `settle` ends or postpones a callback.

    The result is one item of the parameter `settled` of that function. `callback`: the id of the
    callback for which the assignment `hold` was made. The assignment has just ended: by a call, a
    skip or a deferral. `outcome`: the outcome of the call; None: the user was skipped or deferred.
    `until`: the time to which the callback is postponed, if it stays pending. A call that nobody
    answered leaves the callback pending (hazard C3 in docs/hazards.md).
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


def settle(
    transaction: FencedTransaction, settled: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """End or postpone callbacks; return an event for each, for the caller to record.

    `settled`: the values for each callback, in the form that `after_move` returns. If a callback is
    to be tried again, but has had the retries that its column `max_retries` allows, it is
    cancelled, and the user returns to the dialer queue. If another program has ended a callback, so
    that it is not pending any more, the callback stays unchanged, and its event says so.
    """
    parameters = {"callbacks": list(settled), "now": transaction.now}
    became = {row.id: row.status for row in transaction.connection.execute(_BECOME, parameters)}
    return [_event(row, became.get(row["id"])) for row in settled]


def call_off(
    transaction: FencedTransaction, users: Collection[int], reason: str
) -> list[dict[str, Any]]:
    """Cancel the pending callbacks of these users; return the events, for the caller to record.

    `reason` is stored in each event.
    """
    parameters = {"users": list(users), "now": transaction.now}
    return [
        _event(
            {"id": row.id, "user_id": row.user_id, "queue": row.queue_type, "reason": reason},
            "cancelled",
        )
        for row in transaction.connection.execute(_CALL_OFF, parameters)
    ]


def _event(row: Mapping[str, Any], status: str | None) -> dict[str, Any]:
    columns = {name: row[name] for name in ("agent_id", "assignment_id") if name in row}
    details = {"callback_id": row["id"], "reason": row["reason"]}
    if status == "pending":
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
    None: EventKind.CALLBACK_ENDED_ELSEWHERE,
}

_NOW = bindparam("now", type_=NaiveInstant)

_IS_DUE = and_(
    Callback.status == PENDING,
    Callback.scheduled_for <= _NOW,
    or_(Callback.available_from.is_(None), Callback.available_from <= _NOW),
)
ANY_DUE = exists(select(1).select_from(Callback).where(_IS_DUE))
"""SQL condition: at least one callback is due. Cost: one lookup in ix_callbacks_pending."""


_HEAD = (
    select(
        Callback.id,
        Callback.user_id,
        Callback.scheduled_for.label("due_at"),
        Callback.user_id.label("key"),
        Callback.queue_type,
        Callback.preferred_agent_id,
    )
    .where(
        _IS_DUE,
        tuple_(Callback.scheduled_for, Callback.user_id)
        > tuple_(
            bindparam("after_at", type_=NaiveInstant), bindparam("after_key", type_=BigInteger)
        ),
    )
    .order_by(Callback.scheduled_for, Callback.user_id)
)


@expression_cache
def _due(policies: tuple[Policy, ...]) -> Select[*tuple[Any, ...]]:
    """Return the query for the next due callbacks, with each user judged by `policies`.

    `policies`: the rules of each dialer queue. The query reads the index ix_callbacks_pending in
    order, at most `due.AT_A_TIME` rows.
    """
    head = limited(_HEAD)
    return judged(head, policies)


@expression_cache
def of_user(policies: tuple[Policy, ...]) -> Select[*tuple[Any, ...]]:
    """Return the query for the pending callback of the user in the SQL parameter `user`.

    The user is judged by `policies`, the rules of each dialer queue, as if the callback was due
    now.
    """
    head = (
        select(
            Callback.id,
            Callback.user_id,
            Callback.scheduled_for.label("due_at"),
            Callback.user_id.label("key"),
            Callback.available_from,
            Callback.queue_type,
            Callback.preferred_agent_id,
        )
        .where(Callback.user_id == bindparam("user", type_=BigInteger), Callback.status == PENDING)
        .cte("head")
    )
    return judged(head, policies)


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
_status = case((_last, sql_text("cancelled")), else_=_given.c.status)
_BECOME = (
    update(Callback)
    .where(Callback.id == _given.c.id, Callback.status == PENDING)
    .values(
        status=_status,
        available_from=case((_status == PENDING, func.timezone("UTC", _given.c.until))),
        retry_count=Callback.retry_count + case((and_(_given.c.again, ~_last), 1), else_=0),
        last_attempt_at=case((_given.c.called, _NOW), else_=Callback.last_attempt_at),
        completed_at=case((_status == sql_text("completed"), _NOW)),
        completed_call_session_id=case((_status == sql_text("completed"), _given.c.assignment_id)),
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
    .values(status=sql_text("cancelled"), updated_at=_NOW)
    .returning(Callback.id, Callback.user_id, Callback.queue_type)
)


def _put_aside(transaction: FencedTransaction, settings: Settings, unfit: Sequence[Found]) -> None:
    """Cancel or postpone due callbacks of users who must not be called.

    `unfit`: the callbacks, each with the name of the rule that forbids the call. The rule decides
    what becomes of the callback:

    - If the user opted out or converted, the callback is cancelled.
    - If a calling rule, such as the calling hours, forbids the call, the callback is postponed,
      without a limit.
    - In all other cases (for example, the user is inactive or not in the CRM), the callback is
      postponed as long as less than `GIVEN_UP_AFTER` has passed since its due time. After that, it
      is cancelled.

    A postponed callback can be tried again once the time of the setting `callback_retry` has passed
    from now.
    """
    policies, settled = transaction.dialer.policies.values(), []
    for row in unfit:
        ended = off_for_good(row.broken, policies) or (
            not is_calling_rule(row.broken) and transaction.now >= row.due_at + GIVEN_UP_AFTER
        )
        settled.append(
            {
                "id": row.id,
                "user_id": row.user_id,
                "queue": row.queue_type,
                "status": "cancelled" if ended else "pending",
                "until": None if ended else transaction.now + settings.callback_retry,
                "reason": row.broken,
                "called": False,
            }
        )
    transaction.record(*settle(transaction, settled))


CALLBACKS = DueKind(Source.CALLBACK, _HEAD, _due, 0, _put_aside)
