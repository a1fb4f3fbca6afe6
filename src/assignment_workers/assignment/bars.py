"""Who is not to be offered whatever the CRM says: asked not to be called, or set aside.

A bar is a row of its own with who and why; lifting it is recorded too. A hold that stands goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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

from assignment_workers.assignment.answers import Code, Done, Refused
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.policy.rules import PHONE_END
from assignment_workers.schema.base import Instant, word
from assignment_workers.schema.tables import Bar, BarKind, Event

COUNTED = timedelta(days=1)
"""How far back a user's failures count towards their quarantine."""
LISTED_AT_MOST = 1_000
COUNTED_AT_MOST = 10_000


class BarShown(BaseModel):
    """A bar that stands: on a user, or on whoever has this phone number."""

    id: int
    kind: str
    user_id: int | None
    phone: str | None
    reason: str
    since: datetime
    by: str


_shown = select(*(getattr(Bar, name) for name in BarShown.model_fields))


def bars(connection: Connection, kind: BarKind, *, limit: int = LISTED_AT_MOST) -> list[BarShown]:
    """The bars of this kind that stand, the newest first: at most `limit`.

    Cost: they are found from the newest on; bars that were lifted since are passed over.
    """
    rows = connection.execute(
        _shown.where(Bar.kind == kind, Bar.lifted_at.is_(None)).order_by(Bar.id.desc()).limit(limit)
    ).mappings()
    return [BarShown(**row) for row in rows]


def bars_of(connection: Connection, user: int) -> list[BarShown]:
    """The bars that stand on this user, without those on their phone number."""
    rows = connection.execute(_shown.where(Bar.user_id == user, Bar.lifted_at.is_(None))).mappings()
    return [BarShown(**row) for row in rows]


def count(connection: Connection, kind: BarKind) -> int:
    """How many bars of this kind stand: counted to `COUNTED_AT_MOST`."""
    some = (
        select(Bar.id).where(Bar.kind == kind, Bar.lifted_at.is_(None)).limit(COUNTED_AT_MOST)
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
    if turn.connection.execute(_STANDS, _whom(BarKind.DO_NOT_CONTACT, user, phone)).first():
        return Done(replayed=True)
    turn.connection.execute(
        insert(Bar).values(
            kind=BarKind.DO_NOT_CONTACT,
            user_id=user,
            phone=phone,
            phone_end=_end(phone),
            reason=reason,
            since=turn.now,
            by=by,
        )
    )
    details = {"kind": BarKind.DO_NOT_CONTACT.value, "reason": reason, "by": by, "phone": phone}
    turn.record({"kind": EventKind.BARRED, "user_id": user, "details": details})
    return Done()


def lift(
    turn: Turn,
    kind: BarKind,
    *,
    user: int | None = None,
    phone: str | None = None,
    by: str,
    why: str,
) -> Done | Refused:
    """The bar of this kind stands no more; the next build has the user again.

    Refused: there is none, and what `do_not_contact` refuses.
    """
    if wrong := _unfit(user, phone):
        return wrong
    given = {"at": turn.now, "by_whom": by, "why": why}
    if not turn.connection.execute(_LIFT, _whom(kind, user, phone) | given).rowcount:
        whom = f"user {user}" if user is not None else f"phone number {phone}"
        return Refused(code=Code.NOT_BARRED, reason=f"no {kind.value} stands for {whom}")
    details = {"kind": kind.value, "by": by, "why": why, "phone": phone}
    turn.record({"kind": EventKind.BAR_LIFTED, "user_id": user, "details": details})
    return Done()


def quarantine(turn: Turn, failed: Mapping[int, str], *, after: int) -> None:
    """Set aside those of these users who have now failed `after` times within `COUNTED`.

    `failed`: users just taken out, by the unclear rule that each broke. Failures before an
    operator's release do not count. Cost: that of the events of these users.
    """
    if not failed:
        return
    given = {
        "users": list(failed),
        "rules": sorted(set(failed.values())),
        "since": turn.now - COUNTED,
        "now": turn.now,
        "times": after,
    }
    for user, reason in turn.connection.execute(_QUARANTINE, given).all():
        details = {"kind": BarKind.QUARANTINE.value, "reason": reason, "by": "claim"}
        turn.record({"kind": EventKind.BARRED, "user_id": user, "details": details})


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


def _whom(kind: BarKind, user: int | None, phone: str | None) -> dict[str, Any]:
    return {"whose_kind": kind.value, "whose_user": user, "whose_phone": _end(phone)}


def _end(phone: str | None) -> str | None:
    return None if phone is None else _digits(phone)[-PHONE_END:]


_standing = (
    Bar.lifted_at.is_(None),
    Bar.kind == bindparam("whose_kind"),
    Bar.user_id.is_not_distinct_from(bindparam("whose_user", type_=BigInteger)),
    Bar.phone_end.is_not_distinct_from(bindparam("whose_phone", type_=Text)),
)
_STANDS = select(Bar.id).where(*_standing)
_LIFT = (
    update(Bar)
    .where(*_standing)
    .values(
        lifted_at=bindparam("at", type_=Instant),
        lifted_by=bindparam("by_whom"),
        lifted_why=bindparam("why"),
    )
)

_rule = Event.details["reason"].as_string()
_released = (
    select(func.max(Bar.lifted_at))
    .where(Bar.user_id == Event.user_id, Bar.kind == word(BarKind.QUARANTINE))
    .correlate(Event)
    .scalar_subquery()
)
_failures = (
    select(
        word(BarKind.QUARANTINE).label("kind"),
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
    upsert(Bar)
    .from_select(["kind", "user_id", "reason", "since", "by"], _failures)
    .on_conflict_do_nothing()
    .returning(Bar.user_id, Bar.reason)
)
