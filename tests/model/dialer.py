"""A dialer in memory: what the operations promise, in the plainest Python, without a database."""

from __future__ import annotations

from datetime import datetime

from assignment_workers.settings import Settings
from tests.model.agents import Agent
from tests.model.claims import Claims
from tests.model.generations import Generations
from tests.model.rules import Missed, Person, Promise, Rules
from tests.support.world import DAY, HOUR

POOLS = 14
"""How many of the users of `small` are in a pool; four others are in none."""


class Dialer(Claims, Generations):
    """All operations, and the status of users that results from them."""

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
