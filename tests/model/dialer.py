"""A dialer in memory: what the operations promise, in the plainest Python, without a database."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.settings import Settings
from tests.model.agents import Agent
from tests.model.rules import PASSING, Centre, Missed, Person, Promise, Rules
from tests.support.world import DAY, HOUR, SECOND

PREFERRED = timedelta(minutes=10)
"""How long a callback is kept for the agent who promised it."""
TRIED_AGAIN = timedelta(minutes=15)
"""When a callback is tried again that nobody answered, or whose user may not be called now."""


BECOMES = {
    "renewed": ("active", None),
    "accepted": ("active", None),
    "deferred": ("skipped", "deferred"),
    "closed": ("skipped", "closed"),
}
"""The state, and how it came to it, of a hold of which this is said; of others that very word."""


@dataclass
class Hold:
    """An assignment. It is known by the request that it answered."""

    request_id: str
    user: int
    agent: int
    queue: str
    source: str
    rank: int
    lease: datetime
    state: str = "active"
    version: int = 1
    ended_at: datetime | None = None
    outcome: str | None = None
    accepted_at: datetime | None = None
    how: str | None = None
    """How it ended, where its state leaves that open."""
    until: datetime | None = None
    """Before then nobody is offered the user."""
    claimed_at: datetime | None = field(default=None, compare=False)
    promise: Promise | None = field(default=None, compare=False)
    """The callback that it is for."""
    missed: Missed | None = field(default=None, compare=False)
    """The missed call that it is for."""
    ended: int | None = field(default=None, compare=False)
    """Which of all steps ended it."""


@dataclass
class Place:
    """An entry."""

    rank: int
    state: str = "ready"
    until: datetime | None = None
    reason: str | None = None

    def become(self, state: str, until: datetime | None = None, reason: str | None = None) -> None:
        self.state, self.until, self.reason = state, until, reason


@dataclass
class Build:
    """A generation. `begun` says after which of all steps."""

    queue: str
    places: dict[int, Place]
    begun: int
    state: str = "building"


@dataclass(frozen=True)
class Said:
    """What an answer says, as far as it can be known beforehand."""

    outcome: str
    code: Code | None = None
    hold: str | None = None
    """The request that the hold answered first."""
    replayed: bool = False


@dataclass(frozen=True)
class Came:
    """What came of a call, as the agent says it. `after`: a callback is promised for then."""

    outcome: str
    after: timedelta | None = None
    notes: str | None = "said so"

    def is_well_said(self, centre: Centre) -> bool:
        """What the outcome needs is given, and what it does not take is not."""
        outcome = centre.outcomes[self.outcome]
        if outcome.needs_notes and not self.notes:
            return False
        return outcome.callback if self.after is not None else not outcome.needs_callback


@dataclass(frozen=True)
class Converted:
    """A conversion, with the agents who are credited, the primary one first."""

    user: int
    queue: str
    kind: str
    episode: int
    score: int
    attempts: int
    agents: tuple[int, ...]


@dataclass
class Dialer:
    """Everything that the operations change. Each method is one turn or one job."""

    now: datetime
    settings: Settings
    rules: Rules
    allowed: dict[int, list[str] | None]
    """By agent: the dialer queues that they may take from; None for one who is not active."""
    users: dict[int, Person]
    agents: dict[int, Agent] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    builds: dict[int, Build] = field(default_factory=dict)
    answers: dict[str, tuple[int, Said]] = field(default_factory=dict)
    """By request id: whose it is, and its one answer."""
    paused: set[str] = field(default_factory=set)
    conversions: list[Converted] = field(default_factory=list)
    callbacks: list[Promise] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    steps: Iterator[int] = field(default_factory=itertools.count)

    @property
    def centre(self) -> Centre:
        return self.rules.centre

    def active(self) -> dict[int, Hold]:
        """By agent."""
        return {each.agent: each for each in self.holds.values() if each.state == "active"}

    def held(self) -> set[int]:
        return {each.user for each in self.active().values()}

    def published(self) -> dict[str, Build]:
        """By dialer queue."""
        return {each.queue: each for each in self.builds.values() if each.state == "published"}

    def places(self, user: int) -> list[Place]:
        """Where the user stands in what is published."""
        found = self.published().values()
        return [build.places[user] for build in found if user in build.places]

    def broken(self, user: int, queue: str) -> str | None:
        """The first rule of this dialer queue's policy that the user breaks now."""
        return self.users[user].broken(queue, self.now, self.rules)

    def ask(self, requests: Sequence[ClaimRequest]) -> list[Said]:
        """The answers to different request ids, in one turn."""
        if any(each.request_id not in self.answers for each in requests):
            self.expire()
            for place in self._all_places():
                if place.state == "waiting" and place.until and place.until <= self.now:
                    place.become("ready")
        return [self._answer(each) for each in requests]

    def _all_places(self) -> Iterator[Place]:
        for build in self.published().values():
            yield from build.places.values()

    def _answer(self, request: ClaimRequest) -> Said:
        if request.request_id in self.answers:
            agent, said = self.answers[request.request_id]
            if agent != request.agent_id:
                return Said("refused", Code.REQUEST_ID_TAKEN)
            return Said(said.outcome, said.code, said.hold, replayed=said.hold is not None)
        said = self._decide(request)
        # Who is told to ask again may use the same request id.
        if said.outcome != "unavailable" and said.code != Code.CALL_GAP:
            if request.agent_id in self.agents:
                self.agents[request.agent_id].asked_at = self.now
            self.answers[request.request_id] = (request.agent_id, said)
        return said

    def _decide(self, request: ClaimRequest) -> Said:
        if request.deadline is not None and request.deadline <= self.now:
            return Said("too_late")
        if request.agent_id not in self.allowed:
            return Said("refused", Code.UNKNOWN_AGENT)
        allowed = self.allowed[request.agent_id]
        if allowed is None:
            return Said("refused", Code.INACTIVE_AGENT)
        hold = self.active().get(request.agent_id)
        away = self.agents[request.agent_id].turned_away(self.now, self.rules.limits)
        if hold is None and away is not None:
            return Said("refused", away)
        queues = [
            each for each in self.centre.names if each in allowed and request.queue in (None, each)
        ]
        if not queues:
            return Said("refused", Code.QUEUE_NOT_ALLOWED)
        if hold is not None:
            return Said("assigned", hold=hold.request_id, replayed=True)
        return self._hand_out(request, queues)

    def _hand_out(self, request: ClaimRequest, queues: list[str]) -> Said:
        """Callbacks come first, then missed calls, then the dialer queues."""
        going = set(queues) - self.paused
        if (promise := self.due_callback(request.agent_id, going)) is not None:
            return self._hold(request, self._where(promise.user), promise.user, promise=promise)
        if (missed := self.due_missed_call(request.agent_id, going)) is not None:
            assert missed.user is not None
            return self._hold(request, self._where(missed.user), missed.user, missed=missed)
        for queue in queues:
            if (user := self.best(request.agent_id, queue)) is not None:
                return self._hold(request, queue, user)
        if self.paused.issuperset(queues):
            return Said("paused")
        if going - self.published().keys():
            return Said("unavailable")
        return Said("empty")

    def _where(self, user: int) -> str:
        queue = self.users[user].where(self.now, self.rules)
        assert queue is not None
        return queue

    def _rests(self, user: int) -> bool:
        """Somebody skipped or deferred them: they are not offered to anybody, from any source."""
        return any(at > self.now for each, at in self._put_off(0).items() if each == user)

    def due_callback(self, agent: int, queues: Collection[str]) -> Promise | None:
        """The oldest promise that the agent may keep; who may not be called now is put aside."""
        held, skipped, fit = self.held(), self._skipped(agent), []
        for user in self.users.values():
            promise = user.promise
            if promise is None or not user.is_promised() or not promise.is_due(self.now):
                continue
            if user.id in held or self._rests(user.id):
                continue
            why = user.held_back(self.now, self.rules, promise.queue)
            if why is not None:
                late = why not in PASSING and self.now >= promise.at + DAY
                over = why in self.centre.ends_a_promise or late
                promise.become(
                    "cancelled" if over else "pending", None if over else self.now + TRIED_AGAIN
                )
                continue
            is_kept = self.now < promise.at + PREFERRED and self._is_active(promise.agent)
            if user.id not in skipped and user.where(self.now, self.rules) in queues:
                fit += [promise] if promise.agent == agent or not is_kept else []
        return min(fit, key=lambda each: (each.at, each.user), default=None)

    def _is_active(self, agent: int | None) -> bool:
        return agent is not None and self.allowed.get(agent) is not None

    def due_missed_call(self, agent: int, queues: Collection[str]) -> Missed | None:
        """The oldest whom the agent may call; who may not be called is put aside."""
        held, skipped, fit = self.held(), self._skipped(agent), []
        followed_up = {each.call for each in self.missed if each.status == "followed_up"}
        for each in self.missed:
            if each.user is None or not each.is_due(self.now):
                continue
            user = self.users[each.user]
            if user.id in held or self._rests(user.id):
                continue
            why = user.held_back(self.now, self.rules, self.centre.names[0])
            if each.call in followed_up or why in self.centre.ends_a_promise:
                each.become("cancelled")
            elif why in PASSING:
                each.become("pending", self.now + TRIED_AGAIN)
            elif why is not None:
                each.become("for_operator")
            elif user.id not in skipped and user.where(self.now, self.rules) in queues:
                fit.append(each)
        return min(fit, key=lambda each: each.at, default=None)

    def _skipped(self, agent: int) -> set[int]:
        """Whom they skipped lately."""
        return {
            hold.user
            for hold in self.holds.values()
            if (hold.state, hold.how, hold.agent) == ("skipped", None, agent)
            and hold.ended_at is not None
            and hold.ended_at > self.now - self.settings.skip_agent
        }

    def best(self, agent: int, queue: str) -> int | None:
        """The user of the best rank whom the agent may have from this dialer queue."""
        build = self.published().get(queue)
        if build is None or queue in self.paused:
            return None
        skipped, held = self._skipped(agent), self.held()
        may = {
            place.rank: user
            for user, place in build.places.items()
            if place.state == "ready"
            and user not in skipped
            and user not in held
            and self.broken(user, queue) is None
        }
        best = may[min(may)] if may else None
        assert best is None or not self._rests(best)
        return best

    def _hold(
        self,
        request: ClaimRequest,
        queue: str,
        user: int,
        *,
        promise: Promise | None = None,
        missed: Missed | None = None,
    ) -> Said:
        name = request.request_id
        source = "callback" if promise else "missed_call" if missed else "queue"
        self.holds[name] = Hold(
            name,
            user,
            request.agent_id,
            queue,
            source,
            self.published()[queue].places[user].rank if source == "queue" else 0,
            self.now + self.settings.offer,
            claimed_at=self.now,
            promise=promise,
            missed=missed,
        )
        self.users[user].offered_at = self.now
        for place in self.places(user):
            if place.state in {"ready", "waiting"}:
                place.become("held")
        return Said("assigned", hold=name)

    def expire(self) -> int:
        """Work lives by its agent's signs of life, an offer by being accepted."""
        ended = 0
        for hold in self.active().values():
            agent = self.agents[hold.agent]
            if hold.lease > self.now:
                continue
            lives = agent.lives_until(hold.accepted_at, self.now, self.settings.lease)
            if lives is not None:
                hold.lease = lives
                continue
            ended += 1
            self._end(hold, "expired", how=None if hold.accepted_at else "offer_lapsed")
            if hold.accepted_at is None:
                agent.lets_lapse(self.now, self.settings.offers_lapsed)
            else:
                agent.moves("available", self.now)
        return ended

    def state(self, agent: int, becomes: str) -> Said:
        """The agent says what they are about, and loses an offer that they walk away from."""
        if agent not in self.agents:
            return Said("refused", Code.UNKNOWN_AGENT)
        known, hold = self.agents[agent], self.active().get(agent)
        if hold and hold.accepted_at and becomes in {"available", "wrap_up"}:
            becomes = "on_call"
        if known.state == becomes and not (known.offers_lapsed and becomes == "available"):
            return Said("stated", replayed=True)
        known.states(becomes, self.now)
        if becomes in {"break", "offline"} and hold and hold.accepted_at is None:
            self._end(hold, "released")
            known.moves("available", self.now)
        return Said("stated")

    def tend(self) -> int:
        """The sessions of whoever is silent end."""
        active = self.active()
        found = [
            each
            for agent, each in self.agents.items()
            if agent not in active and each.is_silent(self.now)
        ]
        for each in found:
            each.states("offline", self.now)
        return len(found)

    def _end(
        self,
        hold: Hold,
        state: str,
        outcome: str | None = None,
        *,
        how: str | None = None,
        until: datetime | None = None,
    ) -> None:
        hold.state, hold.version, hold.ended_at = state, hold.version + 1, self.now
        hold.outcome, hold.how, hold.until, hold.ended = outcome, how, until, next(self.steps)
        for place in self.places(hold.user):
            if state == "completed" or how == "closed":
                if place.state != "out":
                    place.become("out", reason=how or state)
            elif place.state == "held":
                place.become(*(("waiting", until) if until else ("ready",)))

    def finish(
        self,
        name: str,
        agent: int,
        version: int | None,
        way: str,
        came: Came | None = None,
        *,
        rest: timedelta | None = None,
    ) -> Said:
        """What the agent says about this hold, with the version that they name.

        `rest`: for how long a user is deferred.
        """
        hold = self.holds[name]
        if came is not None and not came.is_well_said(self.centre):
            return Said("refused", Code.MALFORMED)
        if agent != hold.agent:
            return Said("refused", Code.NOT_OWNER)
        outcome = came.outcome if came else None
        becomes, how = BECOMES.get(way, (way, None))
        if hold.state != "active":
            same = (hold.state, hold.how, hold.outcome) == (becomes, how, outcome)
            if same and version in {None, hold.version - 1}:
                return Said(way, hold=name, replayed=True)
            return Said("refused", Code.NOT_ACTIVE)
        if version not in {None, hold.version}:
            return Said("refused", Code.STALE_VERSION)
        if becomes == "active":
            return self._work_on(hold, way)
        until = {
            "skipped": self.now + self.settings.skip_everyone,
            "deferred": self.now + (rest or timedelta()),
        }.get(way)
        self._end(hold, becomes, outcome, how=how, until=until)
        self._settle(hold, outcome)
        known = self.agents[agent]
        if came is not None:
            known.moves("wrap_up", self.now, calls=1)
            self._was_called(hold, came.outcome, came.after)
        else:
            known.moves("available", self.now)
        if how == "closed":
            self._close(self.users[hold.user], hold.queue)
        return Said(way, hold=name)

    def _work_on(self, hold: Hold, way: str) -> Said:
        if way == "accepted" and hold.accepted_at is not None:
            return Said(way, hold=hold.request_id, replayed=True)
        hold.accepted_at = hold.accepted_at or self.now
        hold.lease = max(hold.lease, self.now + self.settings.lease)
        self.agents[hold.agent].moves("on_call", self.now)
        return Said(way, hold=hold.request_id)

    def _close(self, user: Person, queue: str) -> None:
        user.closed.add(queue)
        if user.promise and user.is_promised():
            user.promise.become("cancelled")

    def _settle(self, hold: Hold, outcome: str | None) -> None:
        """What becomes of the callback or missed call that the hold was for."""
        if hold.promise is not None:
            self._called_back(hold.promise, hold.until, outcome)
        if hold.missed is not None and hold.missed.status == "pending":
            if hold.until is not None:
                hold.missed.become("pending", hold.until)
            elif outcome is not None or hold.how == "closed":
                hold.missed.become("followed_up")

    def _was_called(self, hold: Hold, outcome: str, after: timedelta | None) -> None:
        user, rules = self.users[hold.user], self.centre.outcomes[outcome]
        if not user.has_score_row:
            user.has_score_row, user.queue, user.created_at = True, hold.queue, self.now
        user.attempts += 1
        user.score = user.score_after(rules)
        user.successes += rules.success
        user.has_opted_out |= rules.terminal
        user.last_call_at, user.last_outcome = self.now, outcome
        user.calls.append(self.now)
        if after is not None:
            user.next_call_after = self.now + after
        else:
            user.next_call_after = self.now + rules.delay if rules.delay else None
        if rules.keeps:
            for each in self.missed:
                if each.user == user.id and each.status == "pending" and each.at <= self.now:
                    each.become("followed_up")
        if (rules.terminal or after is not None) and user.promise and user.is_promised():
            user.promise.become("cancelled")
        if after is not None:
            self.promise(user.id, hold.agent, hold.queue, self.now + after)
        if rules.converts:
            self.remove_converted(hold.queue, [user.id])

    def _called_back(self, promise: Promise, until: datetime | None, outcome: str | None) -> None:
        """Who puts the user off puts it off; an unanswered call too, once; any other ends it."""
        if promise.status != "pending":
            return
        if until is not None:
            promise.become("pending", until)
        elif outcome is not None and self.centre.outcomes[outcome].retried:
            again = promise.retries == 0
            promise.retries += again
            promise.become(
                "pending" if again else "cancelled", self.now + TRIED_AGAIN if again else None
            )
        elif outcome is not None:
            promise.become("completed" if self.centre.outcomes[outcome].keeps else "cancelled")

    def promise(self, user: int, agent: int | None, queue: str, at: datetime) -> None:
        """One is pending for a user: the last one that was promised."""
        person = self.users[user]
        if person.promise and person.is_promised():
            person.promise.become("cancelled")
        person.promise = Promise(user, agent, queue, at)
        self.callbacks.append(person.promise)

    def miss(self, missed: Missed) -> None:
        """A call comes in and nobody takes it; the webhook may say so twice."""
        twice = any((each.call, each.status) == (missed.call, "pending") for each in self.missed)
        missed.status = "cancelled" if twice else "pending"
        self.missed.append(missed)

    def match(self) -> tuple[int, int]:
        """Each missed call's user by the whole number, or an operator's: how many of both."""
        matched = unknown = 0
        for each in self.missed:
            if each.status != "pending" or each.user is not None:
                continue
            owners = [
                user.id
                for user in self.users.values()
                if user.in_crm and user.phone is not None and user.phone == each.phone
            ]
            if len(owners) == 1:
                each.user, matched = owners[0], matched + 1
            else:
                each.status, unknown = "for_operator", unknown + 1
        return matched, unknown

    def fail(self, user: int, reason: str) -> None:
        """A user was found ineligible at a claim; for an unclear reason, it is counted."""
        person = self.users[user]
        if reason in self.centre.unclear:
            person.failures.append(self.now)
            lately = [at for at in person.failures if at > self.now - DAY]
            person.is_set_aside |= len(lately) >= self.rules.quarantine_after

    def let_go(self, user: int) -> bool:
        """An operator releases a user who was set aside; False: they were not."""
        person = self.users[user]
        if not person.is_set_aside:
            return False
        person.is_set_aside = False
        person.failures.clear()
        return True

    def drain(self, queue: str) -> int:
        build = self.published().get(queue)
        places = build.places.values() if build else ()
        found = [place for place in places if place.state in {"ready", "waiting"}]
        for place in found:
            place.become("out", reason="drained")
        return len(found)

    def build(self, number: int, queue: str) -> None:
        """Whoever meets the policy, but for the hours: those are for the claim to judge."""
        may = [
            user
            for user in self.users.values()
            if user.broken_rules(queue, self.now, self.rules).keys() <= {"outside_calling_hours"}
        ]
        best = self._in_order(queue, may)
        places = {user: Place(rank) for rank, user in enumerate(best, start=1)}
        for user, until in self._put_off(0).items():
            if user in places and until > self.now:
                places[user].become("waiting", until)
        self.builds[number] = Build(queue, places, next(self.steps))

    def _in_order(self, queue: str, people: Sequence[Person]) -> list[int]:
        """The higher id comes first among equals."""
        found = [(user.id, user.scope(self.now)) for user in people]
        found.sort(key=lambda each: -each[0])
        for each in reversed(self.centre.queues[queue].order):
            each.sort(found)
        return [user for user, _ in found]

    def _put_off(self, since: int) -> dict[int, datetime]:
        """By user: until when whoever had them, from this step on, put them off."""
        until: dict[int, datetime] = {}
        for hold in self.holds.values():
            if hold.until is not None and hold.ended is not None and hold.ended >= since:
                until[hold.user] = max(hold.until, until.get(hold.user, hold.until))
        return until

    def publish(self, number: int) -> Said:
        build = self.builds[number]
        if build.state == "failed":
            return Said("refused", Code.UNKNOWN_GENERATION)
        if build.state in {"published", "retired"}:
            return Said("done", replayed=True)
        before = [
            each
            for each, other in self.builds.items()
            if (other.queue, other.state) == (build.queue, "published")
        ]
        if before and before[0] > number:
            build.state = "failed"
            return Said("done", replayed=True)
        for each in before:
            self.builds[each].state = "retired"
        build.state = "published"
        self._bring_in(build)
        return Said("done")

    def _bring_in(self, build: Build) -> None:
        held, put_off = self.held(), self._put_off(build.begun)
        completed = {
            hold.user
            for hold in self.holds.values()
            if hold.state == "completed" and hold.ended is not None and hold.ended >= build.begun
        }
        for user, place in build.places.items():
            if user in held:
                place.become("held")
            elif user in completed:
                place.become("out", reason="completed")
            elif user in put_off and put_off[user] > self.now:
                place.become("waiting", put_off[user])

    def remove_converted(self, queue: str, users: Collection[int]) -> list[int]:
        """Who of these leaves the dialer queue for having reached what it is for."""
        held = self.held()
        found = [
            user
            for user in self.users.values()
            if user.id in users
            and user.queue == queue
            and user.has_converted(self.now, self.rules)
            and user.id not in held
        ]
        for user in found:
            episode = sum((each.user, each.queue) == (user.id, queue) for each in self.conversions)
            self.conversions.append(
                Converted(
                    user.id,
                    queue,
                    self.centre.queues[queue].conversion,
                    episode + 1,
                    user.score,
                    user.attempts,
                    self.credited(user.id),
                )
            )
            user.score, user.queue = 0, user.where(self.now, self.rules)
            for place in self.places(user.id):
                if place.state != "out":
                    place.become("out", reason="converted")
        return sorted(user.id for user in found)

    def credited(self, user: int) -> tuple[int, ...]:
        """Who spoke to them for more than half a minute within 30 days, the last one first."""
        spoke = {
            hold.agent: hold.ended_at
            for hold in sorted(self.holds.values(), key=lambda hold: hold.ended or 0)
            if hold.user == user
            and hold.outcome is not None
            and self.centre.outcomes[hold.outcome].keeps
            and hold.ended_at is not None
            and hold.claimed_at is not None
            and hold.ended_at - hold.claimed_at > 30 * SECOND
            and hold.ended_at > self.now - 30 * DAY
        }
        return tuple(sorted(spoke, key=lambda agent: spoke[agent], reverse=True))

    def stands(self, user: int, queue: str) -> str:
        """Where a user stands in a dialer queue, in one word."""
        if user in self.held():
            return "held"
        if (broken := self.broken(user, queue)) is not None:
            return broken
        build = self.published().get(queue)
        place = build.places.get(user) if build else None
        if place is None:
            return "not_in_generation"
        if place.state == "out":
            return "drained" if place.reason == "drained" else "taken_out"
        if place.state == "waiting" and place.until is not None and place.until > self.now:
            return "waiting"
        return "claimable"

    def due(self, user: int) -> list[tuple[str, str]]:
        """What is pending for a user, by source, each with what stands in its way."""
        person = self.users[user]
        found = [("callback", person.promise)] if person.is_promised() else []
        pending = [each for each in self.missed if (each.user, each.status) == (user, "pending")]
        missed = [("missed_call", each) for each in sorted(pending, key=lambda each: each.at)]
        return [
            (source, self._in_the_way(person, each)) for source, each in (*found, *missed) if each
        ]

    def _in_the_way(self, person: Person, each: Promise | Missed) -> str:
        if person.id in self.held():
            return "held"
        if each.at > self.now:
            return "not_due"
        if each.until is not None and each.until > self.now:
            return "postponed"
        if self._rests(person.id):
            return "put_off"
        if isinstance(each, Missed) and any(
            (other.call, other.status) == (each.call, "followed_up") for other in self.missed
        ):
            return "followed_up"
        queue = each.queue if isinstance(each, Promise) else self.centre.names[0]
        why = person.held_back(self.now, self.rules, queue)
        return why or ("paused" if person.where(self.now, self.rules) in self.paused else "due")

    def pool(self, queue: str) -> list[int]:
        return [user.id for user in self.users.values() if user.queue == queue]

    def may_be_why(self, agent: int, queue: str) -> set[str]:
        """The words that truly say why the agent gets nobody from this dialer queue."""
        if queue in self.paused:
            return {"paused"}
        stands = {self.stands(user, queue) for user in self.pool(queue)}
        if not stands:
            return {"none_in_pool", *({"skipped_by_agent"} if self._skipped(agent) else ())}
        if stands & {"not_in_generation", "taken_out"}:
            return {"rebuild_stale"}
        if "drained" in stands:
            return {"drained"}
        words = {"all_held"} if self._is_held_from(queue) else set()
        words |= stands & {*self.centre.resting, "waiting"}
        words |= {"skipped_by_agent"} if self._skipped(agent) else set()
        return words or {"none_eligible"}

    def _is_held_from(self, queue: str) -> bool:
        pool = self.pool(queue)
        return any(each.queue == queue or each.user in pool for each in self.active().values())


