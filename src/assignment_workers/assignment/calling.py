"""Make the policy of each dialer queue from its own rules and the calling rules in the settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import phonenumbers
from sqlalchemy import ColumnClause, ColumnElement, Text

from assignment_workers.assignment.crm.external_crm import optional_columns
from assignment_workers.errors import UsageError
from assignment_workers.phones import Reader
from assignment_workers.policy.calling import (
    CallingHours,
    CallingRules,
    read_holidays,
    read_week,
    read_zones,
)
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.queues import Policy
from assignment_workers.policy.rules import Numbers
from assignment_workers.schema.crm import CrmUser
from assignment_workers.settings import Settings

T = TypeVar("T")

CALLS_AT_MOST = 1_000
SECONDS_AT_MOST = 10 * 365 * 86_400


@lru_cache(maxsize=16)
def policies_of(dialer: Dialer, settings: Settings) -> Mapping[str, Policy]:
    """Return the policy of each dialer queue by name, under the calling rules of `settings`.

    A policy has all rules of one dialer queue. The policies are cached by dialer and settings.
    Raises `UsageError`, one line that names the environment variable, for a value that cannot be
    used.
    """
    queues = dialer.policies
    judging = {queue: settings.of(queue).model_copy(update=NOT_JUDGING) for queue in queues}
    return {queue: _policy(dialer, queue, each) for queue, each in judging.items()}


NOT_JUDGING = {
    name: Settings.model_fields[name].default
    for name in (
        *("lease", "offer", "offers_lapsed", "defer_maximum", "session_calls", "call_gap"),
        *("break_interval", "skip_agent", "skip_everyone", "callback_preferred", "callback_retry"),
        *("level_minimum", "level_interval", "quarantine_after", "queue_priority"),
    )
}
"""The operational settings that do not decide who may be called, with their defaults.

