"""Suppressions: users and phone numbers that are not to be offered, whatever the CRM says.

Each suppression is a row with its author and its reason; the end of a suppression is recorded too.
A suppression does not end an active assignment.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    Text,
    and_,
    any_,
    bindparam,
    case,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from assignment_workers.assignment.answers import Code, Done, Held, Refused
from assignment_workers.assignment.transaction import EventKind, FencedTransaction
from assignment_workers.errors import UsageError, no_queue
from assignment_workers.identity import UserId
from assignment_workers.phones import KEYED, Reader, plain, reach, tails
from assignment_workers.policy.queues import suspicious
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.tables import Event, Forgotten, Suppression, SuppressionKind

FORGOTTEN = "(forgotten)"
"""The text that replaces erased texts about a person, such as the reason of a suppression."""
COUNTED = timedelta(days=1)
"""The period in which the removals of a user from generations are counted for a quarantine.

A claim can remove a user who breaks a rule. Only removals because of a rule marked `suspicious`
count. A build includes only users who meet these rules. So a claim soon after the build should
rarely find one of these rules broken. A user who is removed too often is quarantined.
"""
LISTED_AT_MOST = 1_000
COUNTED_AT_MOST = 10_000


class StandingSuppression(BaseModel):
    """A suppression that was not lifted, of one user or of every user with one phone number."""

    id: int
    kind: str
    user_id: UserId | None
    phone: str | None
    number: str | None
    """The suppressed phone number in E.164; None in three cases.

    First, the suppression is of one user; then `phone` is None as well. Second, `phone` is a text
    that is not a phone number; the suppression then applies to users with this text in the CRM.
    Third, the person was erased; then only a hash of the number is stored.
    """
    queue: str | None
    """The one dialer queue to which the suppression applies; None: every queue."""
    reason: str
    source: str | None
    since: datetime
    by: str
    expires_at: datetime | None


_counts = and_(
    Suppression.lifted_at.is_(None),
    or_(Suppression.expires_at.is_(None), Suppression.expires_at > func.now()),
)
_is_keyed = func.coalesce(Suppression.number.startswith(KEYED), false())
"""SQL condition: the number is that of an erased person, stored only as a keyed hash."""
_columns = {name: getattr(Suppression, name) for name in StandingSuppression.model_fields}
_shown = select(
    *((_columns | {"number": case((~_is_keyed, Suppression.number)).label("number")}).values())
)


def suppressions(
    connection: Connection,
    kind: SuppressionKind,
    *,
    limit: int = LISTED_AT_MOST,
    by_text: bool = False,
) -> list[StandingSuppression]:
    """Return the suppressions of this kind in force, the newest first, at most `limit`.

    `by_text`: True to return only the suppressions of a text that is not a phone number; an
    operator should correct these. Cost: a read of the suppressions from the newest on, lifted ones
    included.
    """
    wanted = _shown.where(Suppression.kind == kind, _counts)
    if by_text:
        wanted = wanted.where(Suppression.number.is_(None), Suppression.phone.is_not(None))
    rows = connection.execute(wanted.order_by(Suppression.id.desc()).limit(limit)).mappings()
    return [StandingSuppression(**row) for row in rows]


def suppressions_of(connection: Connection, user: int) -> list[StandingSuppression]:
    """Return the suppressions of this user that were not lifted, including expired ones.

    Suppressions of the user's phone number are not included.
    """
    rows = connection.execute(
        _shown.where(Suppression.user_id == user, Suppression.lifted_at.is_(None))
    ).mappings()
    return [StandingSuppression(**row) for row in rows]


def count(connection: Connection, kind: SuppressionKind) -> int:
    """Count the suppressions of this kind that were not lifted, up to `COUNTED_AT_MOST`."""
    some = (
        select(Suppression.id)
        .where(Suppression.kind == kind, Suppression.lifted_at.is_(None))
        .limit(COUNTED_AT_MOST)
    ).subquery()
    return connection.execute(select(func.count()).select_from(some)).scalar_one()


def do_not_contact(
    transaction: FencedTransaction,
    *,
    user: int | None = None,
    phone: str | None = None,
    reason: str,
    by: str,
    entry: SuppressionOptions | None = None,
    reader: Reader,
) -> Done | Refused:
    """Suppress the user, or every user with this phone number, from this commit on.

    `by`: the operator. `entry`: the dialer queue, the expiry and the source of the suppression.
    `reader`: the rules for reading the phone number, which may be written in any form. Repeating
    the command changes nothing. Refused: neither a user nor a phone number, or both; an unknown
    dialer queue; an expiry that has passed; and a text that is not one phone number, unless
    `entry.raw` is set. Such a text is compared with the phone numbers as they are written in the
    CRM.

    Further users are blocked by the rule `number_unclear`. Their phone number ends with the same 7
    digits (`REACH`) as the suppressed number or text, and one of the two is unclear: it cannot be
    read for certain. These users are not offered until an operator corrects their number in the
    CRM, or lifts the suppression.
    """
    entry = entry or SuppressionOptions()
    target = _target(user, phone, reader, raw=entry.raw)
    if isinstance(target, Refused):
        return target
    queues = transaction.dialer.policies
    if entry.queue is not None and entry.queue not in queues:
        return _malformed(no_queue(entry.queue, queues))
    if entry.expires_at is not None and entry.expires_at <= transaction.now:
        return _malformed("expires_at: a time that is still to come")
    whom = _whom(SuppressionKind.DO_NOT_CONTACT, user, target, entry.queue)
    transaction.connection.execute(_EXPIRE, {**whom, "at": transaction.now})
    if transaction.connection.execute(_STANDS, whom).first():
        return Done(replayed=True)
    transaction.connection.execute(
        insert(Suppression).values(
            kind=SuppressionKind.DO_NOT_CONTACT,
            user_id=user,
            phone=phone,
            **asdict(target),
            queue=entry.queue,
            reason=reason,
            source=entry.source,
            since=transaction.now,
            by=by,
            expires_at=entry.expires_at,
        )
    )
    details = {
        "kind": SuppressionKind.DO_NOT_CONTACT.value,
        "reason": reason,
        "by": by,
        "phone": phone,
    }
    transaction.record(
        {
            "kind": EventKind.SUPPRESSED,
            "user_id": user,
            "queue": entry.queue,
            "details": details,
        }
    )
    return Done()


def lift(
    transaction: FencedTransaction,
    kind: SuppressionKind,
    *,
    user: int | None = None,
    phone: str | None = None,
    queue: str | None = None,
    by: str,
    why: str,
    reader: Reader,
) -> Done | Refused:
    """Lift a suppression (ban on calls) of this kind, of the user or the phone number.

    The next build includes the suppressed users again, unless something else excludes them.
    `phone`: the phone number; if it is a text that is not a phone number, the suppression of the
    same text is lifted. `queue`: the one dialer queue of the suppression; None: a suppression for
    every queue. `by`: the operator; `why`: the reason. Refused: no such suppression; neither a user
    nor a phone number, or both; a text with several phone numbers; a user who was erased; the kind
    `closed` without its dialer queue; and the kind `quarantine` with a dialer queue.
    """
    target = _target(user, phone, reader, raw=True)
    if isinstance(target, Refused):
        return target
    if (kind is SuppressionKind.CLOSED and queue is None) or (
        kind is SuppressionKind.QUARANTINE and queue is not None
    ):
        needs = "needs" if queue is None else "takes no"
        return _malformed(f"a suppression that is {kind} {needs} dialer queue")
    if user is not None and transaction.connection.execute(_FORGOTTEN, {"user": user}).first():
        return Refused(code=Code.FORGOTTEN, reason=f"user {user} was forgotten, and stays so")
    parameters = {"at": transaction.now, "by_whom": by, "why": why}
    lifted = transaction.connection.execute(
        _LIFT, _whom(kind, user, target, queue) | parameters
    ).rowcount
    if target.number is not None and reader.key is not None:
        keyed = replace(target, number=reader.keyed(target.number))
        lifted += transaction.connection.execute(
            _LIFT, _whom(kind, user, keyed, queue) | parameters
        ).rowcount
    if not lifted:
        whom = f"user {user}" if user is not None else f"phone number {phone}"
        place = f" in {queue}" if queue is not None else ""
        return Refused(code=Code.NOT_SUPPRESSED, reason=f"no {kind.value} stands for {whom}{place}")
    details = {"kind": kind.value, "by": by, "why": why, "phone": phone}
    transaction.record(
        {
            "kind": EventKind.SUPPRESSION_LIFTED,
            "user_id": user,
            "queue": queue,
            "details": details,
        }
    )
    return Done()


def subject(
    kind: SuppressionKind,
    reader: Reader,
    *,
    user: int | None = None,
    phone: str | None = None,
    queue: str | None = None,
) -> str:
    """Return a text that identifies the suppression that a command creates or lifts.

    Commands with the same kind, dialer queue, and user or phone number get the same text, in
    whatever form the number is written. A command is refused if another command with the same text
    was sent later but carried out earlier.
    """
    whom = f"user {user}" if phone is None else f"phone number {_key(phone, reader)}"
    place = "" if queue is None else f" in {queue}"
    return f"{kind.value} suppression of {whom}{place}"


def _key(phone: str, reader: Reader) -> str:
    numbers = reader.read(phone).e164
    return numbers[0] if len(numbers) == 1 else plain(phone)


def closing(transaction: FencedTransaction, hold: Held, why: str) -> dict[str, Any]:
    """Return the row of a suppression of the kind `closed`.

    The suppression keeps the user of the assignment `hold` out of the assignment's dialer queue.
    The statement `CLOSE` stores the row. `why`: the agent's reason.
    """
    return {
        "kind": SuppressionKind.CLOSED,
        "user_id": hold.user_id,
        "queue": hold.queue,
        "reason": why,
        "since": transaction.now,
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


def check_key(connection: Connection, reader: Reader) -> None:
    """Raise `UsageError` if suppressed numbers of erased persons were hashed with another key.

    `reader` has the present key. With another key the hashes match no number, and these persons
    would be called again.
    """
    prefix = reader.keyed_prefix
    other = _is_keyed if prefix is None else and_(_is_keyed, ~Suppression.number.startswith(prefix))
    others = select(func.count()).where(Suppression.lifted_at.is_(None), other)
    count = connection.execute(others).scalar_one()
    if count:
        lacks = "is not set" if prefix is None else "is another one"
        raise UsageError(
            f"ASSIGNMENT_WORKERS_NUMBER_KEY {lacks}: {count} do-not-contact numbers of people who"
            " were forgotten are stored by a key, and without it they would be called again"
        )


def quarantine(transaction: FencedTransaction, failed: Collection[int], *, after: int) -> None:
    """Quarantine users whom claims have removed too often: an operator must release them.

    A build of a dialer queue includes only users who meet the rules that are marked `suspicious`.
    If a claim soon after finds that a user breaks such a rule, the claim removes the user. That
    should be rare, so a user to whom it happens repeatedly is not offered any more.

    `failed`: the users whom this transaction has removed for such a rule. `after`: a
    user with this many such removals within a day (`COUNTED`) is quarantined. Removals before an
    operator lifted the user's last quarantine do not count. Cost: a read of the events of these
    users.
    """
    if not failed:
        return
    parameters = {
        "users": list(failed),
        "rules": sorted(suspicious(transaction.dialer.policies.values())),
        "since": transaction.now - COUNTED,
        "now": transaction.now,
        "times": after,
    }
    for user, reason in transaction.connection.execute(_QUARANTINE, parameters).all():
        details = {"kind": SuppressionKind.QUARANTINE.value, "reason": reason, "by": "claim"}
        transaction.record({"kind": EventKind.SUPPRESSED, "user_id": user, "details": details})


@dataclass(frozen=True)
class SuppressionOptions:
    """The dialer queue, the expiry and the source of a do-not-contact suppression.

    `expires_at`: the time at which the suppression ends; None: no end. `source`: the origin of the
    suppression, if any, such as a register.
    """

    queue: str | None = None
    """The only dialer queue to which the suppression applies; None: every queue."""
    expires_at: datetime | None = None
    source: str | None = None
    raw: bool = False
    """True if a text that is not a phone number may be suppressed too."""


@dataclass(frozen=True)
class Target:
    """The target of a suppression: a phone number, or a text that is not a phone number.

    `number`: the phone number in E.164; None: there is only a text. `plain`: the form of the typed
    text for comparison, without spaces, capitals and invisible characters.

    `tail`: 7 digits (`REACH`) that are compared with the ends of other phone numbers. For a number,
    they are its last 7 digits. A text may have several parts, such as two groups of digits with a
    comma between them. The last 7 digits are taken of each part that has so many (`phones.tails`),
    and `tail` is the lowest of these numbers of 7 digits. If the text has fewer than 7 digits,
    `tail` is None.

    `unsure`: True if the number is unclear, because it cannot be read for certain; always True for
    a text. For the suppression of a single user there is neither a number nor a text, and no field
    is set.
    """

    number: str | None = None
    plain: str | None = None
    tail: str | None = None
    unsure: bool = False

    @property
    def by_text(self) -> bool:
        """True if the suppression applies to a text that is not a phone number.

        Such a text is compared with the phone numbers as they are written in the CRM. For the
        suppression of a single user, the property has no meaning.
        """
        return self.number is None


def target_of(phone: str, reader: Reader, *, raw: bool = False) -> Target | str:
    """Convert a typed phone number to the target of a suppression.

    `phone`: the text as it was typed. `reader`: the rules for reading phone numbers. `raw`: True if
    a text that is not a phone number is allowed as a target. If the text cannot be used, the
    returned value is the reason, in one line.
    """
    read = reader.read(phone)
    if len(read.e164) == 1 and set(read.unread) <= {reach(read.e164[0])}:
        (one,) = {each.e164: each for each in read.numbers}.values()
        return Target(one.e164, plain(phone), reach(one.e164), unsure=not one.sure)
    if len(read.e164) > 1:
        return f"phone {phone!r:.60}: {len(read.e164)} numbers ({', '.join(read.e164)}); one each"
    if raw and plain(phone):
        return Target(None, plain(phone), next(iter(tails(phone)), None), unsure=True)
    if read.short:
        return f"phone {phone!r:.60}: a short number, which nobody is called by"
    return (
        f"phone {phone!r:.60}: not one phone number of {reader.region} or one that begins with"
        " + and its country; --raw keeps it as text"
    )


def _target(user: int | None, phone: str | None, reader: Reader, *, raw: bool) -> Target | Refused:
    if (user is None) == (phone is None):
        return _malformed("a user or a phone number: one of the two")
    if phone is None:
        return Target()
    target = target_of(phone, reader, raw=raw)
    return _malformed(target) if isinstance(target, str) else target


def _malformed(reason: str) -> Refused:
    return Refused(code=Code.MALFORMED, reason=reason)


def _whom(
    kind: SuppressionKind, user: int | None, target: Target, queue: str | None = None
) -> dict[str, Any]:
    return {
        "whose_kind": kind.value,
        "whose_user": user,
        "whose_number": target.number,
        "whose_text": target.plain if target.by_text else None,
        "whose_queue": queue,
    }


_text = case((Suppression.number.is_(None), Suppression.plain))
_standing = (
    Suppression.lifted_at.is_(None),
    Suppression.kind == bindparam("whose_kind"),
    Suppression.user_id.is_not_distinct_from(bindparam("whose_user", type_=BigInteger)),
    Suppression.number.is_not_distinct_from(bindparam("whose_number", type_=Text)),
    _text.is_not_distinct_from(bindparam("whose_text", type_=Text)),
    Suppression.queue.is_not_distinct_from(bindparam("whose_queue", type_=Text)),
)
_FORGOTTEN = select(Forgotten.user_id).where(Forgotten.user_id == bindparam("user"))
_STANDS = select(Suppression.id).where(*_standing)
_EXPIRE = (
    update(Suppression)
    .where(*_standing, Suppression.expires_at <= bindparam("at", type_=Instant))
    .values(
        lifted_at=Suppression.expires_at,
        lifted_by="assignment-workers",
        lifted_why="expired",
    )
)
"""SQL statement that marks the expired suppression of a user or phone number as lifted.

A new suppression of the same user or phone number can then be stored.
"""
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
        Suppression.user_id == Event.user_id,
        Suppression.kind == sql_text(SuppressionKind.QUARANTINE),
    )
    .correlate(Event)
    .scalar_subquery()
)
_failures = (
    select(
        sql_text(SuppressionKind.QUARANTINE).label("kind"),
        Event.user_id,
        func.concat(func.count(), " times ", func.max(_rule)).label("reason"),
        bindparam("now", type_=Instant).label("since"),
        literal("claim", Text()).label("by"),
    )
    .where(
        Event.user_id == any_(bindparam("users", type_=ARRAY(BigInteger))),
        Event.kind == sql_text(EventKind.TAKEN_OUT),
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
