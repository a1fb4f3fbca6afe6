"""Eligibility: each rule is one SQL expression.

Used for building a generation, for checking at the claim, and for the cleanups. Every expression is
over `crm.users` and `user_call_scores` as they stand in the query around it, either of which may be
null (outer joined), and is true or false, never null. The instant is the bind parameter `now`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Interval,
    Text,
    all_,
    and_,
    bindparam,
    case,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased

from assignment_workers.policy.calling import CallingHours
from assignment_workers.policy.outcomes import TERMINAL
from assignment_workers.schema.base import Instant, NaiveInstant, word
from assignment_workers.schema.crm import Claim, ClaimRequirement, CrmUser
from assignment_workers.schema.dialer import Callback, UserCallScore
from assignment_workers.schema.tables import (
    Assignment,
    AssignmentState,
    Suppression,
    SuppressionKind,
)

NOW = bindparam("now", type_=NaiveInstant)

PASSING = {"outside_calling_hours", "called_enough_today", "called_lately", "offered_lately"}
"""The calling rules that hold again by themselves."""

SETTLING = timedelta(hours=2)
"""How old the score row of a user above score 0 has to be (original-dialer section 3)."""

EXCLUDED_REQUIREMENTS = (
    "signature",
    "vehicle_registration",
    "cfa",
    "solicitor_letter_of_authority",
    "letter_of_authority",
)
"""Requirement types that no call can obtain (original-dialer section 3)."""

BASE_REQUIREMENT = "base requirement for claim."
"""The reason, to the letter, with which an `id_document` requirement does not count."""


class Kind(StrEnum):
    """What a broken rule means for the user."""

    CONVERTED = "converted"
    """They reached what the dialer queue is for: they leave it, and a conversion is recorded."""
    BLOCKED = "blocked"
    """They may not be called until a fact about them changes."""
    RESTING = "resting"
    """They will be callable by themselves, later."""


@dataclass(frozen=True, eq=False)
class Rule:
    """One condition of eligibility; `name` is the reason shown when it does not hold."""

    name: str
    holds: ColumnElement[bool]
    kind: Kind
    means: str = ""
    """What it means that the rule does not hold, for people."""
    until: ColumnElement[datetime] | ColumnElement[datetime | None] | None = None
    """From when on a resting rule holds by itself, as the facts are; meant where it is broken."""


def _utc(naive: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[datetime]:
    return func.timezone(word("UTC"), naive, type_=Instant)


def _words(values: Iterable[str]) -> list[ColumnElement[str]]:
    return [word(value) for value in values]


def _is_cancelled() -> ColumnElement[bool]:
    return func.coalesce(func.lower(Claim.status), word("")) == word("cancelled")


def _claims(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists(select(1).select_from(Claim).where(Claim.user_id == CrmUser.id, *conditions))


def _signed() -> ColumnElement[bool]:
    return func.coalesce(CrmUser.current_signature_file_id, word("")) != word("")


def _wanting() -> ColumnElement[bool]:
    """Some requirement of a claim that goes on is pending, of a kind that a call can obtain."""
    excused = and_(
        ClaimRequirement.type == word("id_document"),
        ClaimRequirement.claim_requirement_reason == BASE_REQUIREMENT,
    )
    return exists(
        select(1)
        .select_from(ClaimRequirement)
        .join(Claim, Claim.id == ClaimRequirement.claim_id)
        .where(
            Claim.user_id == CrmUser.id,
            not_(_is_cancelled()),
            func.upper(ClaimRequirement.status) == word("PENDING"),
            func.coalesce(ClaimRequirement.type, word("")).not_in(_words(EXCLUDED_REQUIREMENTS)),
            func.coalesce(excused, false()).is_(False),
        )
    )


IN_CRM = Rule("not_in_crm", CrmUser.id.is_not(None), Kind.BLOCKED, "the CRM does not know them")
ENABLED = Rule("disabled", CrmUser.is_enabled.is_(True), Kind.BLOCKED, "disabled in the CRM")
NOT_TERMINAL = Rule(
    "opted_out",
    and_(
        func.coalesce(UserCallScore.last_outcome, word("")).not_in(_words(TERMINAL)),
        not_(
            exists(
                select(1)
                .select_from(Assignment)
                .where(
                    Assignment.user_id == CrmUser.id,
                    Assignment.outcome.in_(_words(TERMINAL)),
                )
            )
        ),
    ),
    Kind.BLOCKED,
    "an earlier call ended with do_not_contact or no_claim",
)
"""Whoever asked not to be contacted, or has no claim, is never offered again (hazard D4)."""
PHONE_END = 9
"""Digits at the end of phone numbers by which they are compared.

