"""The optional calling rules of a call centre: when, and how often, a user may be offered.

The time is always an argument. Time zones come from the system's database, by `zoneinfo`. Every
rule is off unless it is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from holidays import HolidayBase

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
AHEAD_AT_MOST = 60
"""The greatest number of days that are searched for the next time at which calling is allowed."""

_DAY = timedelta(days=1)
_END_OF_DAY = timedelta(hours=24)
_WINDOW = re.compile(
    r"([a-z]{3})(?:-([a-z]{3}))?\s+([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})", re.ASCII
)

Week = tuple[tuple[tuple[timedelta, timedelta], ...], ...]
"""The opening windows of each weekday, from Monday. A window is its start and end in local time, as
time since midnight.
"""


@dataclass(frozen=True)
class CallingHours:
    """The hours at which users may be called, in the local time of each user.

    `default` is the time zone of users without a known zone. Each of `calendars` is the name of a
    country, or of a part of a country such as GB-ENG. Users in such a place are not called on its
    public holidays. The first calendar also applies to users in all places without a calendar. If
    `calendars` is `(None,)`, no public holiday counts for any user.
    """

    week: Week
    default: ZoneInfo
    calendars: tuple[str | None, ...] = (None,)
    _known: dict[tuple[ZoneInfo, str | None], tuple[datetime, datetime | None]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def is_open(self, zone: ZoneInfo, at: datetime, calendar: str | None = None) -> bool:
        """Return True if users in this time zone may be called at this instant.

        `calendar` is the country, or part of a country, whose public holidays count. None: no
        holiday counts.
        """
        local = at.astimezone(zone)
        midnight = datetime.combine(local.date(), time())
        wall = local.replace(tzinfo=None) - midnight
        return any(start <= wall < end for start, end in self._windows(local.date(), calendar))

    def opens_at(
        self, zone: ZoneInfo, at: datetime, calendar: str | None = None
    ) -> datetime | None:
        """Return the first instant, from `at` on, at which users of the zone may be called.

        Returns None if calling is not allowed within about 60 days. `calendar` is the country, or
        part of a country, whose public holidays count. None: no holiday counts.

        On the day in spring on which the clock is put forward, some local times do not occur. A
        window that starts at such a time starts when the clock is put forward. On the day in autumn
        on which the clock is put back, some local times occur twice. A window that starts at such a
        time starts twice.
        """
        at = at.astimezone(UTC)
        known = self._known.get((zone, calendar))
        if known and known[1] and known[0] <= at < known[1]:
            return known[1]  # closed until then, as an earlier call found
        found = at if self.is_open(zone, at, calendar) else self._next(zone, at, calendar)
        self._known[zone, calendar] = (at, found)
        return found

    def _next(self, zone: ZoneInfo, at: datetime, calendar: str | None) -> datetime | None:
        first = at.astimezone(zone).date() - _DAY
        for number in range(AHEAD_AT_MOST):
            instants = self._changes(zone, first + number * _DAY, calendar)
            later = [each for each in instants if each >= at and self.is_open(zone, each, calendar)]
            if later:
                return min(later)
        return None

    def _changes(self, zone: ZoneInfo, day: date, calendar: str | None) -> Iterator[datetime]:
        """Yield the instants of this day at which calling may become allowed in the zone.

        They are the starts of opening windows and the changes of the zone's clock.
        """
        midnight = datetime.combine(day, time())
        for start, _ in self._windows(day, calendar):
            for fold in (0, 1):
                yield (midnight + start).replace(tzinfo=zone, fold=fold).astimezone(UTC)
        begins, ends = (
            each.replace(tzinfo=zone).astimezone(UTC) for each in (midnight, midnight + _DAY)
        )
        yield from _clock_changes(zone, begins, ends)

    def _windows(self, day: date, calendar: str | None) -> tuple[tuple[timedelta, timedelta], ...]:
        is_holiday = calendar is not None and day in _calendar(calendar)
        return () if is_holiday else self.week[day.weekday()]


@dataclass(frozen=True)
class CallingRules:
    """The configured calling rules: calling hours, and limits on the number of calls and offers.

    If none is configured, users are offered at any hour, as often as their outcomes allow.
    """

    hours: CallingHours | None = None
    calls_per_day: Mapping[str, int] = field(default_factory=dict)
    """Maps the name of a dialer queue to the greatest number of calls to one user in 24 hours.

    Only completed calls are counted. The count includes the calls to the user from every other
    dialer queue, for callbacks, and in return for missed calls. While a user has had that number of
    calls in the last 24 hours, the user is not offered from this dialer queue. A dialer queue that
    is left out has no limit.
    """
    cool_down: Mapping[str, timedelta] = field(default_factory=dict)
    """Maps the name of a dialer queue to the shortest time from a user's last call to the next.

    The last call counts even if it came from another dialer queue. A dialer queue that is left out
    has no such limit.
    """
    attempts: int | None = None
    """The greatest number of calls to one user, counted without a time limit.

    The count is `total_attempts` in the user's score row. None: no limit.
    """
    between_offers: timedelta | None = None
    """The shortest time from one offer of a user to the next, even if the user was not called."""


@cache
def _calendar(name: str) -> HolidayBase:
    import holidays  # imported here because it takes a tenth of a process's start

    country, _, part = name.partition("-")
    return holidays.country_holidays(country, subdiv=part or None)


def _clock_changes(zone: ZoneInfo, since: datetime, until: datetime) -> Iterator[datetime]:
    """Yield each instant between `since` and `until` at which the zone's UTC offset changes.

    The instants are exact to a second. At most one is found per hour.
    """
    step = timedelta(hours=1)
    while since < until:
        before, after = since, since + step
        if before.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            while after - before > timedelta(seconds=1):
                middle = before + (after - before) / 2
                middle = middle.replace(microsecond=0)
                if middle.astimezone(zone).utcoffset() == before.astimezone(zone).utcoffset():
                    before = middle
                else:
                    after = middle
            yield after
        since += step


def read_week(said: str) -> Week:
    """Parse opening windows such as `mon-thu 10:00-19:00, fri 10:00-18:00`.

    A day that is not named is closed. Raises `ValueError` with the part that is invalid, if any.
    """
    week: list[list[tuple[timedelta, timedelta]]] = [[] for _ in DAYS]
    for part in said.split(","):
        match = _WINDOW.fullmatch(part.strip().lower())
        if match is None:
            raise ValueError(f"{part.strip()!r}: days and hours, such as mon-thu 10:00-19:00")
        first, last = match[1], match[2] or match[1]
        for day in (first, last):
            if day not in DAYS:
                raise ValueError(f"no day {day!r}; there are {', '.join(DAYS)}")
        start, end = (timedelta(hours=int(match[at]), minutes=int(match[at + 1])) for at in (3, 5))
        if not start < end <= _END_OF_DAY or int(match[4]) > 59 or int(match[6]) > 59:
            raise ValueError(f"{part.strip()!r}: from an hour to a later one, up to 24:00")
        if DAYS.index(first) > DAYS.index(last):
            raise ValueError(f"{part.strip()!r}: the first day comes after the last")
        for number in range(DAYS.index(first), DAYS.index(last) + 1):
            week[number].append((start, end))
    return tuple(tuple(sorted(each)) for each in week)


def read_zones(said: str) -> tuple[ZoneInfo, tuple[tuple[str, ZoneInfo], ...]]:
    """Parse a setting of time zones such as `Europe/London, +1212=America/New_York`.

    Returns the default zone, and a pair of prefix and zone for each other zone in the setting. A
    prefix is the first digits of phone numbers, without +. The longest prefix comes first. Raises
    `ValueError` with the part that is invalid, or if the default zone is missing.
    """
    default: ZoneInfo | None = None
    zones: dict[str, ZoneInfo] = {}
    for part in said.split(","):
        prefix, is_prefix, name = part.strip().rpartition("=")
        zone = _zone(name.strip())
        if not is_prefix:
            if default is not None:
                raise ValueError(f"{name!r}: one zone without a prefix is the default")
            default = zone
        elif not re.fullmatch(r"\+[0-9]{1,14}", prefix.strip(), re.ASCII):
            raise ValueError(f"{prefix.strip()!r}: a prefix is + and digits, such as +44")
        else:
            zones[prefix.strip()[1:]] = zone
    if default is None:
        raise ValueError("one zone stands without a prefix, for numbers that fit none")
    return default, tuple(sorted(zones.items(), key=lambda each: (-len(each[0]), each[0])))


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no time zone {name!r}; one is Europe/London") from None


def read_holidays(said: str) -> tuple[str, ...]:
    """Parse names of holiday calendars such as `GB-ENG, US`.

    Raises `ValueError` for an unknown name.
    """
    names = tuple(dict.fromkeys(each.strip() for each in said.split(",")))
    for name in names:
        try:
            _calendar(name)
        except NotImplementedError as error:
            raise ValueError(f"no calendar {name!r}: {error}") from None
    return names
