"""Which offers were taken up already, so that later heartbeats need not go by the line."""

from __future__ import annotations

from collections import OrderedDict
from uuid import UUID

KNOWN_AT_MOST = 10_000


class Accepted:
    """The offers accepted last: `KNOWN_AT_MOST`. One that is forgotten is accepted again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, str], None] = OrderedDict()

    def knows(self, agent: int, assignment: UUID | str) -> bool:
        """Whether this agent accepted it."""
        return (agent, str(assignment)) in self._known

    def add(self, agent: int, assignment: UUID | str) -> None:
        """This agent accepted it."""
        self._known[agent, str(assignment)] = None
        if len(self._known) > KNOWN_AT_MOST:
            self._known.popitem(last=False)
