"""A dialer in memory: what the operations promise, in the plainest Python, without a database."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.request import Request
from assignment_workers.settings import Settings
from tests.world import BOTH, DAY, HOUR, OUTSTANDING, UNSIGNED

OUTCOMES = {
    "no_answer": (1, 4),
    "hung_up": (2, 4),
    "call_back": (0, None),
    "do_not_contact": (200, 0),
}
"""What is added to the score, and after how many hours the user may be called again."""
CALLBACK_AFTER = 2 * HOUR


@dataclass
class Person:
    """A user as the CRM and their score row stand."""

    id: int
    queue: str | None
    score: int
    created_at: datetime
    is_signed: bool
    is_enabled: bool = True
    has_live_claim: bool = True
    has_pending_requirement: bool = True
    is_active: bool = True
    has_opted_out: bool = False
    next_call_after: datetime | None = None
    attempts: int = 0

    def barred(self, queue: str) -> str | None:
        """The first rule about the person that they break."""
        reasons = {
            "disabled": not self.is_enabled,
            "opted_out": self.has_opted_out,
            "all_claims_cancelled": not self.has_live_claim,
            "signed": queue == UNSIGNED and self.is_signed,
            "unsigned": queue == OUTSTANDING and not self.is_signed,
            "requirements_completed": queue == OUTSTANDING and not self.has_pending_requirement,
        }
        return next((reason for reason, is_so in reasons.items() if is_so), None)

    def broken(self, queue: str, now: datetime) -> str | None:
        """The first rule of the policy that they break; None for who may be handed out."""
        rests = self.next_call_after is not None and self.next_call_after > now
        reasons = {
            "in_other_queue": self.queue != queue,
            "inactive": not self.is_active,
            "cooling_down": rests,
            "too_new": self.score > 0 and self.created_at > now - 2 * HOUR,
        }
        later = next((reason for reason, is_so in reasons.items() if is_so), None)
        return self.barred(queue) or later

    def rests_until(self, queue: str, now: datetime) -> datetime | None:
        """When the times of who breaks no other rule have passed; None for whoever does."""
        if self.broken(queue, now) not in {"cooling_down", "too_new"}:
            return None
        settled = self.created_at + 2 * HOUR if self.score > 0 else now
        return max(settled, self.next_call_after or now)

    def has_converted(self) -> bool:
        if self.queue == UNSIGNED:
            return self.is_signed
        wanting = self.has_pending_requirement and self.has_live_claim
        return self.queue == OUTSTANDING and self.is_signed and not wanting

    def place(self) -> str | None:
        """The dialer queue they belong to by their facts."""
        return next((queue for queue in BOTH if self.barred(queue) is None), None)


@dataclass
class Hold:
    """An assignment. It is known by the request that it answered."""

    request_id: str
    user: int
    agent: int
    queue: str
    rank: int
    lease: datetime
    state: str = "active"
    version: int = 1
    ended_at: datetime | None = None
    outcome: str | None = None
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


@dataclass
class Dialer:
    """Everything that the operations change. Each method is one turn or one job."""

    now: datetime
    settings: Settings
    allowed: dict[int, list[str] | None]
    """By agent: the dialer queues that they may take from; None for one who is not active."""
    users: dict[int, Person]
    holds: dict[str, Hold] = field(default_factory=dict)
    builds: dict[int, Build] = field(default_factory=dict)
    answers: dict[str, tuple[int, Said]] = field(default_factory=dict)
    """By request id: whose it is, and its one answer."""
    paused: set[str] = field(default_factory=set)
    conversions: list[int] = field(default_factory=list)
    callbacks: list[int] = field(default_factory=list)
    steps: Iterator[int] = field(default_factory=itertools.count)

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

    def ask(self, requests: Sequence[Request]) -> list[Said]:
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

    def _answer(self, request: Request) -> Said:
        if request.request_id in self.answers:
            agent, said = self.answers[request.request_id]
            if agent != request.agent_id:
                return Said("refused", Code.REQUEST_ID_TAKEN)
            return Said(said.outcome, said.code, said.hold, replayed=said.hold is not None)
        said = self._decide(request)
        if said.outcome != "unavailable":  # who is told to ask again may use the same request id
            self.answers[request.request_id] = (request.agent_id, said)
        return said

    def _decide(self, request: Request) -> Said:
        if request.deadline is not None and request.deadline <= self.now:
            return Said("too_late")
        if request.agent_id not in self.allowed:
            return Said("refused", Code.UNKNOWN_AGENT)
        allowed = self.allowed[request.agent_id]
        if allowed is None:
            return Said("refused", Code.INACTIVE_AGENT)
        queues = [each for each in BOTH if each in allowed and request.queue in (None, each)]
        if not queues:
            return Said("refused", Code.QUEUE_NOT_ALLOWED)
        hold = self.active().get(request.agent_id)
        if hold is not None:
            return Said("assigned", hold=hold.request_id, replayed=True)
        for queue in queues:
            if (user := self.best(request.agent_id, queue)) is not None:
                return self._hold(request, queue, user)
        if self.paused.issuperset(queues):
            return Said("paused")
        if set(queues) - self.paused - self.published().keys():
            return Said("unavailable")
        return Said("empty")

    def best(self, agent: int, queue: str) -> int | None:
        """The user of the best rank whom the agent may have from this dialer queue."""
        build = self.published().get(queue)
        if build is None or queue in self.paused:
            return None
        skipped = {
            hold.user
            for hold in self.holds.values()
            if (hold.state, hold.agent) == ("skipped", agent)
            and hold.ended_at is not None
            and hold.ended_at > self.now - self.settings.skip_agent
        }
        held = self.held()
        may = {
            place.rank: user
            for user, place in build.places.items()
            if place.state == "ready"
            and user not in skipped
            and user not in held
            and self.users[user].broken(queue, self.now) is None
        }
        return may[min(may)] if may else None

    def _hold(self, request: Request, queue: str, user: int) -> Said:
        name = request.request_id
        self.holds[name] = Hold(
            name,
            user,
            request.agent_id,
            queue,
            self.published()[queue].places[user].rank,
            self.now + self.settings.lease,
        )
        for place in self.places(user):
            if place.state in {"ready", "waiting"}:
                place.become("held")
        return Said("assigned", hold=name)

    def expire(self) -> int:
        lapsed = [hold for hold in self.active().values() if hold.lease <= self.now]
        for hold in lapsed:
            self._end(hold, "expired")
        return len(lapsed)

    def _end(self, hold: Hold, state: str, outcome: str | None = None) -> None:
        hold.state, hold.version, hold.ended_at = state, hold.version + 1, self.now
        hold.outcome, hold.ended = outcome, next(self.steps)
        for place in self.places(hold.user):
            if state == "completed":
                if place.state != "out":
                    place.become("out", reason="completed")
            elif place.state == "held":
                if state == "skipped":
                    place.become("waiting", self.now + self.settings.skip_everyone)
                else:
                    place.become("ready")

    def finish(
        self, name: str, agent: int, version: int | None, way: str, outcome: str | None = None
    ) -> Said:
        """What the agent says about this hold, with the version that they name."""
        hold = self.holds[name]
        becomes = "active" if way == "renewed" else way
        if agent != hold.agent:
            return Said("refused", Code.NOT_OWNER)
        if hold.state != "active":
            same = (hold.state, hold.outcome) == (becomes, outcome)
            if same and version in {None, hold.version - 1}:
                return Said(way, hold=name, replayed=True)
            return Said("refused", Code.NOT_ACTIVE)
        if version not in {None, hold.version}:
            return Said("refused", Code.STALE_VERSION)
        if way == "renewed":
            hold.lease = max(hold.lease, self.now + self.settings.lease)
            return Said(way, hold=name)
        self._end(hold, way, outcome)
        if outcome is not None:
            self._score(self.users[hold.user], outcome)
        return Said(way, hold=name)

    def _score(self, user: Person, outcome: str) -> None:
        added, hours = OUTCOMES[outcome]
        user.attempts += 1
        user.score += added + (0 if user.attempts <= 5 else 1 if user.attempts <= 10 else 3)
        if outcome == "do_not_contact":
            user.score, user.has_opted_out = min(user.score, 200), True
        if hours is None:
            user.next_call_after = self.now + CALLBACK_AFTER
            self.callbacks.append(user.id)
        else:
            user.next_call_after = self.now + hours * HOUR if hours else None

    def build(self, number: int, queue: str) -> None:
        may = [user for user in self.users.values() if user.broken(queue, self.now) is None]
        may.sort(key=lambda user: (user.score, -user.created_at.timestamp(), -user.id))
        places = {user.id: Place(rank) for rank, user in enumerate(may, start=1)}
        for user, at in self._skips(0).items():
            until = at + self.settings.skip_everyone
            if user in places and until > self.now:
                places[user].become("waiting", until)
        self.builds[number] = Build(queue, places, next(self.steps))

    def _skips(self, since: int) -> dict[int, datetime]:
        """By user: when they were last skipped, from this step on."""
        return {
            hold.user: hold.ended_at
            for hold in sorted(self.holds.values(), key=lambda hold: hold.ended or 0)
            if hold.state == "skipped"
            and hold.ended is not None
            and hold.ended >= since
            and hold.ended_at is not None
        }

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
        held, skips = self.held(), self._skips(build.begun)
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
            elif user in skips and skips[user] + self.settings.skip_everyone > self.now:
                place.become("waiting", skips[user] + self.settings.skip_everyone)

    def remove_converted(self, queue: str) -> list[int]:
        """Who leaves the dialer queue for having reached what it is for."""
        held = self.held()
        found = [
            user
            for user in self.users.values()
            if user.queue == queue and user.has_converted() and user.id not in held
        ]
        for user in found:
            user.score, user.queue = 0, user.place()
            self.conversions.append(user.id)
            for place in self.places(user.id):
                if place.state != "out":
                    place.become("out", reason="converted")
        return sorted(user.id for user in found)


def small(now: datetime, settings: Settings) -> Dialer:
    """Seven users in each pool, and agents of every kind."""
    ages = (3 * HOUR, DAY, DAY, HOUR)
    people = [
        Person(
            number,
            queue,
            score=(0, 3, 3, 0, 10, 1, 199, 0)[number % 8],
            created_at=now - ages[number % 4],
            is_signed=queue == OUTSTANDING,
        )
        for number, queue in enumerate([UNSIGNED] * 7 + [OUTSTANDING] * 7, start=1)
    ]
    allowed = {1: list(BOTH), 2: list(BOTH), 3: list(BOTH), 4: [OUTSTANDING], 5: None}
    return Dialer(now, settings, allowed, {person.id: person for person in people})
