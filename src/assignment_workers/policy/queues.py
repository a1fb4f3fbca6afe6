"""The policies: one object per dialer queue, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import ColumnElement, UnaryExpression, and_, case, func, null

from assignment_workers.policy import rules
from assignment_workers.policy.calling import CallingHours, CallingRules
from assignment_workers.policy.rules import Numbers, Rule, RuleEffect
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.dialer import UserCallScore

ORDER: tuple[UnaryExpression[Any], ...] = (
    UserCallScore.current_score.asc(),
    UserCallScore.created_at.desc(),
    UserCallScore.user_id.desc(),
)
"""Score 0 first, newest first; then score ascending, newest first (original-dialer section 3).

A total order: ids differ."""


_NUMBERS = Numbers()
UNKNOWN_ZONE_FOR = timedelta(days=1)


@dataclass(frozen=True, eq=False)
class Policy:
    """A dialer queue's rules in one place.

    Rules are in the order in which a broken one is named.
    """

    queue: str
    conversion_type: str
    rules: tuple[Rule, ...]
    order: tuple[UnaryExpression[Any], ...] = field(default=ORDER)
    hours: CallingHours | None = None
    numbers: Numbers = _NUMBERS

    def at(self, now: datetime, zones: Collection[str] = ()) -> dict[str, Any]:
        """The parameters of its expressions at this instant.

        `zones`: those in which users are. A user who may be in any other, or in one whose rules
        this machine lacks, is taken to be outside calling hours.
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
        """The same for a build: hours pass while it stands, so they are for the claim to judge."""
        return {"now": now}

    def is_closed(self, now: datetime, zones: Collection[str]) -> bool:
        """Nobody may be called at this instant, in whichever of these zones or the default one."""
        if self.hours is None:
            return False
        found = self.at(now, zones)
        return not any(found[name] for name in found if name.startswith("open_"))

    def eligible(self) -> ColumnElement[bool]:
        """True for a user who may be handed out from this dialer queue at `now`."""
        return and_(*(rule.holds for rule in self.rules))

    def broken_rule(self) -> ColumnElement[str | None]:
        """The name of the first rule that does not hold; null for an eligible user."""
        return case(*((~rule.holds, sql_text(rule.name)) for rule in self.rules), else_=null())

    def is_resting(self, rule: str) -> bool:
        """A user who breaks this rule first will be eligible by themselves, later."""
        return any(each.name == rule and each.kind is RuleEffect.RESTING for each in self.rules)

    def rests_until(self) -> ColumnElement[datetime | None]:
        """From when on the resting rules that are broken hold by themselves; null where none is.

        Meant for whoever breaks no other: resting rules are the last of a policy.
        """
        resting = [rule for rule in self.rules if rule.until is not None]
        return func.greatest(
            *(case((~rule.holds, rule.until), else_=null()) for rule in resting), type_=Instant
        )

    def belongs(self) -> ColumnElement[bool]:
        """True for a user whose place is this dialer queue by their facts, now or once rested."""
        return and_(*(rule.holds for rule in self._of_the_facts()))

    def out_of_place(self) -> ColumnElement[str | None]:
        """The name of the first rule that keeps a user out of this dialer queue by their facts."""
        broken = ((~rule.holds, sql_text(rule.name)) for rule in self._of_the_facts())
        return case(*broken, else_=null())

    def held_back(self) -> ColumnElement[str | None]:
        """The name of the first rule that keeps back who is due a call, and belongs here.

        They are due now, so what the last outcome asks to wait for does not count; the calling
        rules do, and so do the do-not-contact list and quarantine.
        """
        facts = {rule.name for rule in self._of_the_facts()}
        others = [each for each in self.rules if each.name not in facts | _NOT_FOR_WHO_IS_DUE]
        broken = ((~rule.holds, sql_text(rule.name)) for rule in others)
        return case(*broken, else_=null())

    def blocking_rule(self) -> ColumnElement[str | None]:
        """The first broken rule that no passing of time mends; null for none."""
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
        """True for a user of this pool who reached what the dialer queue is for.

        Whoever is not in the CRM has no facts, and is not taken for converted.
        """
        converting = [~rule.holds for rule in self.rules if rule.kind is RuleEffect.CONVERTED]
        standing = [
            rule.holds
            for rule in self.rules
            if rule.name in {"not_in_crm", "in_other_queue", "unsigned"}
        ]
        return and_(*standing, *converting)


