"""A simulated agent's day: log in, ask, talk, choose an outcome, take a break, or close the tab."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TypeVar
from uuid import UUID

from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Empty,
    FinishAnswer,
    Finished,
    Held,
    Refused,
    RequestAnswer,
    Unavailable,
)
from assignment_workers.client.assignment_client import AsyncAssignmentClient
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import AgentActivity, Recorder
from assignment_workers.schema.states import AssignmentState

Answer = TypeVar("Answer", RequestAnswer, FinishAnswer)

LOGS_IN_WITHIN = timedelta(minutes=3)
TALK = {
    "no_answer": timedelta(seconds=25),
    "hung_up": timedelta(seconds=40),
    "bad_number": timedelta(seconds=15),
}
TALK_OTHERWISE = timedelta(minutes=4)
TALK_SPREAD = 0.7
WRITING = timedelta(seconds=20)
BREAK = timedelta(minutes=10)
CLOSED = timedelta(minutes=6)
"""The simulated time until an agent who closed the browser tab comes back."""
CALLBACK_IN = timedelta(minutes=30)

TAKES_BREAK, CLOSES_TAB, SKIPS, GIVES_BACK, SAYS_TWICE = 0.02, 0.015, 0.05, 0.02, 0.05

OUTCOMES = {
    "no_answer": 45,
    "hung_up": 11,
    "might_complete": 9,
    "going_to_complete": 6,
    "call_back": 9,
    "completed_form": 8,
    "not_interested": 6,
    "bad_number": 4,
    "do_not_contact": 1,
    "no_claim": 1,
}
"""Maps the outcome of a call to its share of all calls in per cent."""

PATIENCE = 120.0
"""The time in seconds for which an agent repeats a message that gets no answer."""
SAID = timedelta(seconds=10)


@dataclass
class SimulatedAgent:
    """A simulated agent, who requests users and calls them until the event `over` is set.

    If a call is going on at that moment, the agent ends the call and then stops.
    """

    number: int
    plan: Plan
    client: AsyncAssignmentClient
    recorder: Recorder
    over: asyncio.Event
    signed: Callable[[int], None]
    """A function to which the agent passes each user whose call had the outcome `completed_form`.

    The simulation then stores a signature of the user in the CRM.
    """
    lease: timedelta
    chance: Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = Random(f"{self.plan.seed} agent {self.number}")

    async def work(self) -> None:
        """Work from the login until the day is over."""
        self.recorder.is_in(self.number, AgentActivity.AWAY)
        await self._pause(LOGS_IN_WITHIN * self.chance.random())
        while not self.over.is_set():
            answer = await self._ask()
            match answer:
                case Assigned():
                    await self._assigned(answer)
                case Empty(retry_after=seconds):
                    self.recorder.is_in(self.number, AgentActivity.IDLE)
                    await self._sleep(min(seconds, 5.0))
                case Unavailable(retry_after=seconds):
                    await self._sleep(min(seconds, 2.0))
                case Refused(code=Code.ON_BREAK):  # three offers lapsed while the tab was closed
                    self.recorder.counts["set on break"] += 1
                    await self.client.state(self.number, "available", timeout=SAID)
                case other:
                    if other.outcome not in {"too_late", "paused"}:
                        self._surprise(f"asked and was told {other}")
                    await self._sleep(1.0)
            if self.chance.random() < TAKES_BREAK:
                self.recorder.is_in(self.number, AgentActivity.RESTING)
                await self._pause(BREAK)
        self.recorder.is_in(self.number, AgentActivity.AWAY)

    async def _ask(self) -> RequestAnswer:
        self.recorder.is_in(self.number, AgentActivity.ASKING)
        name = str(UUID(int=self.chance.getrandbits(128), version=4))

        async def once() -> RequestAnswer:
            return await self.client.request_next(self.number, request_id=name, timeout=SAID)

        began = time.monotonic()
        answer = await self._until_told(once)
        self.recorder.answered(answer.outcome, time.monotonic() - began)
        if isinstance(answer, Assigned) and not _has_ended(answer.assignment):
            self.recorder.record(answer.assignment)
        return answer

    async def _assigned(self, answer: Assigned) -> None:
        held = answer.assignment
        if not _has_ended(held):
            if answer.replayed:  # back after the tab was closed: the lease may be nearly over
                await self._renew(held)
            await self._call(held)
        elif answer.replayed:  # the first answer was lost, and the assignment has ended since
            self.recorder.counts["ended before it was told"] += 1
        else:
            self._surprise(f"asked and was told first of {held.state} {held.id}")

    async def _call(self, held: Held) -> None:
        if self.chance.random() < SKIPS:
            await self._end(held, "skipped", lambda: self.client.skip(*_of(held)))
            return
        if self.chance.random() < GIVES_BACK:
            await self._end(held, "released", lambda: self.client.release(*_of(held)))
            return
        (outcome,) = self.chance.choices(list(OUTCOMES), list(OUTCOMES.values()))
        self.recorder.is_in(self.number, AgentActivity.TALKING)
        await self._talk(held, TALK.get(outcome, TALK_OTHERWISE))
        if self.chance.random() < CLOSES_TAB:
            self.recorder.counts["tab closed"] += 1
            self.recorder.is_in(self.number, AgentActivity.AWAY)
            await self._pause(CLOSED)
            return
        self.recorder.is_in(self.number, AgentActivity.WRITING)
        await self._pause(WRITING)
        notes = "asked not to be called again" if outcome == "do_not_contact" else None
        back = (
            self._now() + timedelta(seconds=self.plan.wall(CALLBACK_IN) + 1)
            if outcome == "call_back"
            else None
        )
        done = await self._end(
            held,
            "completed",
            lambda: self.client.complete(
                held.id, self.number, outcome, notes=notes, callback_at=back, timeout=SAID
            ),
            outcome,
        )
        if done and outcome == "completed_form":
            self.signed(held.user_number)

    async def _talk(self, held: Held, median: timedelta) -> None:
        """Simulate a call of random length; renew the lease during the call.

        The length has a log-normal distribution with this median, in simulated time.
        """
        spread = self.chance.lognormvariate(0, TALK_SPREAD)
        ends = time.monotonic() + self.plan.wall(median * spread)
        while (left := ends - time.monotonic()) > 0 and not self.over.is_set():
            lapses = self.recorder.assignments[held.id].lease_until - self._now()
            beat = max(min(self.lease, lapses).total_seconds() / 3, 0.2)
            await self._sleep(min(left, beat))
            if left <= beat or self.over.is_set():
                continue
            if not await self._renew(held):
                return

    async def _renew(self, held: Held) -> bool:
        """Renew the lease; return False if the answer shows that the assignment has ended."""
        answer = await self.client.renew(held.id, self.number, timeout=SAID)
        match answer:
            case Finished(assignment=renewed):
                self.recorder.renewed(renewed)
            case Refused():
                self._refused(held, answer)
                return False
            case Unavailable():
                self.recorder.counts["renewal unanswered"] += 1
        return True

    async def _end(
        self,
        held: Held,
        state: str,
        say: Callable[[], Awaitable[FinishAnswer]],
        outcome: str | None = None,
    ) -> bool:
        """End the assignment; return True if an answer confirms that it has ended.

        `say` is a function that sends the message that ends the assignment. It is called until an
        answer arrives. After a confirmation, `state` and `outcome` are recorded.
        """
        self.recorder.gives_up(held)
        answer = await self._until_told(say)
        match answer:
            case Finished():
                self.recorder.ended(held, state, outcome)
                self.recorder.counts[outcome or state] += 1
                return True
            case Refused():
                self._refused(held, answer)
            case Unavailable():
                self.recorder.counts["end unanswered"] += 1
        return False

    async def _until_told(self, say: Callable[[], Awaitable[Answer]]) -> Answer:
        """Call `say`, which sends a message, until an answer arrives; return the answer.

        If there is no answer within two minutes, `Unavailable` is returned. In a run with faults
        the message is sometimes sent twice at the same time, to test that only one takes effect.
        """
        ends = time.monotonic() + PATIENCE
        while True:
            if self.plan.chaos and self.chance.random() < SAYS_TWICE:
                first, answer = await asyncio.gather(say(), say())
                self._agree(first, answer)
                if isinstance(answer, Unavailable):
                    answer = first
            else:
                answer = await say()
            if not isinstance(answer, Unavailable) or time.monotonic() > ends:
                return answer
            self.recorder.counts["asked again"] += 1
            await asyncio.sleep(min(answer.retry_after, 2.0))

    def _agree(self, first: Answer, second: Answer) -> None:
        """Record a surprise if the two answers to a message that was sent twice differ.

        A surprise is an answer that contradicts a guarantee.
        """
        self.recorder.counts["said twice"] += 1
        if Unavailable in {type(first), type(second)}:
            return
        one, other = _subject(first), _subject(second)
        if one != other:
            self._surprise(f"said the same twice and was told {one} and {other}")

    def _refused(self, held: Held, answer: Refused) -> None:
        """Record that a message about this assignment was refused.

        A refusal because the assignment is not active is expected after the end of the lease, or
        after a jump of the database's clock. Any other refusal is recorded as a surprise: an
        answer that contradicts a guarantee.
        """
        known = self.recorder.assignments[held.id]
        until = known.lease_until
        lapsed = until <= self._now() or self.recorder.has_stepped_since(known.at)
        if answer.code == Code.NOT_ACTIVE and lapsed:
            self.recorder.counts["lease lapsed"] += 1
        else:
            self._surprise(f"has user {held.user_id} until {until:%H:%M:%SZ}, was told {answer}")

    def _now(self) -> datetime:
        """Return the time by the database's clock."""
        return datetime.now(UTC) + self.recorder.ahead

    def _surprise(self, what: str) -> None:
        self.recorder.surprises.append(f"agent {self.number} {what}")

    async def _pause(self, span: timedelta) -> None:
        await self._sleep(self.plan.wall(span))

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            return


def _has_ended(held: Held) -> bool:
    return held.state != AssignmentState.ACTIVE


def _of(held: Held) -> tuple[UUID, int]:
    return held.id, held.agent_id


def _subject(answer: RequestAnswer | FinishAnswer) -> object:
    match answer:
        case Assigned(assignment=held) | Finished(assignment=held):
            return answer.outcome, held.id
        case other:
            return other.outcome, None
