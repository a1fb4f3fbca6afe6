"""Eligibility: each rule is one SQL expression. Here are the rules that every dialer has.

The expressions serve the build of a generation, the check at the claim, and the removal of
converted users. They refer to the CRM's table of persons, to `user_call_scores`, and to the table
of parsed phone numbers. The enclosing query joins those of the tables that its expressions use; a
row of any of them may be missing (outer join). Each expression is true or false, never null. The
time at which a user is judged is the SQL parameter `now`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from assignment_workers.policy.calling import CallingHours, CallingRules
from assignment_workers.schema.base import Instant, NaiveInstant, sql_text
from assignment_workers.schema.crm import CrmUser
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

CALLING_RULES = {"outside_calling_hours", "called_enough_today", "called_lately", "offered_lately"}
"""The names of the calling rules, such as that of the calling hours.

A user who breaks a calling rule may be called again after some time, without a change of facts.
"""
FOR_AN_OPERATOR = {"number_unclear", "no_number", "quarantined"}
"""The names of the rules that keep a user out until an operator acts, such as the quarantine."""


class RuleEffect(StrEnum):
    """The effect on a user who breaks a rule."""

    CONVERTED = "converted"
    """The user reached the dialer queue's goal and leaves the queue; a conversion is recorded."""
    BLOCKED = "blocked"
    """The user must not be called until a fact about the user changes."""
    RESTING = "resting"
    """The user may be called later, without a change of facts."""


@dataclass(frozen=True, eq=False)
class Rule:
    """A condition that users of a dialer queue must meet to be handed out.

    If a user does not meet the condition, `name` is reported as the reason.
    """

    name: str
    """The name of the rule, which is also the reason that is reported for users who break it.

    The name has small letters, digits and underscores only.
    """
    holds: ColumnElement[bool]
    """The condition that a user must meet: a SQL expression, true or false, never null."""
    kind: RuleEffect = RuleEffect.BLOCKED
    means: str = ""
    """A text for people: what it means that a user breaks this rule."""
    until: ColumnElement[datetime] | ColumnElement[datetime | None] | None = None
    """A SQL expression for the time from which a user who breaks this rule will meet it again.

    Only a rule that delays the user's next call (`kind` is `RESTING`) may have such a time. The
    user then meets the rule again after a while, without a change of facts. None: no such time is
    known.
    """
    suspicious: bool = False
    """True if a breach of this rule at a claim is suspicious, because the build of the queue has
    checked the rule. Repeated breaches quarantine the user.
    """


@dataclass(frozen=True)
class RuleParameters:
    """The values from which this package's rules are made for one dialer queue.

    They are the name of the dialer queue, the terminal outcomes of the dialer, the calling rules,
    and the configuration for parsing phone numbers.
    """

    queue: str
    terminal: tuple[str, ...]
    """The names of the outcomes after which a user is never offered again."""
    calling: CallingRules
    numbers: Numbers


@dataclass(frozen=True, eq=False)
class ReadyRule:
    """A ready-made rule of this package, which any dialer queue may use.

    The function `make` returns the rule for one dialer queue. Its argument has the name of the
    queue, the terminal outcomes, and the settings for calling and for phone numbers.
    """

    name: str
    kind: RuleEffect
    means: str
    make: Callable[[RuleParameters], Rule | None]
    """A function that returns the rule, or None if the settings do not require the rule."""


