"""The state of the dialer in memory: its rows, and lookups in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from assignment_workers.settings import Settings
from tests.model.agents import Agent
from tests.model.records import Build, Converted, Hold, Place, Said
from tests.model.rules import Centre, Missed, Person, Promise, Rules


@dataclass
class DialerState:
    """Everything that the operations change."""

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

    def _all_places(self) -> Iterator[Place]:
        for build in self.published().values():
            yield from build.places.values()

    def _skipped(self, agent: int) -> set[int]:
        """Whom they skipped lately."""
        return {
            hold.user
            for hold in self.holds.values()
            if (hold.state, hold.how, hold.agent) == ("skipped", None, agent)
            and hold.ended_at is not None
            and hold.ended_at > self.now - self.settings.skip_agent
        }

    def _put_off(self, since: int) -> dict[int, datetime]:
        """By user: until when whoever had them, from this step on, put them off."""
        until: dict[int, datetime] = {}
        for hold in self.holds.values():
            if hold.until is not None and hold.ended is not None and hold.ended >= since:
                until[hold.user] = max(hold.until, until.get(hold.user, hold.until))
        return until

    def _rests(self, user: int) -> bool:
        """Somebody skipped or deferred them: they are not offered to anybody, from any source."""
        return any(at > self.now for each, at in self._put_off(0).items() if each == user)
