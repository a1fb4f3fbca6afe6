"""The rules of the call centre as they are written down, in plain Python.

From original-dialer sections 3 and 4, and what is guaranteed of callbacks, missed calls and calling
rules. Nothing here asks the product, nor `zoneinfo`: the clocks are put forward and back by the law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache

from tests.model.agents import Limits
from tests.support.world import BOTH, DAY, HOUR, OUTSTANDING, UNSIGNED

MINUTE = timedelta(minutes=1)
QUARTER = 15 * MINUTE


@dataclass(frozen=True)
class Outcome:
    """A row of the table of section 4."""

    score: int
    hours: int
    """Until the user may be called again; 0: at once."""
    callback: str = "none"
    """Whether a callback time is `none`, `may` be or `must` be given."""
    is_success: bool = False
    is_capped: bool = False
    is_terminal: bool = False
    is_answered: bool = True
    """Somebody was spoken to: what was promised is kept, and the call is credited."""
    converts: bool = False


OUTCOMES = {
    "completed_form": Outcome(0, 24, is_success=True, is_capped=True, converts=True),
    "going_to_complete": Outcome(0, 72, "may", is_success=True),
    "might_complete": Outcome(2, 24, "may"),
    "call_back": Outcome(0, 24, "must", is_success=True),
    "no_answer": Outcome(1, 4, is_answered=False),
    "missed_call": Outcome(0, 0, "must"),
    "hung_up": Outcome(2, 4),
    "bad_number": Outcome(50, 672, is_answered=False),
    "no_claim": Outcome(200, 0, is_capped=True, is_terminal=True),
    "not_interested": Outcome(100, 672),
    "do_not_contact": Outcome(200, 0, is_capped=True, is_terminal=True),
}


def penalty(attempt: int) -> int:
    """What this attempt adds: nothing up to the fifth, 1 up to the tenth, then 3."""
    return 0 if attempt <= 5 else 1 if attempt <= 10 else 3


def _sunday(year: int, month: int, number: int) -> date:
    """The `number`-th Sunday of a month; -1: the last."""
    days = [date(year, month, day) for day in range(1, 32) if not (month == 11 and day == 31)]
    sundays = [day for day in days if day.weekday() == 6]
    return sundays[number - 1 if number > 0 else number]


def _at(day: date, hour: int) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def _london(at: datetime) -> timedelta:
    """Summer time from the last Sunday of March to the last of October, at 01:00 UTC."""
    summer = _at(_sunday(at.year, 3, -1), 1) <= at < _at(_sunday(at.year, 10, -1), 1)
    return HOUR if summer else timedelta()


def _new_york(at: datetime) -> timedelta:
    """From the second Sunday of March to the first of November, at 2 o'clock on the wall."""
    summer = _at(_sunday(at.year, 3, 2), 7) <= at < _at(_sunday(at.year, 11, 1), 6)
    return -4 * HOUR if summer else -5 * HOUR


OFFSETS: dict[str, Callable[[datetime], timedelta]] = {"London": _london, "New York": _new_york}

HOLIDAYS = {date(2027, 3, 26), date(2027, 3, 29), date(2027, 5, 3), date(2027, 12, 27)}
"""Those of England that a test can come to: Good Friday, Easter Monday, May Day, Christmas."""

Windows = tuple[tuple[int, int], ...]
"""From minute to minute of a day."""


@dataclass(frozen=True)
class Rules:
    """What a call centre has set."""

    week: tuple[Windows, ...] | None = None
    """From Monday."""
    has_holidays: bool = False
    calls_per_day: Mapping[str, int] = field(default_factory=dict)
    cool_down: Mapping[str, timedelta] = field(default_factory=dict)
    attempts: int | None = None
    offer_gap: timedelta | None = None
    quarantine_after: int = 3
    limits: Limits = field(default_factory=Limits)

    def is_open(self, place: str, at: datetime) -> bool:
        if self.week is None:
            return True
        return _is_open(self.week, place, at, has_holidays=self.has_holidays)

    def opens(self, place: str, at: datetime) -> datetime:
        """The first instant from `at` on at which it is open there."""
        if self.week is None:
            return at
        return _opens(self.week, place, at, has_holidays=self.has_holidays)


