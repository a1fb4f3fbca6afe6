"""Missed calls: inbound calls that nobody took. Each gets one follow-up, or waits for an operator.

A missed call stays pending while an agent holds its user. Therefore, the missed call is due again
as soon as the assignment is released, or expires because its lease has ended (hazard C12 in
docs/hazards.md). After a skip or a deferral, the missed call is due again once the user's wait is
over. If the agent completes a call, or closes the dialer queue for the user, the missed call is
marked as followed up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import aliased

from assignment_workers.assignment import phones
from assignment_workers.assignment.callbacks.due import DueKind, Found, judged, limited
from assignment_workers.assignment.calling import numbers_of
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.mirror import freshen
from assignment_workers.assignment.jobs import Counts, Work
from assignment_workers.assignment.transaction import RECORD, EventKind, FencedTransaction
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.queues import Policy, is_calling_rule, off_for_good
from assignment_workers.schema.base import Instant, NaiveInstant, sql_text
from assignment_workers.schema.bulk import rows
from assignment_workers.schema.dialer import MissedCall
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Source
from assignment_workers.settings import Settings

PENDING = sql_text("pending")
FOLLOWED_UP = "followed_up"
CANCELLED = "cancelled"
FOR_OPERATOR = "for_operator"

MATCHED_AT_MOST = 1_000
"""Maximum number of missed calls for which one run of `match` looks up the user."""


def match(work: Work, dialer: Dialer, crm: Crm | None, settings: Settings) -> Counts:
    """Find the user of each missed call that names no user, by the caller's phone number.

    One run handles at most 1,000 missed calls (`MATCHED_AT_MOST`), the earliest first. With an
    external CRM, our copy of the CRM (the mirror) is first updated if it is too old. Next, the
    users' phone numbers that have changed in the CRM are parsed. Then the caller's number is
    compared with the users' numbers, all in E.164 (the international form). So the dialer and the
    CRM may write a number in different forms.

    A missed call is left to an operator in three cases. Its text cannot be read as exactly one
    phone number. No user has the number. Or several users have the number. The reason: nobody is
    called on a guess (hazards C10 and D15 in docs/hazards.md).

    Returns the counts `matched` and `for_operator`. Raises `CrmUnavailable` if the mirror has to be
    updated and cannot be. Cost, if there are missed calls to match: that of parsing changed numbers
    (`phones.read`) and of updating the mirror, and lookups in the index on numbers.
    """
    waiting = {row.id: row.phone_number for row in work.connection.execute(_UNMATCHED)}
    if not waiting:
        return {"matched": 0, "for_operator": 0}
    freshen(work.connection.engine, dialer, crm)
    how = numbers_of(settings)
    phones.read(work, how)
    numbers = {call: how.reader.read(said).e164 for call, said in waiting.items()}
    users = phones.owners(work.connection, [one for each in numbers.values() for one in each])
    found = []
    for call, has in numbers.items():
        owners = users.get(has[0], []) if len(has) == 1 else []
        user = owners[0] if len(owners) == 1 else None
        found.append({"id": call, "user_id": user, "status": "pending" if user else FOR_OPERATOR})
    work.connection.execute(_MATCH, {"found": found, "now": work.now})
    unknown = [
        {**_event(each["id"], None, FOR_OPERATOR, "unknown_caller"), "at": work.now, "term": None}
        for each in found
        if each["status"] == FOR_OPERATOR
    ]
    if unknown:
        work.connection.execute(RECORD, {"events": unknown})
    matched = sum(each["user_id"] is not None for each in found)
    return {"matched": matched, "for_operator": len(found) - matched}


def follow_up(
    transaction: FencedTransaction, answered: Iterable[int], called: Iterable[UUID]
) -> list[dict[str, Any]]:
    """Mark missed calls as followed up; return the events, for the caller to record.

    `answered`: users who answered a call of any kind; all their missed calls are marked (hazard C11
    in docs/hazards.md). `called`: missed calls for which an agent completed a call to the user, or
    closed the dialer queue for the user; these missed calls are marked. A missed call in `called`
    is marked even if the user did not answer the agent's call: the outcome of that
    call decides when the user may be called again.
    """
    parameters = {"users": list(answered), "calls": list(called), "now": transaction.now}
    done = transaction.connection.execute(_FOLLOW_UP, parameters)
    return [_event(row.id, row.user_id, FOLLOWED_UP, None) for row in done]


def wait(transaction: FencedTransaction, skipped: Sequence[dict[str, Any]]) -> None:
    """Postpone missed calls, for example because their users were skipped.

    `skipped`: for each missed call a mapping with its `id` and with `until`, the time before which
    nobody calls back.
    """
    transaction.connection.execute(_WAIT, {"calls": list(skipped), "now": transaction.now})


def _put_aside(transaction: FencedTransaction, settings: Settings, unfit: Sequence[Found]) -> None:
    """Cancel, postpone, or leave to an operator the missed calls of users who must not be called.

    `unfit`: the missed calls, each with the name of the rule that forbids the call. Missed calls of
    users who opted out or converted are cancelled. A second report of a call that was followed up
    already is cancelled too. If a calling rule, such as the calling hours, forbids the call for a
    time, the missed call is postponed. All other missed calls are left to an operator, because the
    user called and expects an answer.
    """
    until = transaction.now + settings.callback_retry
    if late := [{"id": row.id, "until": until} for row in unfit if is_calling_rule(row.broken)]:
        wait(transaction, late)
    unfit = [row for row in unfit if not is_calling_rule(row.broken)]
    policies = transaction.dialer.policies.values()
    ended = [
        {
            "id": row.id,
            "status": CANCELLED
            if row.broken == FOLLOWED_UP or off_for_good(row.broken, policies)
            else FOR_OPERATOR,
        }
        for row in unfit
    ]
    transaction.connection.execute(_END, {"calls": ended, "now": transaction.now})
    transaction.record(
        *(
            _event(row.id, row.user_id, each["status"], row.broken)
            for row, each in zip(unfit, ended, strict=True)
        )
    )


def _event(call: UUID, user: int | None, status: str, reason: str | None) -> dict[str, Any]:
    details = {"missed_call_id": call, "reason": reason or status}
    return {"kind": _KINDS[status], "user_id": user, "details": details}


_KINDS = {
    FOLLOWED_UP: EventKind.MISSED_CALL_FOLLOWED_UP,
    CANCELLED: EventKind.MISSED_CALL_CANCELLED,
    FOR_OPERATOR: EventKind.MISSED_CALL_FOR_OPERATOR,
}

_NOW = bindparam("now", type_=NaiveInstant)

_IS_DUE = and_(
    MissedCall.status == PENDING,
    MissedCall.user_id.is_not(None),
    MissedCall.missed_at <= _NOW,
    or_(MissedCall.available_from.is_(None), MissedCall.available_from <= _NOW),
)
ANY_DUE = exists(select(1).select_from(MissedCall).where(_IS_DUE))
"""SQL condition: at least one missed call is due. Cost: one lookup in ix_missed_calls_pending."""


_HEAD = (
    select(
        MissedCall.id,
        MissedCall.user_id,
        MissedCall.missed_at.label("due_at"),
        MissedCall.id.label("key"),
        MissedCall.twilio_call_sid,
        cast(null(), Text).label("queue_type"),
        cast(null(), BigInteger).label("preferred_agent_id"),
    )
    .where(
        _IS_DUE,
        tuple_(MissedCall.missed_at, MissedCall.id)
        > tuple_(bindparam("after_at", type_=NaiveInstant), bindparam("after_key", type_=Uuid())),
    )
    .order_by(MissedCall.missed_at, MissedCall.id)
)


@expression_cache
def _due(policies: tuple[Policy, ...]) -> Select[*tuple[Any, ...]]:
    """Return the query for the next due missed calls, with each user judged by `policies`.

    `policies`: the rules of each dialer queue. The query reads the index ix_missed_calls_pending in
    order, at most `due.AT_A_TIME` rows.
    """
    head = limited(_HEAD)
    return judged(head, policies, broken=_repeated(head))


@expression_cache
def of_user(policies: tuple[Policy, ...]) -> Select[*tuple[Any, ...]]:
    """Return the query for the pending missed calls of the user in the SQL parameter `user`.

    The user is judged by `policies`, the rules of each dialer queue, as if the missed calls were
    due now.
    """
    head = (
        select(
            MissedCall.id,
            MissedCall.user_id,
            MissedCall.missed_at.label("due_at"),
            MissedCall.id.label("key"),
            MissedCall.available_from,
            MissedCall.twilio_call_sid,
            cast(null(), Text).label("queue_type"),
            cast(null(), BigInteger).label("preferred_agent_id"),
        )
        .where(
            MissedCall.user_id == bindparam("user", type_=BigInteger),
            MissedCall.status == PENDING,
        )
        .cte("head")
    )
    return judged(head, policies, broken=_repeated(head))


def _repeated(head: CTE) -> ColumnElement[str | None]:
    """Return a SQL expression: `followed_up` if the call was followed up already, or else null.

    The dialer's webhook may report one call twice; then the call has two rows (hazard C11 in
    docs/hazards.md). The call was followed up already if the other row has the status
    `followed_up`.
    """
    again = aliased(MissedCall, name="again")
    repeated = exists(
        select(1)
        .select_from(again)
        .where(
            again.twilio_call_sid == head.c.twilio_call_sid, again.status == sql_text(FOLLOWED_UP)
        )
    )
    return case((repeated, sql_text(FOLLOWED_UP)))


MISSED_CALLS = DueKind(Source.MISSED_CALL, _HEAD, _due, UUID(int=0), _put_aside)

_UNMATCHED = (
    select(MissedCall.id, MissedCall.phone_number)
    .where(MissedCall.status == PENDING, MissedCall.user_id.is_(None))
    .order_by(MissedCall.missed_at, MissedCall.id)
    .limit(MATCHED_AT_MOST)
)
_found = rows("found", id=Uuid(), user_id=BigInteger(), status=Text())
_MATCH = (
    update(MissedCall)
    .where(MissedCall.id == _found.c.id, MissedCall.status == PENDING, MissedCall.user_id.is_(None))
    .values(user_id=_found.c.user_id, status=_found.c.status, updated_at=_NOW)
)

_FOLLOW_UP = (
    update(MissedCall)
    .where(
        MissedCall.status == PENDING,
        or_(
            and_(
                MissedCall.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
                MissedCall.missed_at <= _NOW,
            ),
            MissedCall.id == any_(bindparam("calls", type_=ARRAY(Uuid))),
        ),
    )
    .values(status=sql_text(FOLLOWED_UP), updated_at=_NOW)
    .returning(MissedCall.id, MissedCall.user_id)
)

_calls = rows("calls", id=Uuid(), status=Text(), until=Instant)
_END = (
    update(MissedCall)
    .where(MissedCall.id == _calls.c.id, MissedCall.status == PENDING)
    .values(status=_calls.c.status, updated_at=_NOW)
)
_WAIT = (
    update(MissedCall)
    .where(MissedCall.id == _calls.c.id, MissedCall.status == PENDING)
    .values(available_from=func.timezone("UTC", _calls.c.until), updated_at=_NOW)
)
