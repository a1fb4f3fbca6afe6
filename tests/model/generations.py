"""Generations of the dialer in memory: built, published, drained."""

from __future__ import annotations

from collections.abc import Sequence

from assignment_workers.assignment.answers import Code
from tests.model.dialer_state import DialerState
from tests.model.records import Build, Place, Said
from tests.model.rules import Person


class Generations(DialerState):
    """The builds of each dialer queue, of which at most one is published."""

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

    def drain(self, queue: str) -> int:
        build = self.published().get(queue)
        places = build.places.values() if build else ()
        found = [place for place in places if place.state in {"ready", "waiting"}]
        for place in found:
            place.become("out", reason="drained")
        return len(found)
