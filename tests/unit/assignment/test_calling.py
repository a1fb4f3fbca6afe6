"""Calling hours by the clock on the wall, over every change of the clocks, minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from assignment_workers.assignment.calling import calling_rules, numbers_of
from assignment_workers.errors import UsageError
from assignment_workers.phones import Reader
from assignment_workers.policy.calling import DAYS, CallingHours, read_week, read_zones
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings

LONDON, NEW_YORK = ZoneInfo("Europe/London"), ZoneInfo("America/New_York")
MINUTE = timedelta(minutes=1)
ORIGINAL = "mon-thu 10:00-19:00, fri 10:00-18:00"


def utc(said: str) -> datetime:
    return datetime.fromisoformat(said).replace(tzinfo=UTC)


def hours(week: str, zone: ZoneInfo = LONDON) -> CallingHours:
    return CallingHours(read_week(week), zone)


CHANGES = [
    ("Europe/London", utc("2026-03-29T01:00")),
    ("Europe/London", utc("2026-10-25T01:00")),
    ("America/New_York", utc("2026-03-08T07:00")),
    ("America/New_York", utc("2026-11-01T06:00")),
    ("Australia/Lord_Howe", utc("2026-04-04T15:00")),  # by half an hour
    ("Australia/Lord_Howe", utc("2026-10-03T15:30")),
    ("Africa/Cairo", utc("2026-04-23T22:00")),  # midnight is skipped
    ("Asia/Beirut", utc("2026-10-24T21:00")),  # midnight comes twice
    ("Asia/Kathmandu", utc("2026-05-05T05:00")),  # no change, and a quarter of an hour
]
TIMES = some.sampled_from([0, 1, 30, 60, 90, 105, 120, 150, 180, 600, 1380, 1410, 1439, 1440])


@some.composite
def weeks(draw: some.DrawFn) -> str:
    parts = []
    for day in DAYS:
        start, end = sorted(draw(some.tuples(TIMES, TIMES)))
        if start < end and draw(some.integers(0, 5)):
            wall = [f"{each // 60:02d}:{each % 60:02d}" for each in (start, end)]
            parts.append(f"{day} {'-'.join(wall)}")
    return ", ".join(parts) or "wed 10:00-11:00"


def on_the_wall(week: str, zone: ZoneInfo, at: datetime) -> bool:
    """Whether it is open, by what stands on the wall and nothing else."""
    wall = at.astimezone(zone)
    now = f"{wall:%H:%M}"
    return any(
        part.split()[0] == DAYS[wall.weekday()]
        and part.split()[1].split("-")[0] <= now < part.split("-")[-1]
        for part in week.split(", ")
    )


@settings(max_examples=400, database=None)
@given(weeks(), some.sampled_from(CHANGES), some.integers(-1_500, 1_500))
def test_the_next_opening_is_the_first_open_minute_over_any_change_of_the_clocks(
    week: str, change: tuple[str, datetime], minutes: int
) -> None:
    zone, at = ZoneInfo(change[0]), change[1] + minutes * MINUTE
    opening = hours(week, zone)
    assert opening.is_open(zone, at) == on_the_wall(week, zone, at)
    found = opening.opens_at(zone, at)
    assert found is not None
    first = next(
        (each for n in range(2_000) if on_the_wall(week, zone, each := at + n * MINUTE)), None
    )
    if first is None:
        assert found >= at + 2_000 * MINUTE
        assert on_the_wall(week, zone, found)
        assert not on_the_wall(week, zone, found - MINUTE)
    else:
        assert found == first


@settings(max_examples=100, database=None)
@given(weeks(), some.sampled_from(CHANGES), some.lists(some.integers(0, 3_000), min_size=2))
def test_what_was_found_before_changes_no_later_answer(
    week: str, change: tuple[str, datetime], minutes: list[int]
) -> None:
    zone = ZoneInfo(change[0])
    asked_often = hours(week, zone)
    for each in minutes:
        at = change[1] - 1_500 * MINUTE + each * MINUTE
        assert asked_often.opens_at(zone, at) == hours(week, zone).opens_at(zone, at)


@pytest.mark.parametrize(
    ("at", "opens"),
    [
        ("2026-03-27T17:59", "2026-03-27T17:59"),  # a Friday
        ("2026-03-27T18:00", "2026-03-30T09:00"),  # Monday, an hour earlier in UTC
        ("2026-10-23T17:00", "2026-10-26T10:00"),
        ("2026-12-24T19:00", "2026-12-29T10:00"),  # Christmas, and Boxing Day's substitute
    ],
)
def test_weekends_holidays_and_summer_time_are_known(at: str, opens: str) -> None:
    assert hours(ORIGINAL).opens_at(LONDON, utc(at), "GB-ENG") == utc(opens)


def test_a_user_is_in_the_zone_of_the_longest_prefix() -> None:
    default, zones = read_zones("Europe/London, +1=America/Chicago, +1212=America/New_York")
    assert default == LONDON
    assert zones == (("1212", NEW_YORK), ("1", ZoneInfo("America/Chicago")))
    reader = Reader("GB", zones)
    assert reader.read("+1 212 555 0123").zones == ("America/New_York",)
    assert reader.read("+1 907 274 0123").zones == ("America/Chicago",)
    assert reader.tag != Reader("GB").tag  # what was read in another way is read again


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({}, False),
        ({"CALLING_HOURS": "mon-fri 09:00-20:00"}, True),
        ({"CALLING_HOURS": "mon-fri 09:00-20:00", "OFFER_WITHOUT_NUMBER": "true"}, False),
        ({"OFFER_WITHOUT_NUMBER": "false"}, True),
    ],
)
def test_users_without_a_number_are_offered_by_default_where_there_are_no_calling_hours(
    given: dict[str, str], needed: bool
) -> None:
    said = {f"ASSIGNMENT_WORKERS_{name}": value for name, value in given.items()}
    assert numbers_of(Settings.from_environment(said)).needed is needed


def test_hours_that_never_come_open_never() -> None:
    assert CallingHours(((),) * 7, LONDON).opens_at(LONDON, utc("2026-03-27T12:00")) is None


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("CALLING_HOURS", "always", ["'always'", "mon-thu 10:00-19:00"]),
        ("CALLING_HOURS", "mon 19:00-10:00", ["'mon 19:00-10:00'", "later"]),
        ("CALLING_HOURS", "mon 10:00-24:01", ["24:00"]),
        ("CALLING_HOURS", "mon 10:75-19:00", ["'mon 10:75-19:00'"]),
        ("CALLING_HOURS", "fri-mon 10:00-19:00", ["first day"]),
        ("CALLING_HOURS", "abc 10:00-19:00", ["'abc'", "mon, tue"]),
        ("CALLING_ZONES", "Europe/Londn", ["'Europe/Londn'", "Europe/London"]),
        ("CALLING_ZONES", "+44=Europe/London", ["without a prefix"]),
        ("CALLING_ZONES", "Europe/London, Europe/Paris", ["'Europe/Paris'", "default"]),
        ("CALLING_ZONES", "Europe/London, 44=Europe/Paris", ["'44'", "+44"]),
        ("CALLING_HOLIDAYS", "XX", ["'XX'"]),
        ("CALLING_HOLIDAYS", "GB-XX", ["'GB-XX'"]),
        ("CALLS_PER_DAY", "3", ["'3'", "unsigned_users=", "outstanding_requests="]),
        ("CALLS_PER_DAY", "unsigned_users=none", ["'none'", "1 to 1000"]),
        ("CALL_COOLDOWN_SECONDS", "unsigned_users=0", ["'0'", "from 1"]),
    ],
)
def test_a_calling_rule_that_cannot_be_used_is_named_with_what_is_accepted(
    variable: str, value: str, named: list[str]
) -> None:
    name = f"ASSIGNMENT_WORKERS_{variable}"
    with pytest.raises(UsageError) as error:
        calling_rules(Settings.from_environment({name: value}), loaded().policies)
    assert all(each in str(error.value) for each in [f"{name}={value!r}", *named]), error.value
