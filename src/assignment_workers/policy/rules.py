"""Eligibility: each rule is one SQL expression.

The expressions serve the build of a generation, the check at the claim, and the cleanups. Every
expression is over `crm.users` and `user_call_scores` of the enclosing query, either of which may be
null (outer joined). It is true or false, never null. The instant is the bind parameter `now`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Integer,
    Interval,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.orm import InstrumentedAttribute, aliased

from assignment_workers.phones import REACH, Reader
from assignment_workers.policy.calling import CallingHours
from assignment_workers.policy.outcomes import TERMINAL
from assignment_workers.schema.base import Instant, NaiveInstant, sql_text
from assignment_workers.schema.crm import Claim, ClaimRequirement, CrmUser
from assignment_workers.schema.dialer import Callback, UserCallScore
from assignment_workers.schema.tables import (
    Assignment,
    AssignmentState,
    Phone,
    SuppressedNumber,
    Suppression,
    SuppressionKind,
    SuppressionList,
    SuppressionListState,
)

NOW = bindparam("now", type_=NaiveInstant)

PASSING = {"outside_calling_hours", "called_enough_today", "called_lately", "offered_lately"}
"""The names of the calling rules that hold again as time passes."""
FOR_AN_OPERATOR = {"number_unclear", "no_number", "quarantined"}
"""The names of rules that hold again only after an operator has acted on the user's case."""

SETTLING = timedelta(hours=2)
"""The age that the score row of a user with a score above 0 must have before the user is offered.

Source: original-dialer section 3.
"""

EXCLUDED_REQUIREMENTS = (
    "signature",
    "vehicle_registration",
    "cfa",
    "solicitor_letter_of_authority",
    "letter_of_authority",
)
"""Types of requirements of a claim that a call cannot obtain (original-dialer section 3)."""

BASE_REQUIREMENT = "base requirement for claim."
"""The reason of those `id_document` requirements that do not count, compared exactly."""


class RuleEffect(StrEnum):
    """The consequence of a broken rule for the user."""

    CONVERTED = "converted"
    """The user reached the dialer queue's goal and leaves the queue; a conversion is recorded."""
    BLOCKED = "blocked"
    """The user may not be called until a fact about them changes."""
    RESTING = "resting"
    """The user will be callable later without a change of facts."""


@dataclass(frozen=True, eq=False)
class Rule:
    """One condition of eligibility; `name` is the reason shown when the condition does not hold."""

    name: str
    holds: ColumnElement[bool]
    kind: RuleEffect
    means: str = ""
    """The text that tells people what it means that a user breaks this rule."""
    until: ColumnElement[datetime] | ColumnElement[datetime | None] | None = None
    """The time from which a broken resting rule holds again, if the facts stay as they are."""


