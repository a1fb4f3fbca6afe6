"""The machine: every step that the assignment model takes, with its settings and its arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as some
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import (
    Assigned,
    CommandAnswer,
    Done,
    Empty,
    FinishAnswer,
    Finished,
    Held,
    Refused,
    RequestAnswer,
    Stated,
)
from assignment_workers.assignment.callbacks import missed_calls
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations.drain import drain
from assignment_workers.assignment.generations.pause import pause, resume
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.lifecycle.moves import (
    Accept,
    Close,
    Complete,
    Defer,
    Owner,
    Release,
    Renew,
    Skip,
)
from assignment_workers.assignment.pools import convert
from assignment_workers.assignment.reports.doctor import repair
from assignment_workers.assignment.reports.explain import explain, funnel
from assignment_workers.assignment.reports.explanation import QueueVerdict
from assignment_workers.assignment.suppressions import do_not_contact, lift
from assignment_workers.errors import StaleTerm
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import POLICIES, loaded
from assignment_workers.schema.tables import AgentStatus, SuppressionKind
from tests.model.agents import Limits
from tests.model.compared import TABLES, as_dialled, as_the_model_has, empty, rows_of
from tests.model.dialer import Came, Dialer, Said, small
from tests.model.rules import MINUTE, Centre, Missed, Person, Rules, Windows
from tests.model.trades import Trade
from tests.support.world import DAY, HOUR, SECOND, User, World

SHARES = {"claims": 24, "clinic": 48, "charity": 48}
"""By trade: of how many examples of Hypothesis's profile one is run."""
STEPS = 50
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


def of_the_trade(named: Callable[[Machine], Sequence[T]]) -> some.SearchStrategy[T]:
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
IS_ACTIVE = "UPDATE user_call_scores SET is_active = NOT is_active WHERE user_id = :user"
FACTS = of_the_trade(lambda machine: [*machine.trade.changes, "is_active", "in_crm"])


