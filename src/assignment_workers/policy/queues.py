"""Policies: one object for each dialer queue, with its rules and its order as SQL expressions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import ColumnElement, and_, case, false, func, null, true
from sqlalchemy.orm import InstrumentedAttribute

from assignment_workers.policy import rules
from assignment_workers.policy.calling import CallingHours
from assignment_workers.policy.rules import Numbers, Rule, RuleEffect
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.dialer import UserCallScore

Ordering = ColumnElement[Any] | InstrumentedAttribute[Any]

ORDER: tuple[Ordering, ...] = (
    UserCallScore.current_score.asc(),
    UserCallScore.created_at.desc(),
    UserCallScore.user_id.desc(),
)
"""The order of users in a dialer queue without an order of its own (original-dialer section 3).

Users with a lower score are called earlier, so users with score 0 are called first. Of users with
the same score, the user whose score row was created last is called first. Of users whose score rows
were created at the same time too, the user with the higher id is called first.
"""


_NUMBERS = Numbers()
UNKNOWN_ZONE_FOR = timedelta(days=1)
BUILD_INTERVAL = timedelta(hours=1)
"""The longest time between two builds of a dialer queue.

Beat, the scheduler of Celery, starts a build of each dialer queue every hour.
"""


@dataclass(frozen=True, eq=False)
class Policy:
    """The rules of a dialer queue: which users belong to it, and which may be handed out now.

    If a user breaks several rules, the first of them in the order of `rules` is reported.
    """

    queue: str
    conversion_type: str
    rules: tuple[Rule, ...]
    conversion_needs: frozenset[str] = frozenset()
    """The names of the rules that must hold for a user to be counted as converted."""
    ages: bool = False
    """True if users of this dialer queue age: each week their score is raised by 5.

    In the usual order (`ORDER`), users with a higher score are called later. So the longer a user
    waits, the later the user is called. That is intended; it is the rule of the original dialer
    (docs/original-dialer.md, section 4). Scores of 200 or more are not raised.
    """
    order: tuple[Ordering, ...] = field(default=ORDER)
    hours: CallingHours | None = None
    numbers: Numbers = _NUMBERS
    limit: int | None = None
    """The greatest number of users in one build of the queue; None: all eligible users."""

    def at(self, now: datetime, zones: Collection[str] = ()) -> dict[str, Any]:
        """Return the SQL parameters of this policy's rules, for judging users at `now`.

        `zones` are the time zones of the users to judge; the default zone of the calling hours is
        added. A user in any other zone, or in a zone that this host does not know, counts as
        outside calling hours.
        """
        if self.hours is None:
            return {"now": now}
        hours = self.hours
        opens = {
            str(number): {
                zone: _opens_at(hours, zone, now, calendar) for zone in {hours.default.key, *zones}
            }
            for number, calendar in enumerate(hours.calendars)
        }
        are_open = {
            rules.open_zones(int(number)): [zone for zone, at in found.items() if at == now]
            for number, found in opens.items()
        }
        return {"now": now, "opens": opens, **are_open}

    def building(self, now: datetime) -> dict[str, Any]:
        """Return the SQL parameters of this policy's rules for a build of the queue at `now`.

        The parameters about calling hours are left out, so the rules ignore the hours. The build
        therefore includes users who are outside calling hours. A claim judges the hours later.
        """
        return {"now": now}

    def soon(self, now: datetime, zones: Collection[str]) -> dict[str, Any]:
        """Return the SQL parameters of the condition `callable_soon`, for a build at `now`.

        `zones`: the time zones of the users; the default zone of the calling hours is added. A user
        in any other zone counts as one who cannot be called before the next build.
        """
        if self.hours is None:
            return {}
        hours, until = self.hours, now + BUILD_INTERVAL
        return {
            rules.soon_zones(number): [
                zone
                for zone in {hours.default.key, *zones}
                if (opens := _opens_at(hours, zone, now, calendar)) is not None and opens < until
            ]
            for number, calendar in enumerate(hours.calendars)
        }

    def callable_soon(self) -> ColumnElement[bool]:
        """Return a SQL condition: calling hours allow a call of the user before the next build.

        The method `soon` returns the SQL parameters of the condition.
        """
        return true() if self.hours is None else rules.in_hours_soon(self.hours)

    def is_closed(self, now: datetime, zones: Collection[str]) -> bool:
        """Return True if no user may be called now because of the calling hours of this queue.

        `zones`: the time zones of the users; the default zone of the calling hours is added.
        """
        if self.hours is None:
            return False
        found = self.at(now, zones)
        return not any(found[name] for name in found if name.startswith("open_"))

    def eligible(self) -> ColumnElement[bool]:
        """Return a SQL condition: the user breaks no rule of this dialer queue.

        Such a user may be handed out from the queue. The SQL parameter `now` is the time at which
        the user is judged.
        """
        return and_(*(rule.holds for rule in self.rules))

    def broken_rule(self) -> ColumnElement[str | None]:
        """Return a SQL expression for the name of the first rule that the user breaks.

        Null if the user breaks none.
        """
        return case(*((~rule.holds, sql_text(rule.name)) for rule in self.rules), else_=null())

    def is_resting(self, rule: str) -> bool:
        """Return True if the rule named `rule` only delays a user's next call, as a cool-down does.

        A user who breaks such a rule may be called later, without a change of facts.
        """
        return any(each.name == rule and each.kind is RuleEffect.RESTING for each in self.rules)

    def rests_until(self) -> ColumnElement[datetime | None]:
        """Return a SQL expression for the time from which no resting rule delays the user's call.

        A resting rule, such as a cool-down, only delays the next call. The expression is null for
        a user whom no such rule delays. Use it only for users who break no rule of another kind.
        """
        resting = [rule for rule in self.rules if rule.until is not None]
        return func.greatest(
            *(case((~rule.holds, rule.until), else_=null()) for rule in resting), type_=Instant
        )

    def belongs(self) -> ColumnElement[bool]:
        """Return a SQL condition: by the CRM facts, the user belongs to this dialer queue.

        A user may belong to the queue and still have to wait for the next call.
        """
        return and_(*(rule.holds for rule in self._of_the_facts()))

    def out_of_place(self) -> ColumnElement[str | None]:
        """Return a SQL expression for the reason why a user does not belong to this dialer queue.

        The reason is the name of the first rule about CRM facts that the user breaks. The
        expression is null for a user who belongs to the queue.
        """
        broken = ((~rule.holds, sql_text(rule.name)) for rule in self._of_the_facts())
        return case(*broken, else_=null())

    def held_back(self) -> ColumnElement[str | None]:
        """Return a SQL expression for the name of the first rule that forbids a due call now.

        Use it only for users who belong to this dialer queue (`belongs`) and have a due callback or
        a due missed call. The expression is null if the user may be called.

        Two kinds of rules are left out. The rules of `belongs` are not checked again. Four rules
        only decide when the dialer queue itself hands out a user, such as the delay after the last
        outcome. All other rules count. Examples are the do-not-contact list, quarantine, a closure
        in this queue, and the calling rules: calling hours, calls per day, and the shortest time
        between two calls or two offers.
        """
        facts = {rule.name for rule in self._of_the_facts()}
        others = [each for each in self.rules if each.name not in facts | _NOT_FOR_WHO_IS_DUE]
        broken = ((~rule.holds, sql_text(rule.name)) for rule in others)
        return case(*broken, else_=null())

    def blocking_rule(self) -> ColumnElement[str | None]:
        """Return a SQL expression for the name of the first rule that blocks the user.

        A rule that only delays the next call, such as a cool-down, does not count. The expression
        is null if no rule blocks the user.
        """
        lasting = [rule for rule in self.rules if rule.kind is not RuleEffect.RESTING]
        return case(*((~rule.holds, sql_text(rule.name)) for rule in lasting), else_=null())

    def _of_the_facts(self) -> list[Rule]:
        return [
            rule
            for rule in self.rules
            if rule.kind is not RuleEffect.RESTING
            and rule.name not in _OF_THE_SCORE_ROW | _SET_BY_US
        ]

    def converted(self) -> ColumnElement[bool]:
        """Return a SQL condition: a user of this dialer queue has reached the queue's goal.

        A user who is not in the CRM does not count as converted.
        """
        converting = [~rule.holds for rule in self.rules if rule.kind is RuleEffect.CONVERTED]
        needed = {rules.IN_CRM.name, rules.IN_POOL.name, *self.conversion_needs}
        standing = [rule.holds for rule in self.rules if rule.name in needed]
        return and_(*standing, *converting) if converting else false()


def _opens_at(
    hours: CallingHours, zone: str, now: datetime, calendar: str | None
) -> datetime | None:
    """Return the next time at which users of this zone and calendar may be called.

    That is `now` if they may be called now. Returns None if the time is more than about 60 days
    away. `calendar`: the country, or part of a country, whose public holidays count; None: no
    holiday counts.

    If this host does not know the zone, the time one day after `now` is returned. Such a zone may
    have been stored by a host with newer time zone data.
    """
    try:
        return hours.opens_at(ZoneInfo(zone), now, calendar)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return now + UNKNOWN_ZONE_FOR


_OF_THE_SCORE_ROW = {rules.IN_POOL.name, rules.ACTIVE.name, rules.ATTEMPTS.name}
_NOT_FOR_WHO_IS_DUE = {
    rules.IN_POOL.name,
    rules.RESTED.name,
    rules.SETTLED,
    rules.NOT_PROMISED.name,
}
_SET_BY_US = {
    *(rules.CONTACTABLE.name, rules.NUMBER_CLEAR.name, rules.HAS_NUMBER.name, rules.NUMBER_UNREAD),
    *(rules.NOT_QUARANTINED.name, rules.NOT_CLOSED.name),
}


def queue_of(policies: Sequence[Policy]) -> ColumnElement[str | None]:
    """Return a SQL expression for the name of the dialer queue that a user belongs to.

    It is the queue of the first policy whose rules fit the user's CRM facts; null if none fits.
    """
    return case(*((policy.belongs(), sql_text(policy.queue)) for policy in policies), else_=null())


def suspicious(policies: Iterable[Policy]) -> frozenset[str]:
    """Return the names of the rules whose breach at a claim is suspicious.

    A build includes only users who meet these rules. If a user of the build breaks such a rule at
    the claim, the data may be faulty; repeated breaches quarantine the user.
    """
    each = (rule for policy in policies for rule in policy.rules)
    return frozenset(rule.name for rule in each if rule.suspicious)


def off_for_good(rule: str, policies: Iterable[Policy]) -> bool:
    """Return True if a user who breaks the rule `rule` has opted out or converted.

    Callbacks and missed calls of such a user are cancelled. `policies`: the policies in which the
    rule of this name is looked up.
    """
    found = {each.name: each.kind for policy in policies for each in policy.rules}
    return (
        rule in {rules.OPTED_OUT, rules.CONTACTABLE.name} or found.get(rule) is RuleEffect.CONVERTED
    )


def is_calling_rule(rule: str) -> bool:
    """Return True if `rule` is the name of a calling rule, such as that of the calling hours.

    A user who breaks a calling rule may be called again after some time, without a change of facts.
    """
    return rule in rules.CALLING_RULES


def reason_for(score: int) -> str:
    """Return the reason that agents see for a user with this score: new, high, medium or aged.

    A score of 0 or less is `new`, up to 5 `high`, up to 10 `medium`, and above 10 `aged`. The words
    `high` and `medium` mean a priority, because users with a lower score are called sooner.
    """
    if score <= 0:
        return "new"
    if score <= 5:
        return "high"
    return "medium" if score <= 10 else "aged"