def _utc(naive: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[datetime]:
    return func.timezone(sql_text("UTC"), naive, type_=Instant)


def _words(values: Iterable[str]) -> list[ColumnElement[str]]:
    return [sql_text(value) for value in values]


def _is_cancelled() -> ColumnElement[bool]:
    return func.coalesce(func.lower(Claim.status), sql_text("")) == sql_text("cancelled")


def _claims(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists(select(1).select_from(Claim).where(Claim.user_id == CrmUser.id, *conditions))


def _signed() -> ColumnElement[bool]:
    return func.coalesce(CrmUser.current_signature_file_id, sql_text("")) != sql_text("")


def _wanting() -> ColumnElement[bool]:
    """Return a SQL condition: a pending requirement of the user can be obtained by a call.

    Requirements of cancelled claims do not count.
    """
    excused = and_(
        ClaimRequirement.type == sql_text("id_document"),
        ClaimRequirement.claim_requirement_reason == BASE_REQUIREMENT,
    )
    return exists(
        select(1)
        .select_from(ClaimRequirement)
        .join(Claim, Claim.id == ClaimRequirement.claim_id)
        .where(
            Claim.user_id == CrmUser.id,
            not_(_is_cancelled()),
            func.upper(ClaimRequirement.status) == sql_text("PENDING"),
            func.coalesce(ClaimRequirement.type, sql_text("")).not_in(
                _words(EXCLUDED_REQUIREMENTS)
            ),
            func.coalesce(excused, false()).is_(False),
        )
    )


IN_CRM = Rule(
    "not_in_crm", CrmUser.id.is_not(None), RuleEffect.BLOCKED, "the CRM does not know them"
)
ENABLED = Rule("disabled", CrmUser.is_enabled.is_(True), RuleEffect.BLOCKED, "disabled in the CRM")
NOT_TERMINAL = Rule(
    "opted_out",
    and_(
        func.coalesce(UserCallScore.last_outcome, sql_text("")).not_in(_words(TERMINAL)),
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
    RuleEffect.BLOCKED,
    "an earlier call ended with do_not_contact or no_claim",
)
"""Require that no call of the user ended with a terminal outcome (hazard D4).

A user who asked not to be contacted, or has no claim, is never offered again.
"""


READING = bindparam("reading", value=False, type_=Boolean())
"""SQL parameter: True in a claim, False in the build of a generation.

A user whose phone number in the CRM has changed is held back in a claim until the number is read
again; a build includes the user.
"""
NUMBER_UNREAD = "number_unread"
"""Name of the rule that a user breaks whose changed phone number was not read yet."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """The configuration for reading phone numbers: the reader, and the CRM columns that it uses."""

    reader: Reader = field(default_factory=Reader)
    """The reader that turns a phone number as written into its normal form (E.164)."""
    country: ColumnElement[str | None] | None = None
    time_zone: ColumnElement[str | None] | None = None
    needed: bool = False
    """True if users without a readable number are never offered."""

    @property
    def is_usual(self) -> bool:
        """True if every setting about phone numbers has its default."""
        columns = (self.country, self.time_zone)
        return self.reader == Reader() and columns == (None, None) and not self.needed

    @property
    def current(self) -> ColumnElement[bool]:
        """SQL condition: the stored normal form is that of the user's present number in the CRM."""
        written = func.coalesce(CrmUser.phone_number, sql_text(""))
        same = [func.coalesce(Phone.text, sql_text("")) == written]
        nothing = written == sql_text("")
        for of, stored in ((self.country, Phone.country), (self.time_zone, Phone.time_zone)):
            if of is not None:
                said = func.coalesce(of, sql_text(""))
                same.append(func.coalesce(stored, sql_text("")) == said)
                nothing = and_(nothing, said == sql_text(""))
        read = func.coalesce(Phone.reader == sql_text(self.reader.tag), false())
        return and_(*same, or_(read, nothing))

    def read(self) -> Rule:
        """Require that the user's present phone number in the CRM is the one that was read."""
        return Rule(
            NUMBER_UNREAD,
            or_(self.current, not_(READING)),
            RuleEffect.BLOCKED,
            "their phone number has changed and is read before they are offered",
        )

    def there(self) -> Rule:
        """Require that the user has a readable number."""
        return Rule(
            "no_number",
            not_(and_(self.current, func.coalesce(func.cardinality(Phone.numbers), 0) == 0)),
            RuleEffect.BLOCKED,
            "they have no phone number that can be read",
        )

    def contactable(self, queue: str) -> Rule:
        """Require that neither the user nor any of the user's phone numbers is suppressed.

        Suppressions for this dialer queue and those for every queue count.
        """
        here = or_(Suppression.queue.is_(None), Suppression.queue == sql_text(queue))
        stands = and_(here, _unexpired(Suppression.expires_at))
        by_user = _is_suppressed(
            Suppression.kind == sql_text(SuppressionKind.DO_NOT_CONTACT),
            Suppression.user_id == CrmUser.id,
            stands,
        )
        compared = func.array_cat(Phone.numbers, Phone.keyed, type_=ARRAY(Text))
        by_number = _is_suppressed(Suppression.number == any_(compared), stands)
        by_text = _is_suppressed(
            Suppression.number.is_(None),
            Suppression.phone.is_not(None),
            Suppression.plain == Phone.plain,
            stands,
        )
        by_list = _listed(queue, SuppressedNumber.number == any_(Phone.numbers))
        return Rule(
            "do_not_contact",
            not_(or_(by_user, and_(self.current, or_(by_number, by_text, by_list)))),
            RuleEffect.BLOCKED,
            "they or their phone number are on the do-not-contact list",
        )

    def clear(self, queue: str) -> Rule:
        """Require that the user's number cannot be mistaken for a suppressed number.

        The rule is broken if the user's number and a suppressed number end with the same digits,
        and one of the two is unclear: not a phone number, or in no allocated range.
        """
        here = or_(Suppression.queue.is_(None), Suppression.queue == sql_text(queue))
        stands = and_(here, _unexpired(Suppression.expires_at))
        user_unsure = or_(
            _is_suppressed(Suppression.tail == any_(Phone.unread), stands),
            _listed(queue, func.right(SuppressedNumber.number, REACH) == any_(Phone.unread)),
        )
        entry_unsure = _is_suppressed(
            Suppression.unsure.is_(True), Suppression.tail == any_(Phone.tails), stands
        )
        return Rule(
            "number_unclear",
            not_(and_(self.current, or_(user_unsure, entry_unsure))),
            RuleEffect.BLOCKED,
            "their number ends as one on the do-not-contact list and one of the two cannot be "
            "read: an operator has to see to it",
        )


def _unexpired(
    until: InstrumentedAttribute[datetime | None],
) -> ColumnElement[bool]:
    return or_(until.is_(None), until > _utc(NOW))


def _listed(queue: str, condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return a SQL condition: a number on a suppression list in force meets `condition`.

    Lists for this dialer queue and lists for every queue count. Cost: one probe for each list.
    """
    return exists(
        select(1)
        .select_from(SuppressedNumber)
        .join(SuppressionList, SuppressionList.id == SuppressedNumber.list_id)
        .where(
            condition,
            SuppressionList.state == sql_text(SuppressionListState.STANDING),
            or_(SuppressionList.queue.is_(None), SuppressionList.queue == sql_text(queue)),
            _unexpired(SuppressionList.expires_at),
            _unexpired(SuppressedNumber.expires_at),
        )
    )


def _is_suppressed(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists(
        select(1).select_from(Suppression).where(Suppression.lifted_at.is_(None), *conditions)
    )


NOT_SET_ASIDE = Rule(
    "quarantined",
    not_(
        _is_suppressed(
            Suppression.kind == sql_text(SuppressionKind.QUARANTINE),
            Suppression.user_id == CrmUser.id,
        )
    ),
    RuleEffect.BLOCKED,
    "set aside until an operator releases them: they failed repeatedly for an unclear reason",
)


def not_closed(queue: str) -> Rule:
    """Require that no agent has closed this dialer queue for the user."""
    return Rule(
        "closed",
        not_(
            _is_suppressed(
                Suppression.kind == sql_text(SuppressionKind.CLOSED),
                Suppression.user_id == CrmUser.id,
                Suppression.queue == sql_text(queue),
            )
        ),
        RuleEffect.BLOCKED,
        "an agent closed this dialer queue for them, until an operator lifts that",
    )


def is_put_off(user: ColumnElement[int]) -> ColumnElement[bool]:
    """Return a SQL condition: at `now`, a skip or a deferral keeps this user from every agent."""
    ended = aliased(Assignment)
    return exists(
        select(1).select_from(ended).where(ended.user_id == user, ended.put_off_until > _utc(NOW))
    )


UNCLEAR = frozenset({"not_in_crm", "unsigned"})
"""Rules whose breach by a user of a generation is suspicious, because a build checked them."""
CLAIM_ALIVE = Rule(
    "all_claims_cancelled",
    or_(not_(_claims(_is_cancelled())), _claims(not_(_is_cancelled()))),
    RuleEffect.BLOCKED,
    "all their claims are cancelled",
)
"""Require that not all of the user's claims are cancelled.

A user without any claim meets the rule (original-dialer section 3).
"""
UNSIGNED = Rule("signed", not_(_signed()), RuleEffect.CONVERTED, "they have signed")
SIGNED = Rule("unsigned", _signed(), RuleEffect.BLOCKED, "they have not signed yet")
WANTING = Rule(
    "requirements_completed",
    _wanting(),
    RuleEffect.CONVERTED,
    "nothing is pending that a call can obtain",
)
ACTIVE = Rule(
    "inactive",
    UserCallScore.is_active.is_not(False),
    RuleEffect.BLOCKED,
    "their score row is not active",
)
"""Require that the user's score row is active.

A user without a score row meets the rule, because a callback or a missed call of theirs may be due.
"""
UNPROMISED = Rule(
    "promised",
    not_(
        exists(
            select(1)
            .select_from(Callback)
            .where(Callback.user_id == CrmUser.id, Callback.status == sql_text("pending"))
        )
    ),
    RuleEffect.RESTING,
    "they were promised a callback, and are called for that",
)
"""Require that the user has no pending callback.

A user with a callback is called at its time, never earlier by a dialer queue (hazard C9).
"""
RESTED = Rule(
    "cooling_down",
    or_(UserCallScore.next_call_after.is_(None), UserCallScore.next_call_after <= NOW),
    RuleEffect.RESTING,
    "their last outcome asks to wait",
    _utc(UserCallScore.next_call_after),
)
SETTLED = Rule(
    "too_new",
    or_(
        UserCallScore.current_score <= 0,
        UserCallScore.created_at <= NOW - literal(SETTLING, Interval()),
    ).is_not(False),
    RuleEffect.RESTING,
    "with a score above 0, and their score row is younger than two hours",
    _utc(UserCallScore.created_at + literal(SETTLING, Interval())),
)

OPENS = bindparam("opens", value=None, type_=JSONB)
"""SQL parameter: the next time at which calling is allowed, by number of calendar and by zone."""


def open_zones(calendar: int) -> str:
    """Return the name of the SQL parameter with the zones that are in calling hours now.

    `calendar`: the number of the holiday calendar that counts. A null parameter, as in a build,
    means that calling hours are not judged.
    """
    return f"open_{calendar}"


def soon_zones(calendar: int) -> str:
    """Return the name of the SQL parameter with the zones that have a calling hour soon.

    `calendar`: as for `open_zones`.
    """
    return f"soon_{calendar}"


def in_hours(hours: CallingHours) -> Rule:
    """Require that it is a calling hour in every zone where the user may be."""
    zone = func.unnest(_zones(hours)).table_valued("zone").render_derived()
    opens = OPENS.op("->")(cast(_calendar(hours), Text())).op("->>")(zone.c.zone)
    latest = (
        select(func.max(cast(opens, Instant))).select_from(zone).correlate(Phone).scalar_subquery()
    )
    return Rule(
        "outside_calling_hours",
        _all_zones_in(hours, open_zones),
        RuleEffect.RESTING,
        "outside calling hours where they are",
        latest,
    )


def in_hours_soon(hours: CallingHours) -> ColumnElement[bool]:
    """Return a SQL condition: every zone where the user may be has a calling hour soon.

    The SQL parameters that `soon_zones` names say which zones have one.
    """
    return _all_zones_in(hours, soon_zones)


def _zones(hours: CallingHours) -> ColumnElement[list[str]]:
    """Return a SQL expression: the zones where the user may be; the default one if unknown."""
    default = cast(array([literal(hours.default.key, Text())]), ARRAY(Text))
    has_none = func.coalesce(func.cardinality(Phone.zones), 0) == 0
    return case((has_none, default), else_=Phone.zones)


def _all_zones_in(hours: CallingHours, named: Callable[[int], str]) -> ColumnElement[bool]:
    """Return a SQL condition: every zone of the user is in a parameter with zones, or it is null.

    `named`: returns the name of the parameter for a number of calendar.
    """
    zones = _zones(hours)
    parameters = [
        bindparam(named(each), value=None, type_=ARRAY(Text))
        for each in range(len(hours.calendars))
    ]
    is_in = [or_(each.is_(None), zones.op("<@")(each)) for each in parameters]
    if len(is_in) == 1:
        return is_in[0]
    return case(dict(enumerate(is_in)), value=_calendar(hours), else_=is_in[0])


def _calendar(hours: CallingHours) -> ColumnElement[int]:
    """Return a SQL expression: the number of the holiday calendar that applies to the user.

    It is the calendar of the user's part of the country, else of the country, else the first one.
    """
    names = [(name, place) for place, name in enumerate(hours.calendars) if name]
    if len(names) < 2:
        return literal(0, Integer())
    country = func.split_part(Phone.home, literal("-", Text()), literal(1, Integer()))
    return case(
        *(
            (Phone.home == literal(name, Text()), literal(place, Integer()))
            for name, place in names
        ),
        *((country == literal(name, Text()), literal(place, Integer())) for name, place in names),
        else_=literal(0, Integer()),
    )


def within_attempts(most: int) -> Rule:
    """Require that the user's score row counts fewer than `most` calls."""
    return Rule(
        "attempts_used_up",
        func.coalesce(UserCallScore.total_attempts < most, true()),
        RuleEffect.BLOCKED,
        f"called {most} times or more",
    )


def within_calls_per_day(most: int) -> Rule:
    """Require that the user had fewer than `most` completed calls in the last 24 hours.

    Calls of every dialer queue, callback and missed call count. Cost: one index read per user.
    """
    calls = aliased(Assignment)
    day = literal(timedelta(hours=24), Interval())
    ended = (
        select(calls.ended_at)
        .where(
            calls.user_id == CrmUser.id,
            calls.state == sql_text(AssignmentState.COMPLETED),
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
        RuleEffect.RESTING,
        f"called {most} times in 24 hours",
        ended + day,
    )


def cooled_down(least: timedelta) -> Rule:
    """Require that the user's last call was at least `least` ago."""
    free = UserCallScore.last_call_at + literal(least, Interval())
    return Rule(
        "called_lately",
        or_(UserCallScore.last_call_at.is_(None), free <= NOW),
        RuleEffect.RESTING,
        f"their last call is less than {least} ago",
        _utc(free),
    )


def between_offers(least: timedelta) -> Rule:
    """Require that the last offer of the user to any agent was at least `least` ago.

    It does not matter how that offer ended.
    """
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
        RuleEffect.RESTING,
        f"last handed out less than {least} ago",
        free,
    )


def in_pool(queue: str) -> Rule:
    """Require that the user's score row names this dialer queue."""
    return Rule(
        "in_other_queue",
        func.coalesce(UserCallScore.current_queue_type, sql_text("")) == sql_text(queue),
        RuleEffect.BLOCKED,
        "their score row names another dialer queue, or there is none",
    )
