"""Claims of the dialer in memory: a user for each request, and quarantine after failed claims."""

from __future__ import annotations

from collections.abc import Sequence

from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.claims.request import ClaimRequest
from tests.model.lifecycle import Lifecycle
from tests.model.records import Hold, Said
from tests.model.rules import Missed, Promise
from tests.support.world import DAY


class Claims(Lifecycle):
    """Requests and their answers. A request id has one answer."""

    def ask(self, requests: Sequence[ClaimRequest]) -> list[Said]:
        """The answers to different request ids, in one turn."""
        if any(each.request_id not in self.answers for each in requests):
            self.expire()
            for place in self._all_places():
                if place.state == "waiting" and place.until and place.until <= self.now:
                    place.become("ready")
        return [self._answer(each) for each in requests]

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
