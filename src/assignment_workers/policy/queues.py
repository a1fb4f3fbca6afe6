"""The policies: one object per dialer queue, with the expressions that it provides."""

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

A total order, because ids differ.
"""


_NUMBERS = Numbers()
UNKNOWN_ZONE_FOR = timedelta(days=1)


@dataclass(frozen=True, eq=False)
class Policy:
    """The rules of a dialer queue in one place.

    The order of the rules decides which broken rule is named.
    """

    queue: str
    conversion_type: str
    rules: tuple[Rule, ...]
    order: tuple[UnaryExpression[Any], ...] = field(default=ORDER)
    hours: CallingHours | None = None
    numbers: Numbers = _NUMBERS

    def at(self, now: datetime, zones: Collection[str] = ()) -> dict[str, Any]:
        """Return the parameters of the policy's expressions at this instant.

        `zones` are the zones of the users. A user who may be in any other zone, or in one whose
        rules this machine lacks, counts as outside calling hours.
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
        """Return the parameters for a build.

        Calling hours are left to the claim, because they change while the generation stands.
        """
        return {"now": now}

    def is_closed(self, now: datetime, zones: Collection[str]) -> bool:
        """Return True if no user may be called now in any of these zones or the default one."""
        if self.hours is None:
            return False
        found = self.at(now, zones)
        return not any(found[name] for name in found if name.startswith("open_"))

    def eligible(self) -> ColumnElement[bool]:
        """Test whether a user may be handed out from this dialer queue at `now`."""
        return and_(*(rule.holds for rule in self.rules))

    def broken_rule(self) -> ColumnElement[str | None]:
        """Select the name of the first rule that does not hold; null for an eligible user."""
        return case(*((~rule.holds, sql_text(rule.name)) for rule in self.rules), else_=null())

    def is_resting(self, rule: str) -> bool:
        """Return True if a user who breaks this rule first becomes eligible as time passes."""
        return any(each.name == rule and each.kind is RuleEffect.RESTING for each in self.rules)

    def rests_until(self) -> ColumnElement[datetime | None]:
        """Select the time from which all broken resting rules hold again; null if none is broken.

        Meant for users who break no other rule: resting rules are the last of a policy.
        """
        resting = [rule for rule in self.rules if rule.until is not None]
        return func.greatest(
            *(case((~rule.holds, rule.until), else_=null()) for rule in resting), type_=Instant
        )

    def belongs(self) -> ColumnElement[bool]:
        """Test whether a user belongs to this dialer queue by their facts, now or after a rest."""
        return and_(*(rule.holds for rule in self._of_the_facts()))

    def out_of_place(self) -> ColumnElement[str | None]:
        """Select the first rule by which a user's facts keep them out of this dialer queue."""
        broken = ((~rule.holds, sql_text(rule.name)) for rule in self._of_the_facts())
        return case(*broken, else_=null())

    def held_back(self) -> ColumnElement[str | None]:
        """Select the first rule that holds back a user who is due a call and belongs here.

        The user is due now, so the wait after the last outcome does not count. The calling rules
        count, and so do the do-not-contact list and quarantine.
        """
        facts = {rule.name for rule in self._of_the_facts()}
        others = [each for each in self.rules if each.name not in facts | _NOT_FOR_WHO_IS_DUE]
        broken = ((~rule.holds, sql_text(rule.name)) for rule in others)
        return case(*broken, else_=null())

    def blocking_rule(self) -> ColumnElement[str | None]:
        """Select the first broken rule that does not pass with time; null for none."""
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
        """Test whether a user of this pool reached the goal of the dialer queue.

        A user who is not in the CRM has no facts and does not count as converted.
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
    """Return the next opening of the zone.

    Another machine with newer rules may have stored a zone that is unknown here. Such a zone counts
    as closed, and its users are judged again after `UNKNOWN_ZONE_FOR`.
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
    """Yield the rules about the user's phone numbers.

    They are the last of the lasting rules, because a number is read only of a user who breaks no
    other lasting rule.
    """
    # First, because the number of a suppressed or forgotten user is never read.
    yield numbers.contactable(queue)
    yield numbers.read()
    yield numbers.clear(queue)
    if numbers.needed:
        yield numbers.there()


def policies(calling: CallingRules, numbers: Numbers = _NUMBERS) -> dict[str, Policy]:
    """Return the policies under these calling rules and this reading of phone numbers.

    Keyed by dialer queue, in the order in which an agent without a preference is served.
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
    """Yield the rules about calling a user at all or now; rules that pass with time come last."""
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
    """Select the dialer queue that a user belongs to by their facts.

    Null for none. The first queue that fits wins.
    """
    return case(*((policy.belongs(), sql_text(policy.queue)) for policy in policies), else_=null())


def off_for_good(rule: str) -> bool:
    """Return True if a broken rule of this name ends a promise: the user opted out or converted."""
    found = {each.name: each.kind for policy in POLICIES.values() for each in policy.rules}
    return (
        rule in {rules.NOT_TERMINAL.name, "do_not_contact"}
        or found.get(rule) is RuleEffect.CONVERTED
    )


def passes(rule: str) -> bool:
    """Return True if the rule of this name is a calling rule that holds again as time passes."""
    return rule in rules.PASSING


def reason_for(score: int) -> str:
    """Return the label of this score that agents see (original-dialer section 4)."""
    if score <= 0:
        return "new"
    if score <= 5:
        return "high"
    return "medium" if score <= 10 else "aged"
