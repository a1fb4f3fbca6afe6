"""Suppressions: users and phone numbers that are not to be offered, whatever the CRM says.

Each is a row with who made it and why; lifting it is recorded too. A hold that stands goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Text,
    any_,
    bindparam,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from assignment_workers.assignment.answers import Code, Done, Held, Refused
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.policy.rules import PHONE_END, UNCLEAR
from assignment_workers.schema.base import Instant, word
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.tables import Event, Suppression, SuppressionKind

COUNTED = timedelta(days=1)
"""How far back a user's failures count towards their quarantine."""
LISTED_AT_MOST = 1_000
COUNTED_AT_MOST = 10_000


class StandingSuppression(BaseModel):
    """A suppression that stands: on a user, or on whoever has this phone number."""

    id: int
    kind: str
    user_id: int | None
    phone: str | None
    queue: str | None
    """Of one that is `closed`: the dialer queue."""
    reason: str
    since: datetime
    by: str


_shown = select(*(getattr(Suppression, name) for name in StandingSuppression.model_fields))


def suppressions(
    connection: Connection, kind: SuppressionKind, *, limit: int = LISTED_AT_MOST
) -> list[StandingSuppression]:
    """The suppressions of this kind that stand, the newest first: at most `limit`.

    Cost: they are found from the newest on; suppressions that were lifted since are passed over.
    """
    rows = connection.execute(
        _shown.where(Suppression.kind == kind, Suppression.lifted_at.is_(None))
        .order_by(Suppression.id.desc())
        .limit(limit)
    ).mappings()
    return [StandingSuppression(**row) for row in rows]


def suppressions_of(connection: Connection, user: int) -> list[StandingSuppression]:
    """The suppressions that stand on this user, without those on their phone number."""
    rows = connection.execute(
        _shown.where(Suppression.user_id == user, Suppression.lifted_at.is_(None))
    ).mappings()
    return [StandingSuppression(**row) for row in rows]


def count(connection: Connection, kind: SuppressionKind) -> int:
    """How many suppressions of this kind stand: counted to `COUNTED_AT_MOST`."""
    some = (
        select(Suppression.id)
        .where(Suppression.kind == kind, Suppression.lifted_at.is_(None))
        .limit(COUNTED_AT_MOST)
    ).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def do_not_contact(
    turn: Turn, *, user: int | None = None, phone: str | None = None, reason: str, by: str
) -> Done | Refused:
    """From this commit on the user, or whoever has this phone number, is offered to nobody.

    Saying it again changes nothing. Refused: neither or both, and a number of fewer than
    `PHONE_END` digits.
    """
    if wrong := _unfit(user, phone):
        return wrong
    if turn.connection.execute(_STANDS, _whom(SuppressionKind.DO_NOT_CONTACT, user, phone)).first():
        return Done(replayed=True)
    turn.connection.execute(
        insert(Suppression).values(
            kind=SuppressionKind.DO_NOT_CONTACT,
            user_id=user,
            phone=phone,
            phone_end=_end(phone),
            reason=reason,
            since=turn.now,
            by=by,
        )
    )
    details = {
        "kind": SuppressionKind.DO_NOT_CONTACT.value,
        "reason": reason,
        "by": by,
        "phone": phone,
    }
    turn.record({"kind": EventKind.SUPPRESSED, "user_id": user, "details": details})
    return Done()


def lift(
    turn: Turn,
    kind: SuppressionKind,
    *,
    user: int | None = None,
    phone: str | None = None,
    queue: str | None = None,
    by: str,
    why: str,
) -> Done | Refused:
    """The suppression of this kind stands no more; the next build has the user again.

    Refused: there is none, what `do_not_contact` refuses, and one that is `closed` without its
    dialer queue.
    """
    if wrong := _unfit(user, phone):
        return wrong
    if (kind is SuppressionKind.CLOSED) != (queue is not None):
        needs = "needs" if queue is None else "takes no"
        return Refused(
            code=Code.MALFORMED, reason=f"a suppression that is {kind} {needs} dialer queue"
        )
    given = {"at": turn.now, "by_whom": by, "why": why}
    if not turn.connection.execute(_LIFT, _whom(kind, user, phone, queue) | given).rowcount:
        whom = f"user {user}" if user is not None else f"phone number {phone}"
        place = f" in {queue}" if queue is not None else ""
        return Refused(code=Code.NOT_SUPPRESSED, reason=f"no {kind.value} stands for {whom}{place}")
    details = {"kind": kind.value, "by": by, "why": why, "phone": phone}
    turn.record(
        {"kind": EventKind.SUPPRESSION_LIFTED, "user_id": user, "queue": queue, "details": details}
    )
    return Done()


