"""A search through every state that the protocol can reach, breadth first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model.protocol import Protocol
from tests.model.protocol_state import State


@dataclass
class Search:
    """What a search found. A trace is what happened, from the beginning."""

    states: int = 0
    breaches: dict[str, list[str]] = field(default_factory=dict)
    """By what is broken: the shortest trace to it."""
    stuck: list[str] | None = None
    """The shortest trace to a state from which, without another fault, not everybody is answered."""
    reached: dict[str, int] = field(default_factory=dict)
    """How many states there are of each kind that was looked for."""


def search(protocol: Protocol, looked_for: dict[str, Callable[[State], bool]]) -> Search:
    """Visit every reachable state, breadth first, and none beyond a breach."""
    begin = protocol.begin()
    numbers = {begin: 0}
    states = [begin]
    came: list[tuple[int, str]] = [(0, "")]
    before: list[list[int]] = [[]]
    """By state: those from which it is reached without a fault."""
    found = Search(reached=dict.fromkeys(looked_for, 0))
    front = deque([0])

    def trace(number: int) -> list[str]:
        told: list[str] = []
        while number:
            number, what = came[number]
            told.append(what)
        return told[::-1]

    while front:
        number = front.popleft()
        state = states[number]
        for name, holds in looked_for.items():
            found.reached[name] += holds(state)
        if state.breach:
            found.breaches.setdefault(state.breach, trace(number))
            continue
        for what, after, is_fault in protocol.steps(state):
            known = numbers.get(after)
            if known is None:
                known = numbers[after] = len(states)
                states.append(after)
                came.append((number, what))
                before.append([])
                front.append(known)
            if not is_fault:
                before[known].append(number)
    found.states = len(states)
    found.stuck = _stuck(protocol, states, before, trace)
    return found


def _stuck(
    protocol: Protocol,
    states: list[State],
    before: list[list[int]],
    trace: Callable[[int], list[str]],
) -> list[str] | None:
    """Backwards from where all are answered; whoever is not met on the way is stuck."""
    good = bytearray(len(states))
    front = [
        number for number, state in enumerate(states) if protocol.settled(state) or state.breach
    ]
    for number in front:
        good[number] = 1
    while front:
        for earlier in before[front.pop()]:
            if not good[earlier]:
                good[earlier] = 1
                front.append(earlier)
    bad = good.find(0)
    return None if bad == -1 else trace(bad)
