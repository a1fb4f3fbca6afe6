"""Settings of the call centre, and strategies for the arguments of the machine's steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as some

from tests.model.agents import Limits
from tests.model.rules import MINUTE, Centre, Rules, Windows
from tests.model.trades import Trade
from tests.support.world import DAY, HOUR

T = TypeVar("T")

DAY_LONG: Windows = ((8 * 60, 20 * 60),)
OFFICE = (*[DAY_LONG] * 5, ((10 * 60, 18 * 60),), ((9 * 60, 13 * 60), (15 * 60, 17 * 60)))
NIGHT: tuple[Windows, ...] = (*[()] * 5, ((1290, 1440),), ((15, 75), (105, 165)))
ZONES = "Europe/London, +1=America/New_York"


def call_centres(centre: Centre) -> dict[str, tuple[dict[str, Any], Rules]]:
    """What may be set; a value by dialer queue is for the first and the last one."""
    first, last = centre.names[0], centre.names[-1]
    return {
        "as it comes": ({"quarantine_after": 3}, Rules(centre)),
        "as the original declared": (
            {
                "calling_hours": "mon-fri 08:00-20:00, sat 10:00-18:00,"
                " sun 09:00-13:00, sun 15:00-17:00",
                "calling_zones": ZONES,
                "calling_holidays": "GB-ENG",
                "calls_per_day": f"{first}=3, {last}=2",
                "call_cooldown": f"{first}=14400, {last}=21600",
                "quarantine_after": 2,
            },
            Rules(
                centre,
                week=OFFICE,
                has_holidays=True,
                calls_per_day={first: 3, last: 2},
                cool_down={first: 4 * HOUR, last: 6 * HOUR},
                quarantine_after=2,
            ),
        ),
        "when the clocks change": (
            {
                "calling_hours": "sat 21:30-24:00, sun 00:15-01:15, sun 01:45-02:45",
                "calling_zones": ZONES,
                "calls_per_day": f"{first}=1",
                "quarantine_after": 2,
            },
            Rules(centre, week=NIGHT, calls_per_day={first: 1}, quarantine_after=2),
        ),
        "seldom": (
            {
                "call_cooldown": f"{last}=3600",
                "attempts_maximum": 3,
                "offer_gap": 20 * MINUTE,
                "quarantine_after": 2,
                "offers_lapsed": 2,
                "session_calls": "4",
                "call_gap": "60",
                "break_interval": "14400",
            },
            Rules(
                centre,
                cool_down={last: HOUR},
                attempts=3,
                offer_gap=20 * MINUTE,
                quarantine_after=2,
                limits=Limits(calls=4, gap=MINUTE, interval=4 * HOUR),
            ),
        ),
    }


BEGINNINGS = [
    datetime(2027, month, day, hour, tzinfo=UTC)
    for month, day in ((3, 13), (3, 27), (10, 30), (11, 6))
    for hour in (11, 20)
]
"""The Saturdays before the clocks change in New York and London: forward, and back."""

AGENTS = some.sampled_from([1, 2, 3, 4])
ANYBODY = some.sampled_from([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5, 99])
LATE = some.sampled_from([None, None, None, None, None, -1, 0, 1])


class WithDialer(Protocol):
    """The attributes of the machine on which arguments depend."""

    trade: Trade
    centre: Centre


def of_the_trade(named: Callable[[WithDialer], Sequence[T]]) -> some.SearchStrategy[T]:
    """One of what the machine's dialer has of something."""
    return some.runner().flatmap(lambda machine: some.sampled_from(named(machine)))


QUEUES = of_the_trade(lambda machine: machine.centre.names)
PLACES = some.sampled_from(["London", "New York"])
ANY_QUEUE = of_the_trade(lambda machine: [None, *machine.centre.names])
VERSIONS = some.sampled_from([1, 1, None, 2])
FOREIGN = some.sampled_from([None, None, None, 1, 2])
WAYS = some.sampled_from(
    [
        *["completed"] * 6,
        *["accepted"] * 3,
        *["skipped", "released", "renewed"] * 2,
        "deferred",
        "closed",
    ]
)
CALLED = of_the_trade(lambda machine: ["no_answer", "no_answer", *machine.centre.outcomes])
AFTER = some.sampled_from([20 * MINUTE, 2 * HOUR, DAY + HOUR])
SPOKEN = some.sampled_from([0, 5, 30, 31, 200])
"""Seconds for which somebody is held."""
Move = tuple[int, str | None, str, str, timedelta, int]
MOVE = some.tuples(AGENTS, ANY_QUEUE, WAYS, CALLED, AFTER, SPOKEN)
MOVES = some.lists(MOVE, min_size=2, max_size=6)
WAITS = some.sampled_from([1, 60, 299, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600])
USERS = some.integers(1, 18)
CALLERS = some.sampled_from([*range(1, 19), 0, 19])
"""19 has a number that nobody has; 0 shows none."""
FACTS = of_the_trade(lambda machine: [*machine.trade.changes, "is_active", "in_crm"])
