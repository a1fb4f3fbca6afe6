"""Callbacks and missed calls of the dialer in memory: due to an agent, tried again, ended."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from tests.model.dialer_state import DialerState
from tests.model.rules import PASSING, Missed, Promise
from tests.support.world import DAY

PREFERRED = timedelta(minutes=10)
"""How long a callback is kept for the agent who promised it."""
TRIED_AGAIN = timedelta(minutes=15)
"""When a callback is tried again that nobody answered, or whose user may not be called now."""


class Callbacks(DialerState):
    """Callbacks that agents promised, and inbound calls that nobody took."""

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