A number may stand in national or international form; two people whose numbers end alike are both
spared, which is the safe side.
"""


def phone_end(
    number: ColumnElement[str | None] | InstrumentedAttribute[str | None],
) -> ColumnElement[str]:
    """The digits by which phone numbers are compared; empty for none."""
    digits = func.regexp_replace(func.coalesce(number, word("")), "[^0-9]", "", "g")
    return func.right(digits, PHONE_END, type_=Text())


def _is_suppressed(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists(
        select(1).select_from(Suppression).where(Suppression.lifted_at.is_(None), *conditions)
    )


CONTACTABLE = Rule(
    "do_not_contact",
    and_(
        not_(
            _is_suppressed(
                Suppression.kind == word(SuppressionKind.DO_NOT_CONTACT),
                Suppression.user_id == CrmUser.id,
            )
        ),
        not_(
            _is_suppressed(
                Suppression.phone_end.is_not(None),
                Suppression.phone_end == phone_end(CrmUser.phone_number),
            )
        ),
    ),
    Kind.BLOCKED,
    "they or their phone number are on the do-not-contact list",
)
NOT_SET_ASIDE = Rule(
    "quarantined",
    not_(
        _is_suppressed(
            Suppression.kind == word(SuppressionKind.QUARANTINE), Suppression.user_id == CrmUser.id
        )
    ),
    Kind.BLOCKED,
    "set aside until an operator releases them: they failed repeatedly for an unclear reason",
)


def not_closed(queue: str) -> Rule:
    """No agent has closed this dialer queue for the user."""
    return Rule(
        "closed",
        not_(
            _is_suppressed(
                Suppression.kind == word(SuppressionKind.CLOSED),
                Suppression.user_id == CrmUser.id,
                Suppression.queue == word(queue),
            )
        ),
        Kind.BLOCKED,
        "an agent closed this dialer queue for them, until an operator lifts that",
    )


def is_put_off(user: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a skip or a deferral keeps everybody from being offered this user at `now`."""
    ended = aliased(Assignment)
    return exists(
        select(1).select_from(ended).where(ended.user_id == user, ended.put_off_until > _utc(NOW))
    )


UNCLEAR = frozenset({"not_in_crm", "unsigned"})
"""Rules that a user met at the build and breaks at the claim with no reason that explains it."""
CLAIM_ALIVE = Rule(
    "all_claims_cancelled",
    or_(not_(_claims(_is_cancelled())), _claims(not_(_is_cancelled()))),
    Kind.BLOCKED,
    "all their claims are cancelled",
)
"""A user without any claim passes (original-dialer section 3)."""
UNSIGNED = Rule("signed", not_(_signed()), Kind.CONVERTED, "they have signed")
SIGNED = Rule("unsigned", _signed(), Kind.BLOCKED, "they have not signed yet")
WANTING = Rule(
    "requirements_completed",
    _wanting(),
    Kind.CONVERTED,
    "nothing is pending that a call can obtain",
)
ACTIVE = Rule(
    "inactive", UserCallScore.is_active.is_not(False), Kind.BLOCKED, "their score row is not active"
)
"""Whoever has no score row yet can be due a call all the same: they called or were promised one."""
UNPROMISED = Rule(
    "promised",
    not_(
        exists(
            select(1)
            .select_from(Callback)
            .where(Callback.user_id == CrmUser.id, Callback.status == word("pending"))
        )
    ),
    Kind.RESTING,
    "they were promised a callback, and are called for that",
)
"""Whoever was promised a callback is called for it, never earlier through the queue (hazard C9)."""
RESTED = Rule(
    "cooling_down",
    or_(UserCallScore.next_call_after.is_(None), UserCallScore.next_call_after <= NOW),
    Kind.RESTING,
    "their last outcome asks to wait",
    _utc(UserCallScore.next_call_after),
)
SETTLED = Rule(
    "too_new",
    or_(
        UserCallScore.current_score <= 0,
        UserCallScore.created_at <= NOW - literal(SETTLING, Interval()),
    ).is_not(False),
    Kind.RESTING,
    "with a score above 0, and their score row is younger than two hours",
    _utc(UserCallScore.created_at + literal(SETTLING, Interval())),
)