def subject(
    kind: SuppressionKind,
    *,
    user: int | None = None,
    phone: str | None = None,
    queue: str | None = None,
) -> str:
    """Name the state that suppressing and lifting set, the same for every form of a number."""
    whom = f"user {user}" if phone is None else f"phone number ending in {_end(phone)}"
    place = "" if queue is None else f" in {queue}"
    return f"{kind.value} suppression of {whom}{place}"


def closing(turn: Turn, hold: Held, why: str) -> dict[str, Any]:
    """A row for `CLOSE`: the dialer queue of this hold is closed for its user."""
    return {
        "kind": SuppressionKind.CLOSED,
        "user_id": hold.user_id,
        "queue": hold.queue,
        "reason": why,
        "since": turn.now,
        "by": f"agent {hold.agent_id}",
    }


CLOSE = insert_rows(
    Suppression,
    Suppression.kind,
    Suppression.user_id,
    Suppression.queue,
    Suppression.reason,
    Suppression.since,
    Suppression.by,
    parameter="suppressions",
).on_conflict_do_nothing()


def quarantine(turn: Turn, failed: Collection[int], *, after: int) -> None:
    """Set aside those of these users who have now failed `after` times within `COUNTED`.

    `failed`: users just taken out, each for an unclear rule; whichever it was the other times
    counts as well. Failures before an operator's release do not. Cost: that of the events of these
    users.
    """
    if not failed:
        return
    given = {
        "users": list(failed),
        "rules": sorted(UNCLEAR),
        "since": turn.now - COUNTED,
        "now": turn.now,
        "times": after,
    }
    for user, reason in turn.connection.execute(_QUARANTINE, given).all():
        details = {"kind": SuppressionKind.QUARANTINE.value, "reason": reason, "by": "claim"}
        turn.record({"kind": EventKind.SUPPRESSED, "user_id": user, "details": details})


def _unfit(user: int | None, phone: str | None) -> Refused | None:
    if (user is None) == (phone is None):
        return Refused(code=Code.MALFORMED, reason="a user or a phone number: one of the two")
    if phone is not None and len(_digits(phone)) < PHONE_END:
        return Refused(
            code=Code.MALFORMED, reason=f"phone {phone!r}: a number of {PHONE_END} digits or more"
        )
    return None


def _digits(phone: str) -> str:
    return re.sub(r"[^0-9]", "", phone)


def _whom(
    kind: SuppressionKind, user: int | None, phone: str | None, queue: str | None = None
) -> dict[str, Any]:
    return {
        "whose_kind": kind.value,
        "whose_user": user,
        "whose_phone": _end(phone),
        "whose_queue": queue,
    }


def _end(phone: str | None) -> str | None:
    return None if phone is None else _digits(phone)[-PHONE_END:]


_standing = (
    Suppression.lifted_at.is_(None),
    Suppression.kind == bindparam("whose_kind"),
    Suppression.user_id.is_not_distinct_from(bindparam("whose_user", type_=BigInteger)),
    Suppression.phone_end.is_not_distinct_from(bindparam("whose_phone", type_=Text)),
    Suppression.queue.is_not_distinct_from(bindparam("whose_queue", type_=Text)),
)
_STANDS = select(Suppression.id).where(*_standing)
_LIFT = (
    update(Suppression)
    .where(*_standing)
    .values(
        lifted_at=bindparam("at", type_=Instant),
        lifted_by=bindparam("by_whom"),
        lifted_why=bindparam("why"),
    )
)

_rule = Event.details["reason"].as_string()
_released = (
    select(func.max(Suppression.lifted_at))
    .where(
        Suppression.user_id == Event.user_id, Suppression.kind == word(SuppressionKind.QUARANTINE)
    )
    .correlate(Event)
    .scalar_subquery()
)
_failures = (
    select(
        word(SuppressionKind.QUARANTINE).label("kind"),
        Event.user_id,
        func.concat(func.count(), " times ", func.max(_rule)).label("reason"),
        bindparam("now", type_=Instant).label("since"),
        literal("claim", Text()).label("by"),
    )
    .where(
        Event.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
        Event.kind == word(EventKind.TAKEN_OUT),
        Event.at > bindparam("since", type_=Instant),
        Event.at > func.coalesce(_released, literal("-infinity", Text()).cast(Instant)),
        _rule == any_(bindparam("rules", type_=ARRAY(Text))),
    )
    .group_by(Event.user_id)
    .having(func.count() >= bindparam("times", type_=BigInteger))
)
_QUARANTINE = (
    upsert(Suppression)
    .from_select(["kind", "user_id", "reason", "since", "by"], _failures)
    .on_conflict_do_nothing()
    .returning(Suppression.user_id, Suppression.reason)
)
