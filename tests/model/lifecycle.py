"""Assignments of the dialer in memory after the claim: accepted, finished, expired; conversions."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from assignment_workers.assignment.answers import Code
from tests.model.callbacks import Callbacks
from tests.model.records import Came, Converted, Hold, Said
from tests.model.rules import Person
from tests.support.world import DAY, SECOND

BECOMES = {
    "renewed": ("active", None),
    "accepted": ("active", None),
    "deferred": ("skipped", "deferred"),
    "closed": ("skipped", "closed"),
}
"""The state, and how it came to it, of a hold of which this is said; of others that very word."""


class Lifecycle(Callbacks):
    """The states of agents and of their assignments. Each public method is one turn or one job."""

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