CLOSED = bindparam("closed", value=[], type_=ARRAY(Integer))
"""The numbers of the zones that are outside their calling hours at `now`."""


def opens(place: int) -> str:
    """The name of the parameter that says when the zone of this number opens next."""
    return f"opens_{place}"


def _place(hours: CallingHours) -> ColumnElement[int]:
    """The number of the user's zone in `hours.places`, by the first digits of their phone number.

    Spaces, brackets and hyphens do not count; 00 is +.
    """
    number = func.coalesce(CrmUser.phone_number, word(""))
    digits = func.regexp_replace(func.regexp_replace(number, r"\D", "", "g"), "^00", "")
    return case(
        *(
            (digits.startswith(prefix), literal(hours.places.index(zone), Integer()))
            for prefix, zone in hours.zones
        ),
        else_=literal(hours.places.index(hours.default), Integer()),
    )


def in_hours(hours: CallingHours) -> Rule:
    """Where the user is, it is an hour at which they may be called."""
    place = _place(hours) if hours.zones else literal(0, Integer())
    return Rule(
        "outside_calling_hours",
        place != all_(CLOSED),
        Kind.RESTING,
        "outside calling hours where they are",
        case(
            {
                number: bindparam(opens(number), value=None, type_=Instant)
                for number in range(len(hours.places))
            },
            value=place,
        ),
    )


def within_attempts(most: int) -> Rule:
    """No more calls than that while the score row lives."""
    return Rule(
        "attempts_used_up",
        func.coalesce(UserCallScore.total_attempts < most, true()),
        Kind.BLOCKED,
        f"called {most} times or more",
    )


def within_calls_per_day(most: int) -> Rule:
    """Fewer completed calls than that in the last 24 hours, from any dialer queue or source.

    The call whose day has to pass is found by the index on user and time.
    """
    calls = aliased(Assignment)
    day = literal(timedelta(hours=24), Interval())
    ended = (
        select(calls.ended_at)
        .where(
            calls.user_id == CrmUser.id,
            calls.state == word(AssignmentState.COMPLETED),
            calls.ended_at > _utc(NOW) - day,
        )
        .order_by(calls.ended_at.desc())
        .offset(most - 1)
        .limit(1)
        .correlate(CrmUser)
        .scalar_subquery()
    )
    return Rule(
        "called_enough_today",
        ended.is_(None),
        Kind.RESTING,
        f"called {most} times in 24 hours",
        ended + day,
    )


def cooled_down(least: timedelta) -> Rule:
    """So long since the last call."""
    free = UserCallScore.last_call_at + literal(least, Interval())
    return Rule(
        "called_lately",
        or_(UserCallScore.last_call_at.is_(None), free <= NOW),
        Kind.RESTING,
        f"their last call is less than {least} ago",
        _utc(free),
    )


def between_offers(least: timedelta) -> Rule:
    """So long since they were last handed to anybody, whatever came of it."""
    offers = aliased(Assignment)
    last = (
        select(func.max(offers.claimed_at))
        .where(offers.user_id == CrmUser.id)
        .correlate(CrmUser)
        .scalar_subquery()
    )
    free = last + literal(least, Interval())
    return Rule(
        "offered_lately",
        func.coalesce(free <= _utc(NOW), true()),
        Kind.RESTING,
        f"last handed out less than {least} ago",
        free,
    )


def in_pool(queue: str) -> Rule:
    """The user's score row says that they belong to this dialer queue."""
    return Rule(
        "in_other_queue",
        func.coalesce(UserCallScore.current_queue_type, word("")) == word(queue),
        Kind.BLOCKED,
        "their score row names another dialer queue, or there is none",
    )