@cache
def _is_open(week: tuple[Windows, ...], place: str, at: datetime, *, has_holidays: bool) -> bool:
    wall = at + OFFSETS[place](at)
    if has_holidays and wall.date() in HOLIDAYS:
        return False
    minute = wall.hour * 60 + wall.minute
    return any(start <= minute < end for start, end in week[wall.weekday()])


@cache
def _opens(week: tuple[Windows, ...], place: str, at: datetime, *, has_holidays: bool) -> datetime:
    """Windows begin at a quarter of an hour, and the clocks change at one: look at each."""
    while not _is_open(week, place, at, has_holidays=has_holidays):
        at = datetime.fromtimestamp((at.timestamp() // 900 + 1) * 900, UTC)
    return at


@dataclass
class Promise:
    """A callback."""

    user: int
    agent: int | None
    queue: str
    at: datetime
    status: str = "pending"
    retries: int = 0
    until: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        return self.at <= now and (self.until is None or self.until <= now)

    def become(self, status: str, until: datetime | None = None) -> None:
        self.status, self.until = status, until


@dataclass
class Missed:
    """An inbound call that nobody took."""

    phone: str
    at: datetime
    call: str
    user: int | None = None
    status: str = "pending"
    until: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        waits = self.until is not None and self.until > now
        return self.status == "pending" and self.user is not None and not waits

    def become(self, status: str, until: datetime | None = None) -> None:
        self.status, self.until = status, until


@dataclass
class Person:
    """A user as the CRM, their score row and their calls stand."""

    id: int
    queue: str | None
    score: int
    created_at: datetime
    is_signed: bool
    phone: str | None = None
    place: str = "London"
    """Where their phone number says that they are."""
    has_score_row: bool = True
    in_crm: bool = True
    is_enabled: bool = True
    has_live_claim: bool = True
    has_pending_requirement: bool = True
    is_active: bool = True
    has_opted_out: bool = False
    next_call_after: datetime | None = None
    last_call_at: datetime | None = None
    last_outcome: str | None = None
    attempts: int = 0
    successes: int = 0
    promise: Promise | None = None
    """The last one."""
    is_suppressed: bool = False
    """They are on the do-not-contact list."""
    is_phone_suppressed: bool = False
    is_set_aside: bool = False
    closed: set[str] = field(default_factory=set)
    """The dialer queues that an agent closed for them."""
    failures: list[datetime] = field(default_factory=list)
    """When they failed for an unclear reason, since an operator released them."""
    calls: list[datetime] = field(default_factory=list)
    """When their completed calls ended."""
    offered_at: datetime | None = None

    def is_promised(self) -> bool:
        return self.promise is not None and self.promise.status == "pending"

    def out_of_place(self, queue: str) -> str | None:
        """The first fact that keeps them out of a dialer queue."""
        return next((rule for rule, is_so in self._facts(queue) if is_so), None)

    def _facts(self, queue: str) -> Iterator[tuple[str, bool]]:
        yield "not_in_crm", not self.in_crm
        yield "disabled", not self.is_enabled
        yield "opted_out", self.has_opted_out
        yield "all_claims_cancelled", not self.has_live_claim
        yield from self._purpose(queue)

    def _purpose(self, queue: str) -> Iterator[tuple[str, bool]]:
        if queue == UNSIGNED:
            yield "signed", self.is_signed
        else:
            yield "unsigned", not self.is_signed
            wanting = self.has_pending_requirement and self.has_live_claim
            yield "requirements_completed", not wanting

    def where(self) -> str | None:
        """The dialer queue they belong to by their facts."""
        return next((queue for queue in BOTH if self.out_of_place(queue) is None), None)

    def _may_not_be_contacted(self) -> bool:
        return self.is_suppressed or self.is_phone_suppressed

    def broken_rules(self, queue: str, now: datetime, rules: Rules) -> dict[str, datetime | None]:
        """The rules of a dialer queue's policy that they break, in their order.

        With when each is over by itself, where it is known.
        """
        person = [
            ("not_in_crm", not self.in_crm),
            ("disabled", not self.is_enabled),
            ("opted_out", self.has_opted_out and self.in_crm),
            ("quarantined", self.is_set_aside and self.in_crm),
            ("all_claims_cancelled", not self.has_live_claim and self.in_crm),
            ("closed", queue in self.closed and self.in_crm),
            *self._purpose(queue),
            ("in_other_queue", self.queue != queue),
            ("inactive", self.has_score_row and not self.is_active),
            ("attempts_used_up", self._attempts_used_up(rules)),
            ("do_not_contact", self._may_not_be_contacted() and self.in_crm),
        ]
        found: dict[str, datetime | None] = {name: None for name, is_so in person if is_so}
        if self.next_call_after is not None and self.next_call_after > now:
            found["cooling_down"] = self.next_call_after
        if self.score > 0 and self.created_at > now - 2 * HOUR:
            found["too_new"] = self.created_at + 2 * HOUR
        if self.is_promised():
            found["promised"] = None
        return found | self.calling_rules(queue, now, rules)

    def _attempts_used_up(self, rules: Rules) -> bool:
        return rules.attempts is not None and self.attempts >= rules.attempts

    def calling_rules(self, queue: str, now: datetime, rules: Rules) -> dict[str, datetime]:
        """The calling rules that they break, each with when it is over."""
        found: dict[str, datetime] = {}
        today = sorted((at for at in self.calls if at > now - DAY), reverse=True)
        if (most := rules.calls_per_day.get(queue)) and len(today) >= most:
            found["called_enough_today"] = today[most - 1] + DAY
        least = rules.cool_down.get(queue)
        if least and self.last_call_at and self.last_call_at + least > now:
            found["called_lately"] = self.last_call_at + least
        if rules.offer_gap and self.offered_at and self.offered_at + rules.offer_gap > now:
            found["offered_lately"] = self.offered_at + rules.offer_gap
        if not rules.is_open(self.place, now):
            found["outside_calling_hours"] = rules.opens(self.place, now)
        return found

    def broken(self, queue: str, now: datetime, rules: Rules) -> str | None:
        """The first of them; None for who may be handed out."""
        return next(iter(self.broken_rules(queue, now, rules)), None)

    def rests_until(self, queue: str, now: datetime, rules: Rules) -> datetime | None:
        """When the times of who breaks no lasting rule have passed; None for whoever does."""
        found = self.broken_rules(queue, now, rules)
        times = [at for at in found.values() if at is not None]
        return max(times) if next(iter(found), None) in RESTING and times else None

    def held_back(self, now: datetime, rules: Rules, queue: str) -> str | None:
        """What keeps back who is due a call: everything but the times that their outcome asks for.

        `queue`: where the promise says that they are, should they be nowhere by their facts.
        """
        where = self.where()
        if where is None:
            return self.out_of_place(queue)
        lasting = [
            ("quarantined", self.is_set_aside),
            ("closed", where in self.closed),
            ("inactive", self.has_score_row and not self.is_active),
            ("attempts_used_up", self._attempts_used_up(rules)),
            ("do_not_contact", self._may_not_be_contacted()),
        ]
        found = [name for name, is_so in lasting if is_so]
        return next(iter([*found, *self.calling_rules(where, now, rules)]), None)

    def has_converted(self) -> bool:
        if not self.in_crm:
            return False
        if self.queue == UNSIGNED:
            return self.is_signed
        wanting = self.has_pending_requirement and self.has_live_claim
        return self.queue == OUTSTANDING and self.is_signed and not wanting

    def score_after(self, outcome: Outcome) -> int:
        """Monotonic: a cap keeps a score from growing, and never lowers it."""
        grown = max(0, self.score + outcome.score + penalty(self.attempts))
        return max(self.score, min(200, grown)) if outcome.is_capped else grown


RESTING = (
    "cooling_down",
    "too_new",
    "promised",
    "called_enough_today",
    "called_lately",
    "offered_lately",
    "outside_calling_hours",
)
PASSING = RESTING[3:]
UNCLEAR = {"not_in_crm", "unsigned"}
ENDS_A_PROMISE = {"opted_out", "do_not_contact", "signed", "requirements_completed"}
"""Whoever opted out, or has what the call was for, is owed none."""