POOLS = 14
"""How many of the users of `small` are in a pool; four others are in none."""


def small(now: datetime, settings: Settings, rules: Rules) -> Dialer:
    """Some users in each pool, four who are in none, and agents of every kind.

    Every third user is in New York, by their phone number.
    """
    ages = (3 * HOUR, DAY, DAY, HOUR)
    names = rules.centre.names
    people = [
        Person(
            number,
            names[(number - 1) * len(names) // POOLS],
            score=(0, 3, 3, 0, 10, 1, 199, 0)[number % 8],
            created_at=now - ages[number % 4],
            phone=f"+12125550{number:03d}" if number % 3 == 0 else f"+4420794600{number:02d}",
            place="New York" if number % 3 == 0 else "London",
        )
        for number in range(1, POOLS + 1)
    ]
    people += [
        Person(
            number,
            None,
            score=0,
            created_at=now,
            phone="+442079460099" if number > 16 else f"+4420794600{number:02d}",
            has_score_row=False,
        )
        for number in range(POOLS + 1, POOLS + 5)
    ]
    everywhere = list(names)
    allowed = {1: everywhere, 2: everywhere, 3: everywhere, 4: [names[-1]], 5: None}
    agents = {agent: Agent() for agent in allowed}
    return Dialer(now, settings, rules, allowed, {person.id: person for person in people}, agents)