def _utc(naive: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[datetime]:
    return func.timezone(sql_text("UTC"), naive, type_=Instant)


def _words(values: Iterable[str]) -> list[ColumnElement[str]]:
    return [sql_text(value) for value in values]


IN_CRM = Rule(
    "not_in_crm",
    CrmUser.id.is_not(None),
    RuleEffect.BLOCKED,
    "the CRM does not know them",
    suspicious=True,
)
OPTED_OUT = "opted_out"
"""Name of the rule that is broken by a user who had a call with a terminal outcome.

After a terminal outcome a user is never offered again.
"""


def not_terminal(outcomes: Sequence[str]) -> Rule:
    """Return a rule: no call of the user ended with one of these terminal outcomes.

    A user is never offered again after a terminal outcome. Both the score row and all earlier
    assignments are checked, because the score row has only the last outcome.
    """
    last = func.coalesce(UserCallScore.last_outcome, sql_text(""))
    ended = exists(
        select(1)
        .select_from(Assignment)
        .where(Assignment.user_id == CrmUser.id, Assignment.outcome.in_(_words(outcomes)))
    )
    *others, latest = sorted(outcomes)
    named = f"{', '.join(others)} or {latest}" if others else latest
    return Rule(
        OPTED_OUT,
        and_(last.not_in(_words(outcomes)), not_(ended)),
        RuleEffect.BLOCKED,
        f"an earlier call ended with {named}",
    )


READING = bindparam("reading", value=False, type_=Boolean())
"""SQL parameter: True if a claim judges the user, False if a build of a dialer queue does.

The difference matters for a user whose new phone number in the CRM is not parsed yet: a build
includes the user, but no claim hands the user out.
"""
NUMBER_UNREAD = "number_unread"
"""Name of the rule that is broken by a user whose changed phone number is not parsed yet."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """The configuration for parsing phone numbers: the parser, and the CRM columns that it uses."""

    reader: Reader = field(default_factory=Reader)
    """The object that converts a phone number as written to its normal form (E.164)."""
    country: ColumnElement[str | None] | None = None
    time_zone: ColumnElement[str | None] | None = None
    needed: bool = False
    """True if only users with a phone number that can be parsed may be offered."""

    @property
    def is_usual(self) -> bool:
        """True if every setting about phone numbers has its default value."""
        columns = (self.country, self.time_zone)
        return self.reader == Reader() and columns == (None, None) and not self.needed

    @property
    def current(self) -> ColumnElement[bool]:
        """SQL condition: the stored phone numbers of the user are up to date.

        Two things are required. First, the user's values in the CRM are the same as when they were
        parsed. These values are the phone number, and also the country and the time zone if the
        fields `country` and `time_zone` of this object name their columns. Second, the present
        version of `reader` parsed the values. The second is not required if all values are empty.
        """
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
        """Return a rule: the user's present phone number in the CRM has been parsed.

        After a change of the number, no claim hands out the user until the new number is parsed. A
        build of the queue ignores the rule.
        """
        return Rule(
            NUMBER_UNREAD,
            or_(self.current, not_(READING)),
            RuleEffect.BLOCKED,
            "their phone number has changed and is read before they are offered",
        )

    def there(self) -> Rule:
        """Return a rule: the user's phone field in the CRM has a number that can be parsed."""
        return Rule(
            "no_number",
            not_(and_(self.current, func.coalesce(func.cardinality(Phone.numbers), 0) == 0)),
            RuleEffect.BLOCKED,
            "they have no phone number that can be read",
        )

    def contactable(self, queue: str) -> Rule:
        """Return a rule: neither the user nor a number of the user is on the do-not-contact list.

        The do-not-contact list has the suppressions of the kind `do_not_contact`, and the numbers
        of the imported lists (`SuppressionList`). A suppression or list counts if it is for this
        dialer queue or for all dialer queues, and has not expired.
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
        """Return a rule: the user's number cannot be mistaken for a suppressed number.

        The rule is broken if the user's number and a suppressed number end with the same 7 digits
        (`REACH`), and at least one of the two is unclear. A number is unclear in three cases. It is
        not a phone number. It is in no allocated range. Or it is so short that it may be the end of
        another number.
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
    """Return a SQL condition: a suppression list in force has a number that meets `condition`.

    The numbers of a suppression list must not be called. Lists for this dialer queue and
    lists for all dialer queues count. Cost: one index read per list.
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


NOT_QUARANTINED = Rule(
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
    """Return a rule: the user is not closed in this dialer queue.

    After an agent has closed a user in a dialer queue, that queue does not hand out the user. An
    operator can lift the closure.
    """
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
    """Return a SQL condition: `user` was skipped or deferred, and no agent may get the user yet.

    An agent who skips a user gives the user back without a call. The user then waits for a time
    that the settings define. An agent who defers a user gives the user back until a time that the
    agent chooses.

    The SQL parameter `now` is the time at which the user is judged.
    """
    ended = aliased(Assignment)
    return exists(
        select(1).select_from(ended).where(ended.user_id == user, ended.put_off_until > _utc(NOW))
    )


ACTIVE = Rule(
    "inactive",
    UserCallScore.is_active.is_not(False),
    RuleEffect.BLOCKED,
    "their score row is not active",
)
"""The rule that the user's score row is active.

A user without a score row meets this rule. The rule `IN_POOL` excludes such a user from the dialer
queues. But a callback or a missed call of the user may be due, and `ACTIVE` must not prevent that
call.
"""
NOT_PROMISED = Rule(
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
"""The rule that the user has no pending callback.

A user with a pending callback is called at the time of the callback; until then, no dialer queue
offers the user.
"""
RESTED = Rule(
    "cooling_down",
    or_(UserCallScore.next_call_after.is_(None), UserCallScore.next_call_after <= NOW),
    RuleEffect.RESTING,
    "their last outcome asks to wait",
    _utc(UserCallScore.next_call_after),
)


SETTLED = "too_new"
"""Name of the rule that the function `settled` returns.

A user breaks it if the user's score is above 0 and the score row was created too recently.
"""


def settled(least: timedelta) -> Rule:
    """Return a rule: the user's score row is at least `least` old, or the score is 0.

    Users with a score of 0 need not wait.
    """
    return Rule(
        SETTLED,
        or_(
            UserCallScore.current_score <= 0,
            UserCallScore.created_at <= NOW - literal(least, Interval()),
        ).is_not(False),
        RuleEffect.RESTING,
        f"with a score above 0, and their score row is younger than {least}",
        _utc(UserCallScore.created_at + literal(least, Interval())),
    )


OPENS = bindparam("opens", value=None, type_=JSONB)
"""SQL parameter: the next time at which calling is allowed, by number of the holiday calendar and
by time zone.
"""


def open_zones(calendar: int) -> str:
    """Return the name of the SQL parameter that lists the time zones where calling is allowed now.

    Each holiday calendar has its own parameter; `calendar` is the number of the calendar. If the
    parameter is null, as in a build, calling hours are not judged.
    """
    return f"open_{calendar}"


def soon_zones(calendar: int) -> str:
    """Return the name of the SQL parameter that lists the time zones for `in_hours_soon`.

    The parameter lists the time zones where calling is allowed now, or will be allowed before the
    next build of the dialer queue. Each holiday calendar has its own parameter; `calendar` is the
    number of the calendar.
    """
    return f"soon_{calendar}"


def in_hours(hours: CallingHours) -> Rule:
    """Return a rule: calling is allowed now in every time zone where the user may be."""
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
    """Return a SQL condition: calling hours allow a call before the next build of the queue.

    A user may be in several time zones. Calling must then be allowed in each of these zones at some
    time before that build; the times may differ between zones. The zones where calling is allowed
    before the build are listed in SQL parameters, one for each holiday calendar. The function
    `soon_zones` returns the name of such a parameter.
    """
    return _all_zones_in(hours, soon_zones)


def _zones(hours: CallingHours) -> ColumnElement[list[str]]:
    """Return a SQL expression for the time zones where the user may be.

    If they are unknown: the default zone.
    """
    default = cast(array([literal(hours.default.key, Text())]), ARRAY(Text))
    has_none = func.coalesce(func.cardinality(Phone.zones), 0) == 0
    return case((has_none, default), else_=Phone.zones)


def _all_zones_in(hours: CallingHours, named: Callable[[int], str]) -> ColumnElement[bool]:
    """Return a SQL condition: all time zones of the user are among those where calling is allowed.

    Each holiday calendar has its own list of such zones, which is a SQL parameter; `named` returns
    the parameter's name by the calendar's number. A list that is null allows every zone.
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
    """Return a SQL expression for the number of the holiday calendar that applies to the user.

    A calendar has the name of a country or of a part of a country, such as GB-ENG. The calendar
    with the name of the user's part of a country applies. If there is none, the calendar of the
    user's country applies. If there is none either, or the user's country is unknown, the first
    calendar in `hours.calendars` applies.
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
    """Return a rule: the user's score row counts fewer than `most` calls."""
    return Rule(
        "attempts_used_up",
        func.coalesce(UserCallScore.total_attempts < most, true()),
        RuleEffect.BLOCKED,
        f"called {most} times or more",
    )


def within_calls_per_day(most: int) -> Rule:
    """Return a rule: the user had fewer than `most` completed calls in the last 24 hours.

    Calls of every dialer queue, and of callbacks and missed calls, count. Cost: one index read per
    user.
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
    """Return a rule: the user's last call was at least `least` ago."""
    free = UserCallScore.last_call_at + literal(least, Interval())
    return Rule(
        "called_lately",
        or_(UserCallScore.last_call_at.is_(None), free <= NOW),
        RuleEffect.RESTING,
        f"their last call is less than {least} ago",
        _utc(free),
    )


def between_offers(least: timedelta) -> Rule:
    """Return a rule: the last offer of the user to any agent was at least `least` ago.

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
    """Return a rule: the user's score row names this dialer queue."""
    return Rule(
        "in_other_queue",
        func.coalesce(UserCallScore.current_queue_type, sql_text("")) == sql_text(queue),
        RuleEffect.BLOCKED,
        "their score row names another dialer queue, or there is none",
    )


def _calls_per_day(terms: RuleParameters) -> Rule | None:
    most = terms.calling.calls_per_day.get(terms.queue)
    return within_calls_per_day(most) if most else None


def _cool_down(terms: RuleParameters) -> Rule | None:
    least = terms.calling.cool_down.get(terms.queue)
    return cooled_down(least) if least else None


NOT_OPTED_OUT = ReadyRule(
    OPTED_OUT,
    RuleEffect.BLOCKED,
    "an earlier call ended with a terminal outcome",
    lambda terms: not_terminal(terms.terminal) if terms.terminal else None,
)
NOT_CLOSED = ReadyRule(
    "closed",
    RuleEffect.BLOCKED,
    "an agent closed this dialer queue for them, until an operator lifts that",
    lambda terms: not_closed(terms.queue),
)
IN_POOL = ReadyRule(
    "in_other_queue",
    RuleEffect.BLOCKED,
    "their score row names another dialer queue, or there is none",
    lambda terms: in_pool(terms.queue),
)
ATTEMPTS = ReadyRule(
    "attempts_used_up",
    RuleEffect.BLOCKED,
    "called as often as the settings allow",
    lambda terms: (
        None if terms.calling.attempts is None else within_attempts(terms.calling.attempts)
    ),
)
# First, because the number of a suppressed or forgotten user is never read.
CONTACTABLE = ReadyRule(
    "do_not_contact",
    RuleEffect.BLOCKED,
    "they or their phone number are on the do-not-contact list",
    lambda terms: terms.numbers.contactable(terms.queue),
)
NUMBER_READ = ReadyRule(
    NUMBER_UNREAD,
    RuleEffect.BLOCKED,
    "their phone number has changed and is read before they are offered",
    lambda terms: terms.numbers.read(),
)
NUMBER_CLEAR = ReadyRule(
    "number_unclear",
    RuleEffect.BLOCKED,
    "their number may be one on the do-not-contact list: an operator has to see to it",
    lambda terms: terms.numbers.clear(terms.queue),
)
HAS_NUMBER = ReadyRule(
    "no_number",
    RuleEffect.BLOCKED,
    "they have no phone number that can be read",
    lambda terms: terms.numbers.there() if terms.numbers.needed else None,
)
CALLS_PER_DAY = ReadyRule(
    "called_enough_today",
    RuleEffect.RESTING,
    "called in 24 hours as often as the settings allow",
    _calls_per_day,
)
COOL_DOWN = ReadyRule(
    "called_lately",
    RuleEffect.RESTING,
    "their last call is less than the configured time ago",
    _cool_down,
)
OFFER_GAP = ReadyRule(
    "offered_lately",
    RuleEffect.RESTING,
    "last handed out less than the configured time ago",
    lambda terms: (
        None
        if terms.calling.between_offers is None
        else between_offers(terms.calling.between_offers)
    ),
)
CALLING_HOURS = ReadyRule(
    "outside_calling_hours",
    RuleEffect.RESTING,
    "outside calling hours where they are",
    lambda terms: None if terms.calling.hours is None else in_hours(terms.calling.hours),
)

FIRST: tuple[Rule | ReadyRule, ...] = (IN_CRM, NOT_OPTED_OUT, NOT_QUARANTINED, NOT_CLOSED)
"""The rules of this package that are checked before a dialer queue's own rules.

To change the position of such a rule, a dialer queue names it among its own rules.
"""

# A phone number is read only for a user who breaks no earlier rule.
LAST: tuple[Rule | ReadyRule, ...] = (
    *(IN_POOL, ACTIVE, ATTEMPTS, CONTACTABLE, NUMBER_READ, NUMBER_CLEAR, HAS_NUMBER),
    *(RESTED, NOT_PROMISED, CALLS_PER_DAY, COOL_DOWN, OFFER_GAP, CALLING_HOURS),
)
"""The rules of this package that are checked after a dialer queue's own rules.

To change the position of such a rule, a dialer queue names it among its own rules.
"""

READY_MADE = {each.name: each for each in (*FIRST, *LAST)}
"""The rules of this package, by name. No other rule may have one of these names.

Every dialer queue gets them in addition to its own rules. Some of them depend on a setting, such as
the calling hours, and are left out where it is not set.
"""


def completed(own: Sequence[Rule | ReadyRule]) -> list[Rule | ReadyRule]:
    """Return the rules of a dialer queue in the order in which they are checked.

    `own`: the rules that the definition of the dialer queue names. First, the rules of this package
    in `FIRST` are put before `own`, and those in `LAST` after `own`. A rule of this package that is
    in `own` itself stays at its position there, and is not added a second time.

    Then, all rules that only delay a call, such as a cool-down, are moved behind all other rules.
    This includes such rules in `own`. Within the two groups, the order stays the same. The reason:
    only the first broken rule counts. If this rule only delays the call, the user waits until the
    end of the delay, and that is right only for a user who breaks none of the other rules.
    """
    placed = {each.name for each in own}
    every = [
        *(each for each in FIRST if each.name not in placed),
        *own,
        *(each for each in LAST if each.name not in placed),
    ]
    return sorted(every, key=lambda each: each.kind is RuleEffect.RESTING)


def made(own: Sequence[Rule | ReadyRule], terms: RuleParameters) -> tuple[Rule, ...]:
    """Return all rules of a dialer queue, in the order in which they are checked.

    `own`: the rules that the definition of the dialer queue names. The rules that this package
    provides for every dialer queue are added (`completed`).

    `terms`: the name of the dialer queue, the dialer's terminal outcomes, and the settings for
    calling and for phone numbers. Each ready-made rule (`ReadyRule`) is made from these values. A
    ready-made rule that the values do not require is left out.
    """
    found = (each if isinstance(each, Rule) else each.make(terms) for each in completed(own))
    return tuple(rule for rule in found if rule is not None)