def _opens_at(
    hours: CallingHours, zone: str, now: datetime, calendar: str | None
) -> datetime | None:
    """When the zone opens next. Another machine, of newer rules, may have stored one unknown here.

    Such a zone is closed, and its users are judged again after `UNKNOWN_ZONE_FOR`.
    """
    try:
        return hours.opens_at(ZoneInfo(zone), now, calendar)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return now + UNKNOWN_ZONE_FOR


_OF_THE_SCORE_ROW = {"in_other_queue", "inactive", "attempts_used_up"}
_NOT_FOR_WHO_IS_DUE = {"in_other_queue", "cooling_down", "too_new", "promised"}
_SET_BY_US = {
    *("do_not_contact", "number_unclear", "no_number", rules.NUMBER_UNREAD),
    *("quarantined", "closed"),
}

_PERSON = (
    rules.IN_CRM,
    rules.ENABLED,
    rules.NOT_TERMINAL,
    rules.NOT_SET_ASIDE,
    rules.CLAIM_ALIVE,
)


def _numbers(numbers: Numbers, queue: str) -> Iterator[Rule]:
    """Whether the user may be called at one of their numbers.

    The last of the rules that no time mends: a number is read only of a user who breaks no other.
    """
    # First: the number of a user who is suppressed, or was forgotten, is read for nobody.
    yield numbers.contactable(queue)
    yield numbers.read()
    yield numbers.clear(queue)
    if numbers.needed:
        yield numbers.there()


def policies(calling: CallingRules, numbers: Numbers = _NUMBERS) -> dict[str, Policy]:
    """Each dialer queue's policy under these calling rules, with this reading of phone numbers.

    By name, in the order in which an agent with no preference is served.
    """
    return {
        policy.queue: policy
        for policy in (
            Policy(
                queue="unsigned_users",
                conversion_type="signature_obtained",
                rules=(
                    *_PERSON,
                    rules.not_closed("unsigned_users"),
                    rules.UNSIGNED,
                    rules.in_pool("unsigned_users"),
                    *_times(calling, numbers, "unsigned_users"),
                ),
                hours=calling.hours,
                numbers=numbers,
            ),
            Policy(
                queue="outstanding_requests",
                conversion_type="requirements_completed",
                rules=(
                    *_PERSON,
                    rules.not_closed("outstanding_requests"),
                    rules.SIGNED,
                    rules.WANTING,
                    rules.in_pool("outstanding_requests"),
                    *_times(calling, numbers, "outstanding_requests"),
                ),
                hours=calling.hours,
                numbers=numbers,
            ),
        )
    }


def _times(calling: CallingRules, numbers: Numbers, queue: str) -> Iterator[Rule]:
    """Whether and when they may be called; those that pass by themselves are the last."""
    yield rules.ACTIVE
    if calling.attempts is not None:
        yield rules.within_attempts(calling.attempts)
    yield from _numbers(numbers, queue)
    yield rules.RESTED
    yield rules.SETTLED
    yield rules.UNPROMISED
    if most := calling.calls_per_day.get(queue):
        yield rules.within_calls_per_day(most)
    if least := calling.cool_down.get(queue):
        yield rules.cooled_down(least)
    if calling.between_offers is not None:
        yield rules.between_offers(calling.between_offers)
    if calling.hours is not None:
        yield rules.in_hours(calling.hours)


POLICIES = policies(CallingRules())
"""The policies without calling rules, by dialer queue name."""

UNSIGNED_USERS, OUTSTANDING_REQUESTS = POLICIES.values()


def queue_of(policies: Sequence[Policy]) -> ColumnElement[str | None]:
    """The dialer queue a user belongs to by their facts.

    Null for none. The first that fits wins.
    """
    return case(*((policy.belongs(), sql_text(policy.queue)) for policy in policies), else_=null())


def off_for_good(rule: str) -> bool:
    """Whether a broken rule of this name ends what was promised: opted out, or converted."""
    found = {each.name: each.kind for policy in POLICIES.values() for each in policy.rules}
    return (
        rule in {rules.NOT_TERMINAL.name, "do_not_contact"}
        or found.get(rule) is RuleEffect.CONVERTED
    )


def passes(rule: str) -> bool:
    """Whether a broken rule of this name will hold by itself: one of the calling rules."""
    return rule in rules.PASSING


def reason_for(score: int) -> str:
    """Why a user with this score is in a dialer queue, for agents (original-dialer section 4)."""
    if score <= 0:
        return "new"
    if score <= 5:
        return "high"
    return "medium" if score <= 10 else "aged"
