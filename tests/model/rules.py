"""The rules of a call centre in plain Python, made from its dialer.

A dialer declares its dialer queues, their own rules, their order and the outcomes; `expressions`
evaluates what is SQL in them. The rules that every dialer queue has are written down here, as they
are documented, and so is what is guaranteed of callbacks, missed calls and calling rules. Nothing
here asks the product, nor `zoneinfo`: the clocks are put forward and back by the law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache

from assignment_workers.dialer import Dialer as Declared
from assignment_workers.dialer import Outcome, Queue, ReadyRule, Rule, RuleEffect
from tests.model.agents import Limits
from tests.model.expressions import Order, Row, Scope, plain
from tests.support.world import DAY, HOUR

MINUTE = timedelta(minutes=1)
QUARTER = 15 * MINUTE


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


Facts = Mapping[str, Sequence[Row]]
Breach = bool | datetime
Broken = Callable[["Person", str, datetime, "Rules"], Breach]
"""Of a person in a dialer queue: whether a rule is broken, or until when it is."""


@dataclass(frozen=True)
class PlainRule:
    """A rule of a dialer queue."""

    name: str
    breach: Broken
    is_resting: bool
    is_converting: bool
    is_of_the_facts: bool
    """The CRM decides it, or that the person opted out."""


@dataclass(frozen=True)
class PlainQueue:
    """A dialer queue, with its rules in the order in which broken ones are reported."""

    name: str
    conversion: str
    rules: tuple[PlainRule, ...]
    conversion_needs: frozenset[str]
    order: tuple[Order, ...]


@dataclass(frozen=True)
class Centre:
    """What a dialer declares."""

    queues: Mapping[str, PlainQueue]
    outcomes: Mapping[str, Outcome]
    resting: frozenset[str]
    """The names of the rules that hold again as time passes."""
    unclear: frozenset[str]
    """The names of the rules whose breach at a claim is counted."""
    ends_a_promise: frozenset[str]
    """Who breaks one of these opted out, or has what the call was for: they are owned none."""

    @classmethod
    def of(cls, dialer: Declared) -> Centre:
        queues = {each.name: _queue(each) for each in dialer.queues}
        rules = [rule for queue in queues.values() for rule in queue.rules]
        own = [rule for queue in dialer.queues for rule in queue.rules if isinstance(rule, Rule)]
        return cls(
            queues=queues,
            outcomes={each.name: each for each in dialer.outcomes},
            resting=frozenset(rule.name for rule in rules if rule.is_resting),
            unclear=frozenset({"not_in_crm", *(rule.name for rule in own if rule.suspicious)}),
            ends_a_promise=frozenset(
                {
                    "opted_out",
                    "do_not_contact",
                    *(each.name for each in rules if each.is_converting),
                }
            ),
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.queues)

    @property
    def promising(self) -> str:
        """The first outcome that asks for a callback time."""
        return next(name for name, each in self.outcomes.items() if each.needs_callback)


def _queue(declared: Queue) -> PlainQueue:
    """A queue's rules are its own and all that every queue has; those that rest come last."""
    placed = {rule.name for rule in declared.rules}
    rules = [
        *(EVERYWHERE[name] for name in BEFORE if name not in placed),
        *(EVERYWHERE.get(rule.name) or _own(rule) for rule in declared.rules),
        *(each for name, each in EVERYWHERE.items() if name not in placed and name not in BEFORE),
    ]
    return PlainQueue(
        declared.name,
        declared.conversion,
        tuple(sorted(rules, key=lambda each: each.is_resting)),
        frozenset(rule.name for rule in declared.conversion_needs),
        tuple(Order.of(each) for each in declared.order),
    )


def _own(rule: Rule | ReadyRule) -> PlainRule:
    assert isinstance(rule, Rule), rule.name
    holds = plain(rule.holds)
    until = None if rule.until is None else plain(rule.until)

    def breach(person: Person, _: str, now: datetime, __: Rules) -> Breach:
        scope = person.scope(now)
        if (is_met := holds(scope)) is not False:
            assert is_met is True, f"{rule.name} is null of user {person.id}"
            return False
        return True if until is None else until(scope)

    return PlainRule(
        rule.name,
        breach,
        is_resting=rule.kind is RuleEffect.RESTING,
        is_converting=rule.kind is RuleEffect.CONVERTED,
        is_of_the_facts=rule.kind is not RuleEffect.RESTING,
    )