class Machine(RuleBasedStateMachine):
    """Does each step to the database and to the dialer in memory; they must say the same."""

    holds = Bundle("holds")
    requests = Bundle("requests")
    generations = Bundle("generations")
    trade: Trade
    centre: Centre

    def __init__(self, world: World, trade: Trade) -> None:
        super().__init__()
        self.world = world
        self.trade = trade
        self.centre = Centre.of(trade.dialer)
        self.dialer: Dialer
        self.held: dict[str, Held] = {}
        """By the request that they answered first."""

    @initialize(
        target=generations,
        which=some.integers(0, 3),
        begins=some.sampled_from(BEGINNINGS),
        place=PLACES,
        are_all=some.sampled_from([True] * 7 + [False]),
    )
    def open(self, which: int, begins: datetime, place: str, *, are_all: bool) -> object:
        """Most runs begin with all dialer queues published, at an hour that is open somewhere."""
        given, rules = list(call_centres(self.centre).values())[which]
        begins = rules.opens(place, begins)
        empty(self.world, begins, given, self.trade)
        self.dialer = small(begins, self.world.settings, rules)
        people = list(self.dialer.users.values())
        self.trade.fill(self.world, people)
        self.world.add_scores(
            User(each.id, each.score, queue=each.queue, created_at=each.created_at)
            for each in people
            if each.has_score_row
        )
        self._read()
        numbers = [self.build(queue) for queue in self.centre.names[: None if are_all else 1]]
        for number in numbers:
            self.publish(number)
        return multiple(*numbers)

    def _read(self) -> None:
        """The facts are the CRM's; what follows from them is what is looked at."""
        users = self.dialer.users
        for user, facts in self.trade.facts(self.world, users).items():
            users[user].facts = facts

    @rule(target=holds, moves=MOVES)
    def work(self, moves: Sequence[Move]) -> object:
        """What agents do all day: ask for a user, and finish whom they have."""
        return multiple(*self._work(moves))

    @rule(
        target=holds,
        queue=QUEUES,
        before=MOVES,
        between=MOVES,
        seconds=some.sampled_from([0, 0, 300, 900]),
        order=some.permutations([0, 1]),
    )
    def rebuild(
        self,
        queue: str,
        before: Sequence[Move],
        between: Sequence[Move],
        *,
        seconds: int,
        order: Sequence[int],
    ) -> object:
        """The same, while two generations are built; they may be published in the wrong order."""
        new = self._work(before)
        numbers = [self.build(queue)]
        self.wait(seconds)
        new += self._work(between)
        numbers.append(self.build(queue))
        for each in order:
            self.publish(numbers[each])
        return multiple(*new)

    @rule(
        target=holds,
        agents=some.permutations([1, 2, 3]),
        queue=ANY_QUEUE,
        after=AFTER,
        late=some.sampled_from([-1, 0, 599, 600]),
        outcomes=some.lists(CALLED, min_size=3, max_size=3),
        moves=MOVES,
    )
    def promise(
        self,
        agents: Sequence[int],
        queue: str | None,
        after: timedelta,
        *,
        late: int,
        outcomes: Sequence[str],
        moves: Sequence[Move],
    ) -> object:
        """Two users are promised a callback, which are due when everybody works again."""
        new: list[str] = []
        for agent in agents[:2]:
            if agent not in self.dialer.active():
                new += self._ask([self.world.request(agent, queue)])
            new += self._work([(agent, queue, "completed", self.centre.promising, after, 0)])
        self.wait(int(after.total_seconds()) + late)
        for outcome in outcomes:
            new += self._ask([self.world.request(agent, queue) for agent in agents])
            calls = [(agent, queue, "completed", outcome, after, 31) for agent in agents[1:]]
            new += self._work(calls)
            self.wait(900)
        return multiple(*new, *self._work(moves))

    def _work(self, moves: Sequence[Move]) -> list[str]:
        new: list[str] = []
        for agent, queue, way, outcome, after, seconds in moves:
            hold = self.dialer.active().get(agent)
            if hold is not None:
                self.wait(seconds)
                self._finish(hold.request_id, agent, hold.version, way, self._fit(outcome, after))
            else:
                new += self._ask([self.world.request(agent, queue)])
        return new

    @rule(target=holds, agent=ANYBODY, queue=ANY_QUEUE, late=LATE, fails=some.booleans())
    def ask_alone(self, agent: int, queue: str | None, late: int | None, *, fails: bool) -> object:
        """A turn that fails leaves nothing, and is tried again."""
        deadline = None if late is None else self.world.now + late * SECOND
        request = self.world.request(agent, queue, deadline=deadline)
        if fails:
            with suppress(ConnectionError), self.world.transaction() as transaction:
                given = self.world
                claim(transaction, [request], policies=given.policies, settings=given.settings)
                raise ConnectionError
        return multiple(*self._ask([request]))

    @rule(target=holds, asks=some.lists(some.tuples(ANYBODY, ANY_QUEUE), min_size=2, max_size=9))
    def ask_together(self, asks: list[tuple[int, str | None]]) -> object:
        return multiple(*self._ask([self.world.request(*each) for each in asks]))

    @rule(agent=ANYBODY, queue=ANY_QUEUE, which=some.integers(0, 100))
    def ask_again(self, agent: int, queue: str | None, which: int) -> None:
        """A request id that was answered before, by whom it may be."""
        known = list(self.dialer.answers)
        if known:
            name = known[which % len(known)]
            owner = self.dialer.answers[name][0]
            self._ask([self.world.request(each, queue, request_id=name) for each in (owner,)])
            self._ask([self.world.request(agent, queue, request_id=name)])

    def _ask(self, requests: Sequence[ClaimRequest]) -> list[str]:
        """Ask in one turn; returns the new holds."""
        broken = self._broken()
        answers = self.world.answer(*requests)
        new = set()
        saids = self.dialer.ask(requests)
        for request, said, answer in zip(requests, saids, answers, strict=True):
            if isinstance(answer, Assigned) and not answer.replayed:
                self.held[request.request_id] = answer.assignment
                new.add(request.request_id)
            assert self._shown(answer) == said, (request, answer)
        self._look_at_places(broken)
        for request, said, answer in zip(requests, saids, answers, strict=True):
            if isinstance(answer, Empty) and not self._is_old(request, said):
                for queue, why in answer.why.items():
                    assert why in self.dialer.may_be_why(request.agent_id, queue), answer
        return sorted(new)

    def _is_old(self, request: ClaimRequest, said: Said) -> bool:
        known = [answer for _, answer in self.dialer.answers.values() if answer is said]
        return not known

    def _shown(self, answer: RequestAnswer | FinishAnswer | CommandAnswer) -> Said:
        hold = None
        if isinstance(answer, Assigned | Finished):
            shown = answer.assignment
            (hold,) = [name for name, held in self.held.items() if held.id == shown.id]
            known = self.dialer.holds[hold]
            assert (shown.user_id, shown.agent_id) == (known.user, known.agent)
            assert (shown.queue, shown.rank, shown.source) == (
                known.queue,
                known.rank,
                known.source,
            )
        return Said(
            answer.outcome,
            getattr(answer, "code", None),
            hold,
            replayed=getattr(answer, "replayed", False),
        )

    def _broken(self) -> dict[tuple[str, int], tuple[str | None, datetime | None]]:
        """By place in what is published: the rule that the user breaks, and until when."""
        dialer = self.dialer
        return {
            (queue, user): (
                dialer.broken(user, queue),
                dialer.users[user].rests_until(queue, dialer.now, dialer.rules),
            )
            for queue, build in dialer.published().items()
            for user in build.places
        }

    def _look_at_places(
        self, broken: dict[tuple[str, int], tuple[str | None, datetime | None]]
    ) -> None:
        """Who was found ineligible is out, and the reason was true; or waits, until it ends.

        How far a claim looks is its own affair.
        """
        published, now = self.dialer.published(), self.dialer.now
        for queue, user, state, until, reason in self._places():
            place = published[queue].places[user]
            why, rests = broken[queue, user]
            if state == "out" and place.state in {"ready", "held"}:
                assert reason == why
                place.become("out", reason=reason)
                self.dialer.fail(user, reason)
            elif state == "waiting" and until > now and place.state == "ready":
                assert until == rests
                assert why in self.centre.resting
                place.become("waiting", until)

    def _places(self) -> list[tuple[Any, ...]]:
        return self.world.rows(
            "SELECT g.queue, e.user_id, e.state, e.available_from, e.reason"
            " FROM assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id"
            " WHERE g.state = 'published'"
        )

    @rule(name=holds, foreign=FOREIGN, version=VERSIONS, way=WAYS, outcome=CALLED, after=AFTER)
    def finish(
        self,
        name: str,
        foreign: int | None,
        version: int | None,
        *,
        way: str,
        outcome: str,
        after: timedelta,
    ) -> None:
        """A word about a hold that may have ended, from its agent or another."""
        agent = foreign or self.dialer.holds[name].agent
        self._finish(name, agent, version, way, self._fit(outcome, after))

    @rule(name=holds, way=WAYS, outcome=CALLED)
    def finish_twice(self, name: str, way: str, outcome: str) -> None:
        """The same message comes twice."""
        for _ in range(2):
            came = self._fit(outcome, HOUR)
            self._finish(name, self.dialer.holds[name].agent, 1, way, came)

    @rule(
        name=holds,
        outcome=CALLED,
        after=some.sampled_from([None, HOUR]),
        notes=some.sampled_from([None, "said so"]),
    )
    def complete_carelessly(
        self, name: str, outcome: str, after: timedelta | None, notes: str | None
    ) -> None:
        """What an outcome needs may be missing, and there may be what it does not take."""
        agent = self.dialer.holds[name].agent
        self._finish(name, agent, None, "completed", Came(outcome, after, notes))

    def _finish(self, name: str, agent: int, version: int | None, way: str, came: Came) -> None:
        who = Owner(self.held[name].id, agent, version)
        rest = came.after or HOUR
        call = came if way == "completed" else None
        said = self.dialer.finish(name, agent, version, way, call, rest=rest)
        assert self._shown(self._say(who, way, came, rest)) == said

    def _fit(self, outcome: str, after: timedelta) -> Came:
        """What a careful agent says: a callback time where one must be, at times where it may."""
        takes = self.centre.outcomes[outcome]
        is_given = takes.needs_callback or (takes.callback and after < DAY)
        return Came(outcome, after if is_given else None)

    def _say(self, who: Owner, way: str, came: Came, rest: timedelta) -> FinishAnswer:
        world = self.world
        match way:
            case "accepted":
                return world.move(Accept(who, world.settings.lease))
            case "deferred":
                return world.move(Defer(who, world.settings.defer_maximum, rest=rest))
            case "closed":
                return world.move(Close(who, "moved away"))
            case "completed":
                at = None if came.after is None else world.now + came.after
                return world.move(Complete(who, came.outcome, notes=came.notes, callback_at=at))
            case "skipped":
                return world.move(Skip(who, world.settings.skip_everyone))
            case "released":
                return world.move(Release(who))
            case _:
                return world.move(Renew(who, world.settings.lease))

    @rule(agent=ANYBODY, becomes=some.sampled_from([*AgentStatus, AgentStatus.AVAILABLE]))
    def state(self, agent: int, becomes: AgentStatus) -> None:
        """An agent logs in, goes on break, comes back, goes home."""
        said = self.dialer.state(agent, becomes.value)
        answer = self.world.run(agent_status.state, agent, becomes)
        shown = Said(
            answer.outcome,
            getattr(answer, "code", None),
            replayed=getattr(answer, "replayed", False),
        )
        assert shown == said
        if isinstance(answer, Stated):
            assert answer.state == self.dialer.agents[agent].state

    @rule(agent=AGENTS, ago=some.sampled_from([0, 0, 60, 299]))
    def give_a_sign(self, agent: int, ago: int) -> None:
        """A heartbeat that was gathered a while ago is kept."""
        known, at = self.dialer.agents[agent], self.world.now - ago * SECOND
        known.seen_at = max(known.seen_at or at, at)
        self.world.execute(
            "INSERT INTO assignment.agents_seen AS kept (agent_id, seen_at) VALUES (:agent, :at)"
            " ON CONFLICT (agent_id) DO UPDATE"
            " SET seen_at = greatest(kept.seen_at, excluded.seen_at)",
            agent=agent,
            at=at,
        )

    @rule(agent=AGENTS, queue=ANY_QUEUE, signs=some.lists(some.sampled_from([0, 1, 290, 310])))
    def talk_on(self, agent: int, queue: str | None, signs: Sequence[int]) -> None:
        """Somebody is accepted, and held for as long as signs of life come in time."""
        if agent not in self.dialer.active():
            self._ask([self.world.request(agent, queue)])
        hold = self.dialer.active().get(agent)
        if hold is not None:
            self._finish(hold.request_id, agent, None, "accepted", Came("no_answer"))
            for seconds in signs:
                self.wait(seconds)
                self.give_a_sign(agent, 0)
            self.wait(300)
            self.expire()

    @rule(agent=AGENTS, queue=ANY_QUEUE, lapses=some.integers(1, 4))
    def look_away(self, agent: int, queue: str | None, lapses: int) -> None:
        """Offers lapse one after the other, until the agent is not asked any more."""
        for _ in range(lapses):
            self._ask([self.world.request(agent, queue)])
            self.wait(120)
            self.expire()

    @rule()
    def tend(self) -> None:
        """The sessions of whoever fell silent end."""
        with self.world.engine.connect() as connection:
            silent = agent_status.silent(connection, self.world.now)
        done = self.world.run(agent_status.end_sessions, silent, silent_at=self.world.now)
        assert done == Done(counts={"ended": self.dialer.tend()})

    @rule(seconds=WAITS)
    def wait(self, seconds: int) -> None:
        """Time goes by: leases lapse, who was skipped has rested, the clocks change."""
        self.world.now += timedelta(seconds=seconds)
        self.dialer.now = self.world.now

    @rule(place=PLACES, seconds=some.sampled_from([-1, 0, 300]))
    def wait_for_the_opening(self, place: str, seconds: int) -> None:
        """Until it is open there, or just not yet."""
        until = self.dialer.rules.opens(place, self.dialer.now) + seconds * SECOND
        self.wait(max(0, int((until - self.dialer.now).total_seconds())))

    @rule()
    def expire(self) -> None:
        assert self.world.expire() == self.dialer.expire()

    @rule(target=generations, queue=QUEUES)
    def build(self, queue: str) -> int:
        number = self.world.build(queue)
        self.dialer.build(number, queue)
        return number

    @rule(number=generations)
    def publish(self, number: int) -> None:
        answer = self.world.publish(number)
        assert self._shown(answer) == self.dialer.publish(number)

    @rule(user=USERS, fact=FACTS)
    def change(self, user: int, fact: str) -> None:
        """A fact about a user turns over, in the CRM or in their score row."""
        person = self.dialer.users[user]
        if fact == "is_active":
            assert self.world.execute(IS_ACTIVE, user=user) == person.has_score_row
            person.is_active = person.is_active != person.has_score_row
        elif fact == "in_crm" or person.in_crm:
            self.world.execute(self.trade.changes[fact], user=user)
            self._read()

    @rule(target=holds, user=USERS, moves=MOVES)
    def come_and_go(self, user: int, moves: Sequence[Move]) -> object:
        """The CRM loses a user and has them again, twice, each time with a build between."""
        new = []
        for _ in range(2):
            for _ in range(2):
                self.change(user, "in_crm")
                new += self._work(moves)
            for queue in self.centre.names:
                self.publish(self.build(queue))
        return multiple(*new)

    @rule(queue=QUEUES, user=USERS)
    def clean_conversions(self, queue: str, user: int) -> None:
        """Somebody reaches what the dialer queue is for, while held if anybody is."""
        self.change(min(self.dialer.held(), default=user), self.trade.goals[queue])
        policy = POLICIES[queue]
        with self.world.engine.connect() as connection:
            found = convert.converted(connection, policy, after=0, now=self.world.now)
        done = self.world.run(
            convert.remove_converted, policy, list(self.dialer.users), policies=POLICIES
        )
        assert found == self.dialer.remove_converted(queue, list(self.dialer.users))
        assert isinstance(done, Done)
        assert done.counts == {"converted": len(found)}

    @rule(queue=QUEUES)
    def pause_or_resume(self, queue: str) -> None:
        """At most one dialer queue is paused at a time, or hardly anybody would be handed out."""
        for each in self.dialer.paused or {queue}:
            operation = resume if each in self.dialer.paused else pause
            assert self.world.run(operation, each) == Done()
            again = self.world.run(operation, each)
            assert again == Done(replayed=True)
        self.dialer.paused = set() if self.dialer.paused else {queue}

    @rule(queue=QUEUES)
    def drain(self, queue: str) -> None:
        done = self.world.run(drain, queue, by="test")
        assert done == Done(counts={"drained": self.dialer.drain(queue)})

    @rule(user=USERS, by_phone=some.booleans())
    def suppress_or_lift(self, user: int, *, by_phone: bool) -> None:
        """A user, or whoever has their number, asks not to be called; or thinks better of it."""
        person = self.dialer.users[user]
        phone = person.phone if by_phone else None
        is_suppressed = person.is_phone_suppressed if phone else person.is_suppressed
        whom: dict[str, Any] = {"phone": phone} if phone else {"user": user}
        if is_suppressed:
            kind = SuppressionKind.DO_NOT_CONTACT
            answer = self.world.run(
                lift, kind, reader=Reader(), **whom, by="test", why="asked again"
            )
        else:
            answer = self.world.run(
                do_not_contact, reader=Reader(), **whom, reason="asked", by="test"
            )
        assert answer == Done()
        for each in self.dialer.users.values():
            if phone and each.phone == phone:
                each.is_phone_suppressed = not is_suppressed
        if phone is None:
            person.is_suppressed = not is_suppressed

    @rule(user=USERS)
    def let_go(self, user: int) -> None:
        """An operator releases whoever is set aside, or is told that nobody is."""
        found = [each.id for each in self.dialer.users.values() if each.is_set_aside]
        whom = found[0] if found else user
        answer = self.world.run(
            lift, SuppressionKind.QUARANTINE, reader=Reader(), user=whom, by="test", why="seen to"
        )
        assert isinstance(answer, Done if self.dialer.let_go(whom) else Refused)

    @rule(user=USERS, queue=QUEUES)
    def open_again(self, user: int, queue: str) -> None:
        """An operator opens a dialer queue that an agent closed for a user."""
        closed = [
            (each.id, its) for each in self.dialer.users.values() for its in sorted(each.closed)
        ]
        whom, where = closed[0] if closed else (user, queue)
        kind = SuppressionKind.CLOSED
        answer = self.world.run(
            lift, kind, reader=Reader(), user=whom, queue=where, by="test", why="is back"
        )
        assert isinstance(answer, Done if closed else Refused)
        self.dialer.users[whom].closed.discard(where)

    @rule(user=USERS, queue=QUEUES, minutes=some.sampled_from([-20, 0, 5]))
    def others_promise(self, user: int, queue: str, minutes: int) -> None:
        """The dialer's own code promises a callback, for a dialer queue that it guesses."""
        at = self.world.now + minutes * MINUTE
        self.world.execute(
            "INSERT INTO callbacks (user_id, scheduled_for, queue_type, original_call_session_id)"
            " VALUES (:user, timezone('UTC', CAST(:at AS timestamptz)), :queue, gen_random_uuid())",
            user=user,
            at=at,
            queue=queue,
        )
        self.dialer.promise(user, None, queue, at)

    @rule(target=holds, callers=some.lists(CALLERS, min_size=1, max_size=3), moves=MOVES)
    def call_in(self, callers: Sequence[int], moves: Sequence[Move]) -> object:
        """Users call and nobody is there; webhooks come twice; then agents work."""
        for caller in callers:
            for _ in range(1 + caller % 2):
                self._miss(caller, f"{self.world.now} {caller}")
        self.match()
        return multiple(*self._work(moves))

    @rule(which=some.integers(0, 100))
    def webhook_again(self, which: int) -> None:
        """The telephony tells of a call that was told of before."""
        if self.dialer.missed:
            call = self.dialer.missed[which % len(self.dialer.missed)].call
            self._miss(int(call.split()[-1]), call)

    def _miss(self, caller: int, call: str) -> None:
        known = self.dialer.users.get(caller)
        phone = (known.phone if known else "+442079461234" if caller else None) or "anonymous"
        at = self.world.now - (1 + len(self.dialer.missed)) * timedelta(milliseconds=1)
        self.world.execute(
            "INSERT INTO missed_calls (phone_number, missed_at, reason, twilio_call_sid) VALUES"
            " (:phone, timezone('UTC', CAST(:at AS timestamptz)), 'agents_busy', :call)",
            phone=as_dialled(phone),
            at=at,
            call=call,
        )
        self.dialer.miss(Missed(phone, at, call))

    @rule()
    def match(self) -> None:
        """The job that finds who called."""
        ran = jobs.run(self.world.engine, Job("missed_calls.match", "hand"), self._match)
        assert (ran.counts["matched"], ran.counts["for_operator"]) == self.dialer.match()

    def _match(self, work: Work) -> Counts:
        at = Work(work.connection, work.side_connection, self.world.now, work.job, work.number)
        return missed_calls.match(at, loaded(), None, self.world.settings)

    @rule()
    def restart(self) -> None:
        """Another sequencer takes over: what the one before still tries is refused."""
        world = self.world
        world.execute("UPDATE assignment.sequencer SET term = term + 1")
        with pytest.raises(StaleTerm):
            world.expire()
        world.term += 1
        world.execute(
            "INSERT INTO assignment.events (at, kind, term) VALUES (:at, 'term_begun', :term)",
            at=world.now,
            term=world.term,
        )

    @rule(user=USERS, queue=QUEUES)
    def explain(self, user: int, queue: str) -> None:
        """Where a user stands, rule by rule, and where all of a pool do."""
        dialer, world = self.dialer, self.world
        with world.engine.connect() as connection:
            found = explain(
                connection,
                loaded(),
                None,
                user,
                policies=world.policies,
                settings=world.settings,
                now=world.now,
            )
            counted = funnel(
                connection, world.policies[queue], settings=world.settings, now=world.now
            )
        person = dialer.users[user]
        if found is None:
            assert not person.in_crm
            assert not person.has_score_row
        else:
            assert [(each.source, each.why) for each in found.due] == dialer.due(user)
            for verdict in found.queues:
                self._is_true(user, verdict.queue, verdict.why)
                if person.in_crm:
                    assert {each.rule: each.until for each in verdict.rules if not each.holds} == (
                        person.broken_rules(verdict.queue, dialer.now, dialer.rules)
                    )
                    self._is_meant(person, verdict)
        stands = Counter(dialer.stands(each, queue) for each in dialer.pool(queue))
        assert counted.claimable == stands.pop("claimable", 0)
        assert {each.why: each.users for each in counted.steps} == stands

    def _is_meant(self, person: Person, verdict: QueueVerdict) -> None:
        """The dialer's own rules are what their texts say."""
        for each in verdict.rules:
            if (meaning := self.trade.meanings.get(each.rule)) is not None:
                assert each.holds is not meaning(person, self.dialer.now), each

    def _is_true(self, user: int, queue: str, why: str) -> None:
        stands = self.dialer.stands(user, queue)
        if stands in {"not_in_generation", "drained", "taken_out", "waiting", "claimable"}:
            if queue in self.dialer.paused:
                stands = "paused"
            elif queue not in self.dialer.published():
                stands = "never_built"
        assert why == stands

    @invariant()
    def tables_are_those_of_the_model(self) -> None:
        """Every row that the operations write, in one read."""
        found = self.world.value(
            f"SELECT json_build_object({', '.join(map(as_the_model_has, TABLES))})"
        )
        known = rows_of(self.dialer)
        for table in TABLES:
            assert Counter(map(tuple, found[table] or ())) == Counter(known[table]), table

    def teardown(self) -> None:
        """The history that the events tell breaks nothing either, and there is nothing to mend."""
        if not hasattr(self, "dialer"):
            return  # it was not opened
        with self.world.engine.connect() as connection:
            breaches = check(
                connection,
                dialer=loaded(),
                settings=self.world.settings,
                bound=timedelta(seconds=1 << 30),
            )
        assert breaches == []
        assert self.world.unhealthy() == []
        assert self.world.run(repair) == Done(counts={"marked_held": 0, "given_back": 0})
