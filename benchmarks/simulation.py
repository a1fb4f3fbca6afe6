"""A call centre of any size on lanes, by events: who waits for whom, at costs that were measured.

Stations: a client process (the gateway) that takes each call on and each answer back; for each lane
its assignment queue, whose sequencer serves one message after another, each as long as its message
and its turn take. Calls of one kind for one lane share messages, as `client.wire.batcher` has it:
at most `TOGETHER` in one, at most `UNDER_WAY` at once. Times are seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from assignment_workers.client.wire.batcher import TOGETHER, UNDER_WAY

SPREAD = 0.6
"""Of the logarithm of how long a call lasts."""


@dataclass(frozen=True)
class Costs:
    """What was measured, in seconds of the one that does it."""

    message: float
    """The sequencer's own for each message: receive, acknowledge, answer."""
    claim_turn: float
    claim_each: float
    finish_turn: float
    finish_each: float
    client_call: float
    """A client process's, for one call and its answer."""


@dataclass(frozen=True)
class Centre:
    """How many agents, in how many lanes and client processes, and how long a call takes."""

    agents: int
    lanes: int = 1
    clients: int = 1
    cycle: float = 300.0
    """From an answer to the agent's next request, on average; the call's end is half-way."""
    crossing: float = 0.0
    """The share of messages that hold every lane: publications, users in two dialer queues."""
    begins_within: float | None = None
    """Everybody asks for the first time within so long; None: spread over a cycle."""


@dataclass
class Found:
    """What came of it."""

    waits: list[float] = field(default_factory=list)
    """From a request to its answer, after the warm-up."""
    answered: int = 0
    seconds: float = 0.0
    busy: list[float] = field(default_factory=list)
    """By lane: the share of the time in which its sequencer worked."""
    messages: int = 0
    carried: int = 0
    """Requests and finishes in those messages."""

    @property
    def rate(self) -> float:
        """Requests answered in a second."""
        return self.answered / self.seconds

    def wait(self, share: float) -> float:
        """The wait that this share of the requests had at the most."""
        ranked = sorted(self.waits) or [math.nan]
        return ranked[min(len(ranked) - 1, round(len(ranked) * share))]

    @property
    def together(self) -> float:
        """Requests and finishes in a message, on average."""
        return self.carried / max(self.messages, 1)


def simulate(
    centre: Centre, costs: Costs, *, seconds: float, warm_up: float = 0.0, seed: int = 1
) -> Found:
    """So many seconds of this call centre, the first of them not counted."""
    return _Run(centre, costs, seconds, warm_up, Random(seed)).go()


@dataclass
class _Call:
    agent: int
    is_claim: bool
    began: float


@dataclass
class _Lane:
    waiting: dict[bool, deque[_Call]]
    """By whether they are claims."""
    under_way: dict[bool, int]
    free_at: float = 0.0
    worked: float = 0.0


class _Run:
    def __init__(
        self, centre: Centre, costs: Costs, seconds: float, warm_up: float, chance: Random
    ) -> None:
        self.centre = centre
        self.costs = costs
        self.ends = warm_up + seconds
        self.warm_up = warm_up
        self.chance = chance
        self.found = Found(seconds=seconds)
        self.lanes = [
            _Lane({True: deque(), False: deque()}, {True: 0, False: 0}) for _ in range(centre.lanes)
        ]
        self.clients_free = [0.0] * centre.clients
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.now = 0.0

    def go(self) -> Found:
        within = self.centre.begins_within
        for agent in range(self.centre.agents):
            if within is None:  # as it stands at any moment: half of them have somebody
                begins = self._asks if self.chance.random() < 1 / 2 else self._finishes
                self._at(self.chance.uniform(0, self.centre.cycle / 2), begins(agent))
            else:
                self._at(self.chance.uniform(0, within), self._asks(agent))
        while self._events and self._events[0][0] < self.ends:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        span = self.ends - self.warm_up
        self.found.busy = [lane.worked / span for lane in self.lanes]
        return self.found

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def _asks(self, agent: int) -> Callable[[], None]:
        return lambda: self._calls(_Call(agent, True, self.now))

    def _finishes(self, agent: int) -> Callable[[], None]:
        return lambda: self._calls(_Call(agent, False, self.now))

    def _calls(self, call: _Call) -> None:
        """Half of what a client does for a call is done before it is sent."""
        self._at(self._client(call, self.costs.client_call / 2), lambda: self._joins(call))

    def _client(self, call: _Call, seconds: float) -> float:
        client = call.agent % len(self.clients_free)
        done = max(self.now, self.clients_free[client]) + seconds
        self.clients_free[client] = done
        return done

    def _joins(self, call: _Call) -> None:
        lane = self.lanes[call.agent % len(self.lanes)]
        lane.waiting[call.is_claim].append(call)
        self._send(lane, call.is_claim)

    def _send(self, lane: _Lane, is_claim: bool) -> None:  # noqa: FBT001 - which of two lines
        line = lane.waiting[is_claim]
        while line and lane.under_way[is_claim] < UNDER_WAY:
            calls = [line.popleft() for _ in range(min(len(line), TOGETHER))]
            lane.under_way[is_claim] += 1
            done = self._serve(lane, len(calls), is_claim)
            self._at(done, self._answers(lane, calls))

    def _serve(self, lane: _Lane, size: int, is_claim: bool) -> float:  # noqa: FBT001
        costs = self.costs
        transaction = (
            costs.claim_turn + size * costs.claim_each
            if is_claim
            else costs.finish_turn + size * costs.finish_each
        )
        crossing = self.chance.random() < self.centre.crossing
        served = self.lanes if crossing else [lane]
        begins = max(self.now, *(each.free_at for each in served))
        done = begins + costs.message + transaction * (2 if crossing else 1)
        for each in served:
            each.free_at = done
            if begins >= self.warm_up:
                each.worked += max(0.0, min(done, self.ends) - begins)
        if begins >= self.warm_up:
            self.found.messages += 1
            self.found.carried += size
        return done

    def _answers(self, lane: _Lane, calls: list[_Call]) -> Callable[[], None]:
        def happens() -> None:
            lane.under_way[calls[0].is_claim] -= 1
            for call in calls:
                self._at(self._client(call, self.costs.client_call / 2), self._hears(call))
            self._send(lane, calls[0].is_claim)

        return happens

    def _hears(self, call: _Call) -> Callable[[], None]:
        def happens() -> None:
            if call.is_claim and self.now >= self.warm_up:
                self.found.answered += 1
                self.found.waits.append(self.now - call.began)
            then = self._finishes if call.is_claim else self._asks
            self._at(self.now + self._while(), then(call.agent))

        return happens

    def _while(self) -> float:
        """Half a cycle, as long as calls are: most of them short, some long."""
        mean = self.centre.cycle / 2
        return mean and mean * self.chance.lognormvariate(-(SPREAD**2) / 2, SPREAD)


def median_of(runs: list[Found], of: Callable[[Found], float]) -> float:
    """The median of several seeds."""
    return statistics.median(map(of, runs))