@dataclass(frozen=True)
class Rules:
    """What a call centre declares and has set."""

    centre: Centre
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
    phone: str | None = None
    place: str = "London"
    """Where their phone number says that they are."""
    has_score_row: bool = True
    facts: Facts = field(default_factory=dict)
    """By table of the CRM: the rows that are theirs."""
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

    @property
    def in_crm(self) -> bool:
        return bool(self.facts["users"])

    def scope(self, now: datetime) -> Scope:
        """Their row of the CRM and their score row, and the tables with what else is theirs."""
        score = {
            "user_id": self.id,
            "current_score": self.score,
            "created_at": self.created_at.astimezone(UTC).replace(tzinfo=None),
        }
        rows = {
            "users": next(iter(self.facts["users"]), None),
            "user_call_scores": score if self.has_score_row else None,
        }
        return Scope(rows, self.facts, now)

    def out_of_place(self, queue: PlainQueue, now: datetime, rules: Rules) -> str | None:
        """The first fact that keeps them out of a dialer queue."""
        facts = (rule for rule in queue.rules if rule.is_of_the_facts)
        return next(
            (rule.name for rule in facts if rule.breach(self, queue.name, now, rules)), None
        )

    def where(self, now: datetime, rules: Rules) -> str | None:
        """The dialer queue they belong to by their facts."""
        queues = rules.centre.queues.items()
        belongs = (name for name, queue in queues if self.out_of_place(queue, now, rules) is None)
        return next(belongs, None)

    def broken_rules(self, queue: str, now: datetime, rules: Rules) -> dict[str, datetime | None]:
        """The rules of a dialer queue that they break, in their order.

        With when each is over by itself, where it is known.
        """
        return dict(self._breaches(queue, now, rules))

    def _breaches(
        self, queue: str, now: datetime, rules: Rules
    ) -> Iterator[tuple[str, datetime | None]]:
        for rule in rules.centre.queues[queue].rules:
            if breach := rule.breach(self, queue, now, rules):
                yield rule.name, breach if isinstance(breach, datetime) else None

    def broken(self, queue: str, now: datetime, rules: Rules) -> str | None:
        """The first of them; None for who may be handed out."""
        return next((name for name, _ in self._breaches(queue, now, rules)), None)

    def rests_until(self, queue: str, now: datetime, rules: Rules) -> datetime | None:
        """When the times of who breaks no lasting rule have passed; None for whoever does."""
        found = self.broken_rules(queue, now, rules)
        times = [at for at in found.values() if at is not None]
        return max(times) if next(iter(found), None) in rules.centre.resting and times else None

    def held_back(self, now: datetime, rules: Rules, queue: str) -> str | None:
        """What keeps back who is due a call: everything but the times that their outcome asks for.

        `queue`: where the promise says that they are, should they be nowhere by their facts.
        """
        where = self.where(now, rules)
        if where is None:
            return self.out_of_place(rules.centre.queues[queue], now, rules)
        broken = (name for name, _ in self._breaches(where, now, rules))
        return next((name for name in broken if name not in NOT_FOR_WHO_IS_DUE), None)

    def has_converted(self, now: datetime, rules: Rules) -> bool:
        """They are in the pool of a dialer queue, and have reached what it is for."""
        if not self.in_crm or self.queue is None:
            return False
        queue = rules.centre.queues[self.queue]
        found = {rule.name: bool(rule.breach(self, queue.name, now, rules)) for rule in queue.rules}
        goals = [found[rule.name] for rule in queue.rules if rule.is_converting]
        return any(goals) and all(goals) and not any(found[name] for name in queue.conversion_needs)

    def score_after(self, outcome: Outcome) -> int:
        """Monotonic: a cap keeps a score from growing, and never lowers it."""
        grown = max(0, self.score + outcome.score + penalty(self.attempts))
        return max(self.score, min(200, grown)) if outcome.capped else grown


def _called_enough(person: Person, queue: str, now: datetime, rules: Rules) -> Breach:
    most = rules.calls_per_day.get(queue)
    today = sorted((at for at in person.calls if at > now - DAY), reverse=True)
    return today[most - 1] + DAY if most and len(today) >= most else False


def _until(at: datetime | None, least: timedelta | None, now: datetime) -> Breach:
    """Until `least` after `at`, should that be to come."""
    return at + least if at and least is not None and at + least > now else False


LASTING: dict[str, Broken] = {
    "not_in_crm": lambda person, *_: not person.in_crm,
    "opted_out": lambda person, *_: person.has_opted_out and person.in_crm,
    "quarantined": lambda person, *_: person.is_set_aside and person.in_crm,
    "closed": lambda person, queue, *_: queue in person.closed and person.in_crm,
    "in_other_queue": lambda person, queue, *_: person.queue != queue,
    "inactive": lambda person, *_: person.has_score_row and not person.is_active,
    "attempts_used_up": lambda person, _, __, rules: (
        rules.attempts is not None and person.attempts >= rules.attempts
    ),
    "do_not_contact": lambda person, *_: (
        person.in_crm and (person.is_suppressed or person.is_phone_suppressed)
    ),
}
RESTING: dict[str, Broken] = {
    "cooling_down": lambda person, _, now, __: _until(person.next_call_after, timedelta(), now),
    "promised": lambda person, *_: person.is_promised(),
    "called_enough_today": _called_enough,
    "called_lately": lambda person, queue, now, rules: _until(
        person.last_call_at, rules.cool_down.get(queue), now
    ),
    "offered_lately": lambda person, _, now, rules: _until(person.offered_at, rules.offer_gap, now),
    "outside_calling_hours": lambda person, _, now, rules: (
        not rules.is_open(person.place, now) and rules.opens(person.place, now)
    ),
}
PASSING = tuple(RESTING)[2:]
EVERYWHERE = {
    name: PlainRule(
        name,
        breach,
        is_resting=name in RESTING,
        is_converting=False,
        is_of_the_facts=name in {"not_in_crm", "opted_out"},
    )
    for name, breach in (LASTING | RESTING).items()
}
"""The rules of every dialer queue, in their order; but for those about unreadable numbers."""
BEFORE = ("not_in_crm", "opted_out", "quarantined", "closed")
"""Those that come before a dialer queue's own, unless the queue says where; others come behind."""
NOT_FOR_WHO_IS_DUE = {"in_other_queue", "cooling_down", "too_new", "promised"}