A policy is made with these defaults, whatever the values in force are. So a change of such a
setting makes no new policy, and the cached policies and SQL statements stay in use.
"""


@lru_cache(maxsize=64)
def _policy(dialer: Dialer, queue: str, settings: Settings) -> Policy:
    rules, numbers = calling_rules(settings, dialer.policies), numbers_of(settings)
    usual = rules == CallingRules() and numbers.is_usual
    found = (dialer.policies if usual else dialer.under(rules, numbers))[queue]
    limit = settings.queue_limit
    return found if limit is None else replace(found, limit=limit)


def numbers_of(settings: Settings) -> Numbers:
    """Return the rules by which phone numbers are parsed, as the settings define them.

    Raises `UsageError` if one of these settings has an unusable value.
    """
    _, zones = _read("calling_zones", settings.calling_zones, read_zones)
    if settings.phone_region not in phonenumbers.SUPPORTED_REGIONS:
        variable = Settings.model_fields["phone_region"].alias
        raise UsageError(f"{variable}={settings.phone_region!r}: no region; one is GB")
    needed = settings.offer_without_number
    columns = optional_columns(settings)
    return Numbers(
        reader=Reader(settings.phone_region, zones, settings.number_key),
        needed=settings.calling_hours is not None if needed is None else not needed,
        **{name: _column(settings, name, column) for name, column in columns.items()},
    )


def _column(settings: Settings, name: str, column: str) -> ColumnElement[str | None]:
    """Return the column from which the user's country or time zone is read.

    `name`: `country` or `time_zone`. `column`: the CRM's name of the column, as configured. With an
    external CRM, the returned column is that of the mirror (our copy of the CRM).
    """
    if settings.crm_database_url is not None:
        return CrmUser.country.expression if name == "country" else CrmUser.time_zone.expression
    return ColumnClause(column, Text(), _selectable=CrmUser.__table__)


def calling_rules(settings: Settings, queues: Collection[str] | None) -> CallingRules:
    """Return the rules in `settings` that limit when and how often a user is called or offered.

    The rules are the calling hours with the public holidays, the number of calls to a user in 24
    hours, the cool-down (the shortest time between two calls to a user), the number of calls to a
    user in all, and the shortest time between two offers of a user. A rule whose setting is unset
    does not apply; holidays apply only together with calling hours. `queues`: the names of the
    dialer's queues; None: the queue names in the settings are not checked. Raises `UsageError` for
    an unusable value, such as one for an unknown dialer queue.
    """
    default, _ = _read("calling_zones", settings.calling_zones, read_zones)
    calendars: tuple[str | None, ...] = (None,)
    if settings.calling_holidays is not None:
        calendars = _read("calling_holidays", settings.calling_holidays, read_holidays)
    hours = None
    if settings.calling_hours is not None:
        week = _read("calling_hours", settings.calling_hours, read_week)
        hours = CallingHours(week, default, calendars)
    return CallingRules(
        hours=hours,
        calls_per_day=_by_queue("calls_per_day", settings.calls_per_day, _count, queues),
        cool_down=_by_queue("call_cooldown", settings.call_cooldown, _seconds, queues),
        attempts=settings.attempts_maximum,
        between_offers=settings.offer_gap,
    )


def described(settings: Settings, queues: Collection[str]) -> str:
    """Return a description of the calling hours in one line, for operators.

    `queues`: the names of the dialer's queues.
    """
    return _by_queue_described(settings, queues, lambda own, _: _hours_described(own))


def _hours_described(settings: Settings) -> str:
    if settings.calling_hours is None:
        return "none are configured: users are handed out at any hour"
    holidays = settings.calling_holidays
    closed = f", closed on the holidays of {holidays}" if holidays else ""
    return f"{settings.calling_hours}, in {settings.calling_zones}{closed}"


def others_described(settings: Settings, queues: Collection[str]) -> str:
    """Return a description of all calling rules except the calling hours, for operators: one line.

    `queues`: the names of the dialer's queues.
    """
    return _by_queue_described(settings, queues, _limits_described)


def described_for(settings: Settings, queue: str) -> str:
    """Return a description of the calling rules of a dialer queue in one line, for operators."""
    own = settings.of(queue)
    return f"calling hours: {_hours_described(own)}; limits: {_limits_described(own, queue)}"


def _limits_described(settings: Settings, queue: str) -> str:
    rules = calling_rules(settings, None)
    most, least = rules.calls_per_day.get(queue), rules.cool_down.get(queue)
    said = [
        *([f"{most} calls in 24 h"] if most else []),
        *([f"{least} after a call"] if least else []),
        *([f"{rules.attempts} attempts"] if rules.attempts else []),
        *([f"{rules.between_offers} between offers"] if rules.between_offers else []),
        *([f"{settings.queue_limit} users of a generation"] if settings.queue_limit else []),
    ]
    return ", ".join(said) or "none are configured: outcomes alone say when a user rests"


def _by_queue_described(
    settings: Settings, queues: Collection[str], describe: Callable[[Settings, str], str]
) -> str:
    """Return a description by dialer queue; only one if it is the same for all queues.

    `describe`: the function that describes the settings of one dialer queue.
    """
    each = {queue: describe(settings.of(queue), queue) for queue in queues}
    if len(set(each.values())) == 1:
        return next(iter(each.values()))
    return "; ".join(f"{queue}: {said}" for queue, said in each.items())


def _by_queue(
    name: str, said: str | None, read: Callable[[str], T], queues: Collection[str] | None
) -> dict[str, T]:
    def pairs(value: str) -> dict[str, T]:
        found: dict[str, T] = {}
        for part in value.split(","):
            queue, equals, given = (each.strip() for each in part.partition("="))
            if not equals or (queues is not None and queue not in queues):
                known = ", ".join(f"{each}=…" for each in queues or ["QUEUE"])
                raise ValueError(f"{part.strip()!r}: by dialer queue, as in {known}")
            found[queue] = read(given)
        return found

    return {} if said is None else _read(name, said, pairs)


def _count(said: str) -> int:
    return _number(said, CALLS_AT_MOST)


def _seconds(said: str) -> timedelta:
    return timedelta(seconds=_number(said, SECONDS_AT_MOST))


def _number(said: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", said, re.ASCII) or not 1 <= int(said) <= most:
        raise ValueError(f"{said!r} is not a whole number from 1 to {most}")
    return int(said)


def _read(name: str, said: str, read: Callable[[str], T]) -> T:
    try:
        return read(said)
    except ValueError as error:
        variable = Settings.model_fields[name].alias
        raise UsageError(f"{variable}={said!r}: {error}") from None
