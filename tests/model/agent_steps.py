"""Steps of agents: ask for a user, finish an assignment, change status. Each answer is compared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule

from assignment_workers.assignment.answers import (
    Assigned,
    CommandAnswer,
    Empty,
    FinishAnswer,
    Finished,
    Held,
    RequestAnswer,
    Stated,
)
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
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
from assignment_workers.schema.tables import AgentStatus
from tests.model.choices import (
    AFTER,
    AGENTS,
    ANY_QUEUE,
    ANYBODY,
    CALLED,
    FOREIGN,
    LATE,
    MOVES,
    VERSIONS,
    WAITS,
    WAYS,
    Move,
)
from tests.model.dialer import Dialer
from tests.model.records import Came, Said
from tests.model.rules import Centre
from tests.model.trades import Trade
from tests.support.world import DAY, HOUR, SECOND, World


class AgentSteps(RuleBasedStateMachine):
    """Does each step to the database and to the dialer in memory; both must give the same answer."""

    holds = Bundle("holds")
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

    @rule(target=holds, moves=MOVES)
    def work(self, moves: Sequence[Move]) -> object:
        """What agents do all day: ask for a user, and finish whom they have."""
        return multiple(*self._work(moves))

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

    @rule(seconds=WAITS)
    def wait(self, seconds: int) -> None:
        """Time goes by: leases lapse, who was skipped has rested, the clocks change."""
        self.world.now += timedelta(seconds=seconds)
        self.dialer.now = self.world.now

    @rule()
    def expire(self) -> None:
        assert self.world.expire() == self.dialer.expire()
